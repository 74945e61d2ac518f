"""The session in a thread of its own, which answers all requests in one running batch.

The thread takes event after event of `Session.stream_requests`, and puts each into the queue of its
turn. Requests enter the batch between two steps, and leave it when their client does. The thread
waits for no client, so a slow reader delays nobody else.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from glm4v_magic.core.conversation import Request
from glm4v_magic.core.errors import BusyError, EngineError, OutOfMemoryError
from glm4v_magic.core.events import Event, Failed, Finished, Reclassified, Text, Thinking
from glm4v_magic.session.session import Session

__all__ = ["MOST_REQUESTS", "OfRequest", "Turn", "Worker"]

MOST_REQUESTS = 512
"""Most requests that are open or wait; each may hold many MiB."""

_AT_ONCE = 16

OfRequest: TypeAlias = Thinking | Text | Reclassified | Finished
"""Event of a request that its client is told."""

_News: TypeAlias = OfRequest | Exception
"""Item of a turn's queue: an event, or the error that ends the turn."""


class Turn:
    """Requests of one client, from their arrival until they are answered or the client is gone.

    Args:
        requests: requests for the session; events have their indices.
        pieces: whether the client gets the answers piece by piece.
    """

    def __init__(self, requests: Sequence[Request], *, pieces: bool = True) -> None:
        self.requests = requests
        self.pieces = pieces
        self._is_given_up = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[_News] = asyncio.Queue()

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits for the answers any more."""
        return self._is_given_up.is_set()

    async def events(self, silence: float) -> AsyncIterator[OfRequest | None]:
        """Yield the events of the requests, and ``None`` after every `silence` seconds without one.

        Raises:
            Exception: the error of the engine or of one of the requests, or that given to `end`.
        """
        unanswered = len(self.requests)
        while unanswered:
            try:
                news = await asyncio.wait_for(self._news.get(), silence)
            except TimeoutError:
                yield None
                continue
            if isinstance(news, Exception):
                raise news
            yield news
            unanswered -= isinstance(news, Finished)

    def end(self, error: Exception | None = None) -> None:
        """Take the requests out of the batch before its next step.

        May be called from any thread, and more than once.

        Args:
            error: raised where `events` is read.
        """
        self._is_given_up.set()
        if error is not None:
            self.tell(error)

    def tell(self, news: _News) -> None:
        """Put an event or an error into the queue, from the session's thread."""
        try:
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)
        except RuntimeError:  # the event loop is closed: the server has ended
            self._is_given_up.set()


@dataclass(slots=True)
class _Asked:
    """A request that waits or is answered.

    Attributes:
        turn: its turn.
        index: its index there.
        told: whether its client has got a piece of the answer.
    """

    turn: Turn
    index: int
    told: bool = False

    @property
    def request(self) -> Request:
        return self.turn.requests[self.index]


class _Open(dict[int, _Asked]):
    """Open requests of a stream by number; those whose turn was given up are withdrawn."""

    @property
    def withdrawn(self) -> _Withdrawn:
        return _Withdrawn(self)

    def forget_withdrawn(self) -> None:
        for number in [each for each, asked in self.items() if asked.turn.is_given_up]:
            del self[number]


class _Withdrawn:
    """Numbers of the requests that are given up."""

    def __init__(self, rows: _Open) -> None:
        self._rows = rows

    def __contains__(self, number: object) -> bool:
        asked = self._rows.get(number)  # type: ignore[call-overload]
        return asked is None or asked.turn.is_given_up


