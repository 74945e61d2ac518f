"""A live widget, and the static view that replaces it when the widget is gone.

A command shows two outputs. The first is the widget. The second is the same view as plain HTML
and text, brought up to date as things happen, and hidden by a style rule for as long as the widget
is alive on the page. So it is what remains when the kernel is gone, in an exported or rendered
notebook, and in a front end without widgets; and updating it does not draw the widget anew, which
would take the keyboard's focus away. A dead widget that is still on the page is hidden in turn:
its numbers would be stale.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from glm4v_magic.notebook.live.output import Output
from glm4v_magic.notebook.render import Html, MimeBundle
from glm4v_magic.notebook.render.templates import fill

__all__ = ["Live", "on_main_thread"]

_WIDGET = "application/vnd.jupyter.widget-view+json"


class Live:
    """A widget with its static twin.

    Args:
        children: widgets that it shows, from top to bottom.
        bundle: makes the twin's MIME data.
        on_hidden: called when no page shows the widget any more, or it is closed. The page tells,
            in a message that ipywidgets hands to an observer; so this is a callback, too.
        on_shown: called when a page shows it again.
    """

    def __init__(
        self,
        children: list[Any],
        bundle: Callable[[], MimeBundle],
        *,
        on_hidden: Callable[[], None],
        on_shown: Callable[[], None],
    ) -> None:
        name = f"glm4v-{uuid.uuid4().hex[:12]}"
        rules = widgets.HTML(fill("twin_rules", name=name))
        rules.layout.display = "none"
        self.box = widgets.VBox([rules, *children])
        self.box.add_class(name)
        self._all = [self.box, rules, *children]
        self._name = name
        self._bundle = bundle
        self._on_hidden, self._on_shown = on_hidden, on_shown
        self._twin = Output()
        self._shown: MimeBundle = {}
        self._lock = threading.Lock()
        self.is_open = True
        self._is_shown = False
        self.box._view_count = 0  # from now on front ends count their views in it
        self.box.observe(self._views_changed, "_view_count")

    @property
    def selector(self) -> str:
        """CSS selector of this widget."""
        return f".{self._name}"

    def show(self) -> None:
        """Show widget and twin as outputs of the running cell."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        with self._lock:
            bundle = self._bundle()  # first: what cannot be shown leaves nothing in the cell
            # The twin has the text. An empty element is what front ends without widgets show here.
            html = Html("<span></span>")
            display({"text/plain": "", "text/html": html, _WIDGET: view}, raw=True)
            self._is_shown = True
            self._show_twin(bundle)

    def refresh_twin(self) -> None:
        """Update the static view, if it is shown and outdated."""
        if not self._is_shown:
            return
        with self._lock:
            bundle = self._bundle()  # in here: a later one must not be shown before it
            if bundle != self._shown:
                self._show_twin(bundle)

    def _show_twin(self, bundle: MimeBundle) -> None:
        self._shown = bundle
        html = fill("twin", name=self._name, html=Html(bundle["text/html"]))
        self._twin.show({**bundle, "text/html": html})

    def close(self) -> None:
        """Remove the widget from all pages; the twin stays."""
        if self.is_open:
            self.is_open = False
            try:
                self._on_hidden()
                self.refresh_twin()
            finally:
                for widget in _with_parts(self._all):
                    widget.close()

    def _views_changed(self, change: Any) -> None:
        if self.is_open and change["new"] == 0:
            self._on_hidden()
        elif self.is_open and not change["old"]:
            self._on_shown()


def on_main_thread(shell: Any, action: Callable[[], None]) -> None:
    """Run `action` on the main thread: now, or from another thread after the running cell.

    torch's virtual devices belong to a thread, and two threads must not use a model at once.
    """
    loop = getattr(getattr(shell, "kernel", None), "io_loop", None)
    if loop is None or threading.current_thread() is threading.main_thread():
        action()
    else:
        loop.add_callback(action)


def _with_parts(roots: list[Any]) -> list[Any]:
    """Return widgets with all their parts: closing a box does not close its children."""
    found: list[Any] = []
    waiting = list(roots)
    while waiting:
        widget = waiting.pop()
        if widget not in found:
            found.append(widget)
            waiting += getattr(widget, "children", ())
            waiting += [
                getattr(widget, name) for name in ("layout", "style") if widget.has_trait(name)
            ]
    return found
