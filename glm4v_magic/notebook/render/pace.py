"""Rate of updates of an output, and speed of a running call."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["LEAST_SECONDS", "LONGEST_SECONDS", "MOST_OF_THE_TIME", "UPDATE_SECONDS", "Pace", "Rate"]

UPDATE_SECONDS = 0.1
"""Ten updates a second: more looks the same, and each counts against the 1,000 messages a second
that jupyter_server lets through."""

MOST_OF_THE_TIME = 0.01
"""Fraction of the time that updates may take. In a kernel, a short text takes about 0.6 ms;
30,000 characters take ten times that, and are updated less often."""

LONGEST_SECONDS = 1.0
"""Longest time between updates, however costly they are."""


class Pace:
    """Tells when the next update is due: the first at once, then at most every `seconds`.

    A caller that reports each update as `done` gets costly ones less often.
    """

    def __init__(
        self, seconds: float = UPDATE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._wait = seconds
        self._clock = clock
        self._last: float | None = None
        self._cost = 0.0

    def due(self) -> bool:
        """Return whether an update is due now; if so, count it as made."""
        now = self._clock()
        if self._last is not None and now - self._last < self._wait:
            return False
        self._last = now
        return True

    def done(self) -> None:
        """Record the time since the update was due as its cost."""
        if self._last is None:
            return
        before, self._cost = self._cost, self._clock() - self._last
        # The smaller of the latest two: a single slow update has other causes.
        wait = min(before, self._cost) / MOST_OF_THE_TIME
        self._wait = max(self._seconds, min(wait, LONGEST_SECONDS))


LEAST_SECONDS = 0.05
"""Shortest time that a rate is told of."""


class Rate:
    """Amount per second since the first amount above zero: what comes before it is preparation."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, int] | None = None

    def so_far(self, amount: int) -> float | None:
        """Return the rate up to `amount`; ``None`` if it is not known yet."""
        now = self._clock()
        if self._first is None:
            self._first = (now, amount) if amount else None
            return None
        then, before = self._first
        is_known = now - then >= LEAST_SECONDS and amount > before
        return (amount - before) / (now - then) if is_known else None
