"""Pictures that stay live in a notebook.

Only this package imports ipywidgets. Commands import it when they need it, and it is the one place
where display meets a kernel.
"""

from __future__ import annotations
