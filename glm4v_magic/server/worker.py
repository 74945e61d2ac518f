"""The engine in a thread of its own, which answers one request at a time.

The thread takes step after step of the engine's stream, and puts the events into the queue of the
request. It waits for no client, so a slow reader delays nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from glm4v_magic.core.conversation import Request
from glm4v_magic.core.errors import BusyError, EngineError
from glm4v_magic.core.events import EngineEvent
from glm4v_magic.engines import Engine

__all__ = ["Turn", "Worker"]

_MOST_TURNS = 256  # each may hold a request of many MiB

_News: TypeAlias = EngineEvent | Exception | None
"""Item of a turn's queue: an event, an error, or ``None`` at the end."""


class Turn:
    """A request from its arrival until its answer is complete or its client is gone.

    Args:
        request: request for the engine.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._is_given_up = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[_News] = asyncio.Queue()

    async def events(self, silence: float) -> AsyncIterator[EngineEvent | None]:
        """Yield the engine's events, and ``None`` after every `silence` seconds without one.

        Raises:
            Exception: the error that the engine raised, or that was given to `end`.
        """
        while True:
            try:
                news = await asyncio.wait_for(self._news.get(), silence)
            except TimeoutError:
                yield None
                continue
            if news is None:
                return
            if isinstance(news, Exception):
                raise news
            yield news

    def end(self, error: Exception | None = None) -> None:
        """End the generation before its next step, and raise `error` where `events` is read.

        May be called from any thread, and more than once.
        """
        self._is_given_up.set()
        self._tell(error)

    def run(self, engine: Engine) -> None:
        """Answer the request, in the engine's thread."""
        if self._is_given_up.is_set():
            return
        try:
            with contextlib.closing(engine.stream([self._request])) as events:
                for event in events:
                    self._tell(event)
                    if self._is_given_up.is_set():
                        return
        except Exception as error:
            self._tell(error)
        else:
            self._tell(None)

    def _tell(self, news: _News) -> None:
        try:
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)
        except RuntimeError:  # the event loop is closed: the server has ended
            self._is_given_up.set()


class Worker:
    """Answers requests one after the other, in the order in which they came.

    Args:
        engine: engine that answers.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Always the same thread: torch keeps its modes by thread.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._turns: set[Turn] = set()
        self._is_stopped = False

    def begin(self, request: Request) -> Turn:
        """Queue a request.

        Raises:
            BusyError: if too many requests are waiting.
            EngineError: if the server is being stopped.
        """
        if self._is_stopped:
            raise _stopped()
        if len(self._turns) >= _MOST_TURNS:
            raise BusyError(f"{_MOST_TURNS} requests wait already.", "Ask again later.")
        turn = Turn(request)
        self._turns.add(turn)
        self._thread.submit(turn.run, self._engine)
        return turn

    def leave(self, turn: Turn) -> None:
        """Remove a turn; if it is running, it ends before its next step."""
        self._turns.discard(turn)
        turn.end()

    def stop(self) -> None:
        """End all turns before their next step, each with an error for its client."""
        self._is_stopped = True
        for turn in list(self._turns):
            turn.end(_stopped())

    def close(self) -> None:
        """Wait until the thread has ended."""
        self._thread.shutdown(cancel_futures=True)


def _stopped() -> EngineError:
    return EngineError("The server was stopped before the answer was complete.")
