"""What the views that the monitor keeps up to date have in common."""

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
    """A live view, told of news by the monitor for as long as a page shows it.

    Args:
        monitor: tells the news.
        children: what the widget shows, from top to bottom.
        bundle: makes the static view.
    """

    def __init__(
        self, monitor: Monitor, children: list[Any], bundle: Callable[[], MimeBundle]
    ) -> None:
        self._monitor = monitor
        self._is_watched = False
        self.live = Live(children, bundle, on_hidden=self.hidden, on_shown=self.shown)

    def show(self) -> None:
        """Show it as an output of the running cell, and watch from now on."""
        self.live.show()
        self.shown()

    def shown(self) -> None:
        """Be told of news; a front end has it on a page again."""
        self._is_watched = True
        self._monitor.watch(self)

    def hidden(self) -> None:
        """Be told no more: no page shows it."""
        self._is_watched = False
        self._monitor.forget(self)

    @abstractmethod
    def refresh(self, view: MemoryView, status: Status) -> None:
        """Show what is new; see `monitor.View`."""

    def cell_ended(self) -> None:
        """Bring the static view up to date, the answer of this cell included."""
        if self._is_watched:
            self._monitor.catch_up()
        self.live.refresh_twin()

    def close(self) -> None:
        """Leave the static view alone."""
        self.live.close()
