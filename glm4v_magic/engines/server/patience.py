"""How long a busy server is waited for, and how many requests it is sent at once."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["PATIENCE", "Allowance", "Patience", "retry_after"]

PATIENCE = 60.0
"""Longest time in seconds for which a request to a busy server is sent again."""

_FIRST, _LONGEST = 0.1, 8.0
_LESS = 0.75
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]*)?")


class Patience:
    """Waiting times of one request: each about twice the previous one, or more if the server says.

    Attributes:
        count: number of waits so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._until = time.monotonic() + PATIENCE
        self._next = _FIRST

    def wait(self, told: float | None) -> float | None:
        """Return the seconds to wait before the next attempt; ``None`` to give up.

        Args:
            told: seconds that the server asks to wait; ``None`` if it does not say.
        """
        seconds = self._next * random.uniform(0.75, 1.25)  # noqa: S311
        seconds = max(seconds, told or 0.0)  # 0, or a date of another clock, is no pause
        self.count += 1
        self._next = min(2 * self._next, _LONGEST)
        return seconds if time.monotonic() + seconds < self._until else None


class Allowance:
    """Number of requests that may be in flight: fewer after a refusal, one more for each answer.

    Args:
        most: maximum number.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._now = float(most)
        self._cut = 0.0

    @property
    def count(self) -> int:
        """Number of requests that may be in flight now."""
        return max(1, int(self._now))

    def refused(self, sent: float) -> None:
        """Allow fewer; refusals of requests that were sent before the last cut count as one.

        Args:
            sent: when the request was sent, on the clock of `time.monotonic`.
        """
        if sent > self._cut:
            self._cut = time.monotonic()
            self._now = max(1.0, self._now * _LESS)

    def answered(self) -> None:
        """Allow one more, up to the maximum."""
        self._now = min(float(self.most), self._now + 1)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which a server asks to be asked again; ``None`` without any.

    Args:
        headers: ``Retry-After`` is a number or a date; ``retry-after-ms`` is OpenAI's.
    """
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        if _NUMBER.fullmatch(number := headers.get(name, "").strip()):
            return float(number) / unit
    header = headers.get("retry-after", "").strip()
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max((date - datetime.now(UTC)).total_seconds(), 0.0)
