"""``%glm4v memory`` as a widget."""

from __future__ import annotations

import ipywidgets as widgets

from glm4v_magic.display.memory import MemoryPicture, memory_bundle, memory_html
from glm4v_magic.monitor import Monitor
from glm4v_magic.session import Status
from glm4v_magic.widgets.live import Live

__all__ = ["MemoryWidget"]


class MemoryWidget:
    """The picture of memory, kept up to date by the monitor."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._picture = monitor.picture()
        self._html = widgets.HTML(memory_html(self._picture))
        self.live = Live(
            [self._html],
            lambda: memory_bundle(self._picture),
            on_hidden=lambda: monitor.forget(self),
            on_shown=lambda: monitor.watch(self),
        )

    def show(self) -> None:
        """Show it as an output of the running cell, and watch from now on."""
        self.live.show()
        self._monitor.watch(self)

    def refresh(self, picture: MemoryPicture, status: Status) -> None:
        """Show another picture; see `monitor.View`."""
        changed, self._picture = picture != self._picture, picture
        if changed and self.live.is_open:
            self._html.value = memory_html(picture)

    def cell_ended(self) -> None:
        """Bring the static picture up to date, the answer of this cell included."""
        self._monitor.catch_up()
        self.live.refresh_twin()

    def close(self) -> None:
        """Leave the static picture alone."""
        self.live.close()
