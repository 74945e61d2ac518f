"""How often an output may change while a cell runs, and how fast it gets on."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["UPDATE_SECONDS", "Pace", "Rate"]

UPDATE_SECONDS = 0.1
"""Ten updates a second: more looks the same, and each costs the kernel about 2 ms and counts
against the 1,000 messages a second that jupyter_server lets through."""


class Pace:
    """Says when the next update is due: at once for the first, then at most every `seconds`."""

    def __init__(
        self, seconds: float = UPDATE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._last: float | None = None

    def due(self) -> bool:
        """Return whether an update is due now; if so, count it as made."""
        now = self._clock()
        if self._last is not None and now - self._last < self._seconds:
            return False
        self._last = now
        return True


class Rate:
    """Amount per second since the first amount above zero: what comes before it is preparation."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, int] | None = None

    def so_far(self, amount: int) -> float | None:
        """Return the rate up to `amount`; ``None`` while there is nothing to tell from."""
        now = self._clock()
        if self._first is None:
            self._first = (now, amount) if amount else None
            return None
        then, before = self._first
        return (amount - before) / (now - then) if now > then and amount > before else None
