"""``%glm4v devices`` for a model that is loaded: the picture follows it.

While an answer is written, what works is marked in it; see `placement.activity`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import ipywidgets as widgets

from glm4v_magic.display.activity import activity_html
from glm4v_magic.display.device_map import device_map_bundle, device_map_html
from glm4v_magic.display.memory import MemoryPicture
from glm4v_magic.monitor import CLOCK, Monitor
from glm4v_magic.placement.activity import Activity
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
        # A widget of its own: drawing the bars anew would take the keyboard's focus away.
        self._activity = widgets.HTML()
        self.live = Live(
            [self._activity, self._html],
            lambda: device_map_bundle(self._picture, self._at),
            on_hidden=self._hidden,
            on_shown=lambda: monitor.watch(self),
        )
        self._mark(Activity())

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
        if self.live.is_open:
            rows = [row.now for row in picture.rows]
            self._mark(
                picture.activity,
                {now.device: now.utilization for now in rows if now.utilization is not None},
            )

    def cell_ended(self) -> None:
        """Bring the static picture up to date, the answer of this cell included."""
        self._monitor.catch_up()
        self.live.refresh_twin()

    def close(self) -> None:
        """Leave the static picture alone."""
        self.live.close()

    def _hidden(self) -> None:
        self._monitor.forget(self)
        self._mark(Activity())  # or what is saved now would say so for ever

    def _mark(self, activity: Activity, utilization: Mapping[str, float] | None = None) -> None:
        self._activity.value = activity_html(
            self._picture, activity, self.live.selector, utilization
        )
