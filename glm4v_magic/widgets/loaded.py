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
from glm4v_magic.widgets.watched import WatchedPicture

__all__ = ["LoadedWidget"]


class LoadedWidget(WatchedPicture):
    """The picture of the device map in force.

    Args:
        monitor: tells when to look.
        draw: makes the picture from a session's status.
        status: now.
    """

    def __init__(
        self, monitor: Monitor, draw: Callable[[Status], Occupancy], status: Status
    ) -> None:
        self._draw = draw
        self._picture = draw(status)
        self._at = time.strftime(CLOCK)
        self._html = widgets.HTML(device_map_html(self._picture))
        # A widget of its own: drawing the bars anew would take the keyboard's focus away.
        self._activity = widgets.HTML()
        super().__init__(
            monitor,
            [self._activity, self._html],
            lambda: device_map_bundle(self._picture, self._at),
        )
        self._mark(Activity())

    def refresh(self, picture: MemoryPicture, status: Status) -> None:
        """Draw the map of `status`, and mark in it what works; see `monitor.View`."""
        drawn = self._draw(status)
        changed, self._picture = drawn != self._picture, drawn
        if not self.live.is_open:
            return
        if changed:
            self._at = time.strftime(CLOCK)
            self._html.value = device_map_html(drawn)
        self._mark(picture.activity, {row.now.device: row.now.utilization for row in picture.rows})

    def hidden(self) -> None:
        """Be told no more, and leave nothing marked: it would be saved with the notebook."""
        super().hidden()
        self._mark(Activity())

    def _mark(
        self, activity: Activity, utilization: Mapping[str, float | None] | None = None
    ) -> None:
        self._activity.value = activity_html(
            self._picture, activity, self.live.selector, utilization
        )
