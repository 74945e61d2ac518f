"""Live views in a notebook.

Imported by commands on demand, because it imports ipywidgets.
"""

from __future__ import annotations
