"""Rows of a call, from when they are taken from the caller, as there is room, to their end.

A few are taken ahead, so that rows that begin alike become neighbours.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator

import torch

from glm4v_magic.core.conversation import Request
from glm4v_magic.core.errors import InputError
from glm4v_magic.core.events import Failed
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
        requests: requests of the call, taken one by one; ``None`` if the next has not arrived yet.
        at_once: maximum number of open rows.
        begin: makes the row of a request with its number.
        device: device that rows sample on.
        withdrawn: numbers of requests that are given up; the caller may add to it.

    Attributes:
        left: numbers of rows that are not decoded any further.
        failed: requests that cannot be answered, not yet told.
        rows: rows that have been taken and have not ended, by number.
        last: the row that ended last; ``None`` before the first.
    """

    def __init__(
        self,
        requests: Iterable[Request | None],
        at_once: int,
        begin: Callable[[int, Request], Row],
        device: str | torch.device,
        withdrawn: Container[int] = (),
    ) -> None:
        self.rows: dict[int, Row] = {}
        self.left: set[int] = set()
        self.failed: list[Failed] = []
        self.last: Row | None = None
        self._taken = 0
        self._requests: Iterator[Request | None] | None = iter(requests)
        self._withdrawn = withdrawn
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
        """Take requests from the caller if a row could enter and none is waiting.

        Rows that the caller has withdrawn are dropped first.
        """
        self.drop([number for number in self.rows if number in self._withdrawn])
        if self._waiting or self._to_choose or len(self.open_rows) >= self._at_once:
            return
        taken: list[Row] = []
        pixels = 0
        while len(taken) < _TIMES_AHEAD * self._at_once:
            if len(taken) >= self._at_once and pixels > _PIXEL_BYTES_AHEAD:
                break
            request = self._next()
            if request is None:
                break
            row = self._begun(request)
            if row is not None:
                taken.append(row)
                pixels += row.pixel_bytes
        order = arranged([row.prompt for row in taken], [row.limit for row in taken])
        for each in order:
            row = taken[each.index]
            queue = self._to_choose if row.texts else self._waiting
            queue.append((row, each.shared))

    def drop(self, numbers: Collection[int]) -> None:
        """Forget rows that are not answered any further."""
        if not numbers:
            return
        self.left |= {*numbers}
        for number in numbers:
            del self.rows[number]
        self._waiting = deque(each for each in self._waiting if each[0].number not in numbers)
        self._to_choose = deque(each for each in self._to_choose if each[0].number not in numbers)

    def _next(self) -> Request | None:
        """Return the next request; ``None`` if there is none now."""
        if self._requests is None:
            return None
        try:
            return next(self._requests)
        except StopIteration:
            self._requests = None
            return None

    def _begun(self, request: Request) -> Row | None:
        """Return the row of a request; ``None`` if it cannot be answered."""
        number = self._taken
        self._taken += 1
        try:
            row = self._begin(number, request)
        except InputError as error:
            self.failed.append(Failed(error, number))
            return None
        self.rows[number] = row
        return row

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
        if row.transcript.ending is None:  # at a stop text, of which the decode loop knows nothing
            self.left.add(row.number)
        self.last = self.rows.pop(row.number)
