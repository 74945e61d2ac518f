"""Base of the views that the monitor updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.widgets.live import Live

if TYPE_CHECKING:
    from glm4v_magic.notebook.monitor import Monitor
    from glm4v_magic.notebook.render.memory import MemoryView
    from glm4v_magic.session.session import Status

__all__ = ["WatchedView"]


class WatchedView(ABC):
    """A live view, updated by the monitor for as long as a page shows it.

    Args:
        monitor: monitor that updates the view.
        children: widgets that it shows, from top to bottom.
        bundle: makes the static view.
    """

    def __init__(
        self, monitor: Monitor, children: list[Any], bundle: Callable[[], MimeBundle]
    ) -> None:
        self._monitor = monitor
        self._is_watched = False
        self.live = Live(children, bundle, on_hidden=self.hidden, on_shown=self.shown)

    def show(self) -> None:
        """Show the view as an output of the running cell and start updating it."""
        self.live.show()
        self.shown()

    def shown(self) -> None:
        """Resume updates: a page shows the view again."""
        self._is_watched = True
        self._monitor.watch(self)

    def hidden(self) -> None:
        """Stop updates: no page shows the view."""
        self._is_watched = False
        self._monitor.forget(self)

    @abstractmethod
    def refresh(self, view: MemoryView, status: Status) -> None:
        """Show a new reading; see `monitor.View`."""

    def cell_ended(self) -> None:
        """Update the static view, the answer of this cell included."""
        if self._is_watched:
            self._monitor.catch_up()
        self.live.refresh_twin()

    def close(self) -> None:
        """Close the widget; the static view stays."""
        self.live.close()
