"""The decoding part of a call of `generate`, timed from within."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["DecodeClock"]


class DecodeClock:
    """Tells how long the steps after the first took, on whichever side a model is called.

    A hook notes when each forward begins, which costs all sides the same. From the second to the
    last, all that a step needs lies between two beginnings: the forward, choosing the token, and
    what is done with it. Prefill and what stands around the call do not.

    Args:
        model: a torch module that `generate` calls once a step.
        clock: seconds from an arbitrary moment.
    """

    def __init__(self, model: Any, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._begun: list[float] = []
        model.register_forward_pre_hook(lambda *_: self._begun.append(clock()))

    def time(self, call: Callable[[], object]) -> tuple[float, float]:
        """Make a call; return the seconds it took, and those of its steps after the first."""
        self._begun.clear()
        start = self.clock()
        call()
        return self.clock() - start, self._begun[-1] - self._begun[1]

    @property
    def steps(self) -> int:
        """How many steps the second figure of the latest call holds."""
        return len(self._begun) - 2
