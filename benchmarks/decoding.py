"""Time of the decode steps within a call of `generate`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from loading import synchronise

__all__ = ["DecodeClock"]


class DecodeClock:
    """Measures the decode steps after the first, whoever calls the model.

    A hook notes when each step looks up the embedding of its token, which costs all sides the same.
    The time from the first of them to the last covers all that a step needs: the forward, choosing
    the token, and what is done with it. It does not cover the prefill and what surrounds the call.

    Args:
        model: model whose embedding is called once a step.
        clock: returns seconds from an arbitrary start.
    """

    def __init__(self, model: Any, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._begun: list[float] = []
        model.get_input_embeddings().register_forward_pre_hook(self._note)

    def _note(self, _: Any, arguments: tuple[Any, ...]) -> None:
        if arguments[0].shape[-1] == 1:  # the prompt has more
            self._begun.append(self.clock())

    def time(self, call: Callable[[], object]) -> tuple[float, float]:
        """Make a call; return the seconds of all of it, and of its steps after the first."""
        self._begun.clear()
        synchronise()
        start = self.clock()
        call()
        synchronise()
        return self.clock() - start, self._begun[-1] - self._begun[0]

    @property
    def steps(self) -> int:
        """Return the number of steps in the second figure of the latest call."""
        return len(self._begun) - 1
