"""``%glm4v devices`` for a loaded model: a view that follows it.

While an answer is generated, the running parts are marked; see `dispatch.activity`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import ipywidgets as widgets

from glm4v_magic.dispatch.activity import Activity
from glm4v_magic.notebook.monitor import CLOCK, Monitor
from glm4v_magic.notebook.render.memory import MemoryView
from glm4v_magic.notebook.render.plans.activity import activity_html
from glm4v_magic.notebook.render.plans.device_map import device_map_bundle, device_map_html
from glm4v_magic.notebook.widgets.watched import WatchedView
from glm4v_magic.planning.occupancy import Occupancy
from glm4v_magic.session.session import Status

__all__ = ["LoadedWidget"]


class LoadedWidget(WatchedView):
    """The view of the device map in force.

    Args:
        monitor: monitor that updates the view.
        draw: makes the view from a session's status.
        status: current status.
    """

    def __init__(
        self, monitor: Monitor, draw: Callable[[Status], Occupancy], status: Status
    ) -> None:
        self._draw = draw
        self._view = draw(status)
        self._at = time.strftime(CLOCK)
        self._html = widgets.HTML(device_map_html(self._view))
        # A widget of its own: drawing the bars anew would take the keyboard's focus away.
        self._activity = widgets.HTML()
        super().__init__(
            monitor,
            [self._activity, self._html],
            lambda: device_map_bundle(self._view, self._at),
        )
        self._mark(Activity())

    def refresh(self, view: MemoryView, status: Status) -> None:
        """Draw the map of `status` and mark the running parts; see `monitor.View`."""
        drawn = self._draw(status)
        changed, self._view = drawn != self._view, drawn
        if not self.live.is_open:
            return
        if changed:
            self._at = time.strftime(CLOCK)
            self._html.value = device_map_html(drawn)
        self._mark(view.activity, {row.now.device: row.now.utilization for row in view.rows})

    def hidden(self) -> None:
        """Stop updating, and remove marks, which would be saved with the notebook."""
        super().hidden()
        self._mark(Activity())

    def _mark(
        self, activity: Activity, utilization: Mapping[str, float | None] | None = None
    ) -> None:
        self._activity.value = activity_html(self._view, activity, self.live.selector, utilization)
