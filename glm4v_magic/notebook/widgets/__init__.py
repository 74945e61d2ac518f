"""Views that stay live in a notebook.

Commands import ipywidgets with it when they need it: it is the one place where display meets a
kernel.
"""

from __future__ import annotations
