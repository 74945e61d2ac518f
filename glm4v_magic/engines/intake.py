"""Rows of a call: taken from the caller when there is room for them, until they have ended.

A few are taken ahead, so that rows that begin alike become neighbours.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch

from glm4v_magic.core.conversation import Request
from glm4v_magic.engines.arranging import arranged
from glm4v_magic.engines.decoding import Entrant
from glm4v_magic.engines.row import Row

__all__ = ["Intake"]

_TIMES_AHEAD = 4
"""Number of rows that are taken ahead, as a multiple of the rows that are open at once."""

_PIXEL_BYTES_AHEAD = 2**28
"""Bytes of these rows' images beyond which only rows that may be open at once are taken."""


class Intake:
    """Rows of a call; see `decoding.Waiting`.

    Args:
        requests: requests of the call, taken one by one.
        at_once: maximum number of open rows.
        begin: makes the row of a request with its number.
        device: device that rows sample on.

    Attributes:
        rows: rows that have been taken and have not ended, by number.
        last: the row that ended last; ``None`` before the first.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        at_once: int,
        begin: Callable[[int, Request], Row],
        device: str | torch.device,
    ) -> None:
        self.rows: dict[int, Row] = {}
        self.last: Row | None = None
        self._taken = 0
        self._requests: Iterator[Request] | None = iter(requests)
        self._at_once, self._begin, self._device = at_once, begin, device
        self._waiting: deque[tuple[Row, int]] = deque()
        self._to_choose: deque[tuple[Row, int]] = deque()
        self._since: float | None = time.perf_counter()

    @property
    def is_empty(self) -> bool:
        """Whether no row is waiting, and none will come."""
        return not self._waiting and not self._to_choose and self._requests is None

    @property
    def open_rows(self) -> list[Row]:
        """Rows that have entered and have not ended."""
        return [row for row in self.rows.values() if row.since is not None]

    def look_ahead(self) -> None:
        """Take requests from the caller if a row could enter and none is waiting."""
        if self._waiting or self._to_choose or len(self.open_rows) >= self._at_once:
            return
        taken: list[Row] = []
        pixels = 0
        while self._requests is not None and len(taken) < _TIMES_AHEAD * self._at_once:
            if len(taken) >= self._at_once and pixels > _PIXEL_BYTES_AHEAD:
                break
            request = next(self._requests, None)
            if request is None:
                self._requests = None
                break
            row = self._begin(self._taken, request)
            self.rows[row.number] = row
            self._taken += 1
            taken.append(row)
            pixels += row.pixel_bytes
        order = arranged([row.prompt for row in taken], [row.limit for row in taken])
        for each in order:
            row = taken[each.index]
            queue = self._to_choose if row.texts else self._waiting
            queue.append((row, each.shared))

    def take(self, most: int) -> list[Entrant]:
        """Return at most `most` of the next rows that are to be decoded."""
        entrants: list[Entrant] = []
        now = self._now() if self._waiting and most > 0 else 0.0
        while self._waiting and len(entrants) < most:
            row, shared = self._waiting.popleft()
            row.since = now
            entrants.append(Entrant(row.number, row.prompt, row.terms(self._device), shared))
        return entrants

    def take_choices(self) -> list[tuple[Row, int]]:
        """Return the next rows that are limited to choices, at most as many as may be open.

        Each with the length of the prefix that it has in common with others.
        """
        taken = [self._to_choose.popleft() for _ in range(min(self._at_once, len(self._to_choose)))]
        for row, _ in taken:
            if row.since is None:
                row.since = self._now()
        return taken

    def choose(self, row: Row) -> None:
        """Let a row that has thought wait for one of its choices."""
        self._to_choose.append((row, 0))

    def _now(self) -> float:
        # The first rows wait from the beginning of the call.
        now, self._since = self._since or time.perf_counter(), None
        return now

    def end(self, row: Row) -> None:
        """Forget a row that has ended."""
        self.last = self.rows.pop(row.number)
