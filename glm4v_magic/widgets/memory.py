"""``%glm4v memory`` as a widget."""

from __future__ import annotations

import ipywidgets as widgets

from glm4v_magic.display.memory import MemoryPicture, memory_bundle, memory_html
from glm4v_magic.monitor import Monitor
from glm4v_magic.session import Status
from glm4v_magic.widgets.watched import WatchedPicture

__all__ = ["MemoryWidget"]


class MemoryWidget(WatchedPicture):
    """The picture of memory."""

    def __init__(self, monitor: Monitor) -> None:
        self._picture = monitor.picture()
        self._html = widgets.HTML(memory_html(self._picture))
        super().__init__(monitor, [self._html], lambda: memory_bundle(self._picture))

    def refresh(self, picture: MemoryPicture, status: Status) -> None:
        """Show another picture; see `monitor.View`."""
        changed, self._picture = picture != self._picture, picture
        if changed and self.live.is_open:
            self._html.value = memory_html(picture)
