"""Says now and then that nothing has come, so that whoever waits can tell it, and stop."""

from __future__ import annotations

import time
from collections.abc import Iterator

from glm4v_magic.core.events import Waiting

__all__ = ["SECONDS", "Silence"]

SECONDS = 0.25
"""Seconds of silence after which that is said, and again and again."""


class Silence:
    """Time since something came from elsewhere.

    Args:
        on: as in `Waiting`.
    """

    def __init__(self, on: str) -> None:
        self._on = on
        self.ends()

    def ends(self) -> None:
        """Begin anew: something has come, and its reader has taken it."""
        self._since = self._said = time.monotonic()

    def said(self) -> Iterator[Waiting]:
        """Yield that nothing has come, if it is time to say so."""
        now = time.monotonic()
        if now - self._said >= SECONDS:
            yield Waiting(self._on, now - self._since)
            self._said = time.monotonic()
