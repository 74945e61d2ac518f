"""``%glm4v memory`` as a widget."""

from __future__ import annotations

import ipywidgets as widgets

from glm4v_magic.notebook.monitor import Monitor
from glm4v_magic.notebook.render.memory import MemoryView, memory_bundle, memory_html
from glm4v_magic.notebook.widgets.watched import WatchedView
from glm4v_magic.session.session import Status

__all__ = ["MemoryWidget"]


class MemoryWidget(WatchedView):
    """Live view of memory."""

    def __init__(self, monitor: Monitor) -> None:
        self._view = monitor.view()
        # The widget scrolls, not a part of its HTML, which is replaced, and the focus with it.
        self._html = widgets.HTML(memory_html(self._view), layout={"overflow": "auto"})
        if self._html.has_trait("tabbable"):  # since ipywidgets 8
            self._html.tabbable = True
        super().__init__(monitor, [self._html], lambda: memory_bundle(self._view))

    def refresh(self, view: MemoryView, status: Status) -> None:
        """Show a new reading; see `monitor.View`."""
        changed, self._view = view != self._view, view
        if changed and self.live.is_open:
            self._html.value = memory_html(view)
