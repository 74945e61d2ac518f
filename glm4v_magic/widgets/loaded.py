"""``%glm4v devices`` for a model that is loaded: the picture follows it."""

from __future__ import annotations

import time
from collections.abc import Callable

import ipywidgets as widgets

from glm4v_magic.display.device_map import device_map_bundle, device_map_html
from glm4v_magic.display.memory import MemoryPicture
from glm4v_magic.monitor import CLOCK, Monitor
from glm4v_magic.placement.occupancy import Occupancy
from glm4v_magic.session import Status
from glm4v_magic.widgets.live import Live

__all__ = ["LoadedWidget"]


class LoadedWidget:
    """The picture of the device map in force.

    Args:
        monitor: tells when to look.
        draw: makes the picture from a session's status.
        status: now.
    """

    def __init__(
        self, monitor: Monitor, draw: Callable[[Status], Occupancy], status: Status
    ) -> None:
        self._monitor = monitor
        self._draw = draw
        self._picture = draw(status)
        self._at = time.strftime(CLOCK)
        self._html = widgets.HTML(device_map_html(self._picture))
        self.live = Live(
            [self._html],
            lambda: device_map_bundle(self._picture, self._at),
            on_hidden=lambda: monitor.forget(self),
            on_shown=lambda: monitor.watch(self),
        )

    def show(self) -> None:
        """Show it as an output of the running cell, and watch from now on."""
        self.live.show()
        self._monitor.watch(self)

    def refresh(self, picture: MemoryPicture, status: Status) -> None:
        """Draw the map of `status`; see `monitor.View`."""
        drawn = self._draw(status)
        changed, self._picture = drawn != self._picture, drawn
        if changed and self.live.is_open:
            self._at = time.strftime(CLOCK)
            self._html.value = device_map_html(drawn)

    def cell_ended(self) -> None:
        """Bring the static picture up to date, the answer of this cell included."""
        self._monitor.catch_up()
        self.live.refresh_twin()

    def close(self) -> None:
        """Leave the static picture alone."""
        self.live.close()