class Worker:
    """Answers requests together, in the order in which they came.

    Args:
        session: session that answers; busy while a request is open.
        at_once: maximum number of requests in the batch; by default 16, or 1 if the model is best
            asked one by one.

    Attributes:
        is_lost: whether all replicas of the model are lost, so that it answers nothing any more.
    """

    def __init__(self, session: Session, at_once: int | None = None) -> None:
        self._session = session
        best = _AT_ONCE if session.engine is None else session.engine.batch_size
        self.at_once = at_once or (best if best == 1 else max(best, _AT_ONCE))
        self._fits = self.at_once
        self._turns: set[Turn] = set()
        self._arrived = threading.Condition()
        self._waiting: deque[_Asked] = deque()
        self._open = _Open()
        self._is_stopped = self._is_closed = False
        self.is_lost = False
        # Always the same thread: torch keeps its modes by thread.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        """Number of requests in the batch."""
        return len(self._open)

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait for a place in the batch."""
        return len(self._waiting)

    def begin(self, requests: Sequence[Request], *, pieces: bool = True) -> Turn:
        """Queue the requests of a client; see `Turn`.

        Raises:
            BusyError: if too many requests are waiting.
            EngineError: if the server is being stopped.
        """
        if self._is_stopped:
            raise _stopped()
        asked = sum(len(turn.requests) for turn in self._turns)
        if asked + len(requests) > MOST_REQUESTS:
            raise BusyError(f"{asked} requests wait already.", "Ask again later.")
        turn = Turn(requests, pieces=pieces)
        self._turns.add(turn)
        with self._arrived:
            self._waiting.extend(_Asked(turn, index) for index in range(len(requests)))
            self._arrived.notify()
        return turn

    def leave(self, turn: Turn) -> None:
        """Remove a turn; its requests leave the batch before its next step."""
        self._turns.discard(turn)
        turn.end()

    def stop(self) -> None:
        """End all turns before the next step, each with an error for its client."""
        self._is_stopped = True
        for turn in list(self._turns):
            turn.end(_stopped())

    def close(self) -> None:
        """End the thread once it has answered what is open."""
        with self._arrived:
            self._is_closed = True
            self._arrived.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._is_wanted():
            self._answer()

    def _is_wanted(self) -> bool:
        """Wait for a request; returns whether there is one."""
        with self._arrived:
            if not self._waiting:
                self._fits = self.at_once
            self._arrived.wait_for(lambda: self._waiting or self._is_closed)
            return bool(self._waiting)

    def _answer(self) -> None:
        """Answer requests until none is open or waiting, or the model fails."""
        self._open = rows = _Open()
        requests = self._requests(rows)
        try:
            with self._session.stream_requests(requests, self._fits, rows.withdrawn) as events:
                for event in events:
                    _deliver(event, rows)
        except OutOfMemoryError as error:
            self._ask_fewer(error, rows)
        except Exception as error:
            # One that fails before it takes a request would do so forever.
            failed = [*rows.values()] or [each for each in (self._next(),) if each is not None]
            for each in failed:
                each.turn.end(error)
            self.is_lost = _has_lost_all(self._session)
        finally:
            rows.clear()

    def _requests(self, rows: _Open) -> Iterator[Request | None]:
        """Yield the requests that wait while others are open; ``None`` where there is none."""
        number = 0
        while True:
            rows.forget_withdrawn()
            asked = self._next() if len(rows) < self._fits else None
            if asked is None and not rows:
                return
            if asked is not None:
                rows[number] = asked
                number += 1
            yield None if asked is None else asked.request

    def _next(self) -> _Asked | None:
        with self._arrived:
            while self._waiting:
                asked = self._waiting.popleft()
                if not asked.turn.is_given_up:
                    return asked
        return None

    def _ask_fewer(self, error: OutOfMemoryError, rows: _Open) -> None:
        """After memory ran out: ask again those whose client has got nothing, fewer at once."""
        together = [number for number in error.rows if number in rows] or [*rows]
        if len(together) > 1:
            self._fits = len(together) // 2
        again = []
        for number, each in rows.items():
            if each.told or together == [number]:
                each.turn.end(error)
            else:
                again.append(each)
        with self._arrived:
            self._waiting.extendleft(reversed(again))


def _deliver(event: Event, rows: _Open) -> None:
    if not isinstance(event, OfRequest | Failed):
        return  # of the load, for nobody in particular
    asked = rows.get(event.row)
    if asked is None:
        return  # it has been given up
    turn = asked.turn
    if isinstance(event, Failed):
        turn.end(event.error)
    elif turn.pieces or isinstance(event, Finished):
        asked.told = True
        turn.tell(replace(event, row=asked.index))
    if isinstance(event, Failed | Finished):
        del rows[event.row]


def _has_lost_all(session: Session) -> bool:
    """Tell whether a session had replicas and all of them are lost."""
    info = session.status().info
    replicas = () if info is None else info.replicas
    return bool(replicas) and all(each.lost for each in replicas)


def _stopped() -> EngineError:
    return EngineError("The server was stopped before the answer was complete.")
