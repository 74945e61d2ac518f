"""Requests to a server that are answered at the same time."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Future
from contextlib import aclosing, suppress
from typing import TypeAlias

from glm4v_magic.core.conversation import Generation, Request
from glm4v_magic.core.errors import EngineError, Glm4vError
from glm4v_magic.core.events import EngineEvent, Failed, Finished
from glm4v_magic.engines.server.background import Background
from glm4v_magic.engines.server.dialogue import DONE, Dialogue
from glm4v_magic.engines.server.patience import Allowance
from glm4v_magic.engines.server.transcript import Transcript
from glm4v_magic.engines.silence import Silence

__all__ = ["Flight"]

_SOON = 0.05
"""Seconds between two looks at what the caller may have changed, an interrupt included: not every
interrupt wakes a thread that waits for another.
"""

_MOST_NEWS = 4096
"""Events that nobody has taken yet beyond which a server is not read any further."""

_News: TypeAlias = tuple[int, str | Exception | None]
"""Row, and the data of an event, an error, or ``None`` at the end."""


class Flight:
    """Asks a server many requests at once.

    Only the caller's thread makes and reads transcripts, so that they hold what was told, and no
    more, wherever it stops.

    Args:
        dialogue: asks the server.
        background: runs the requests.
        at_once: maximum number of them in flight.
        withdrawn: numbers of requests that are given up.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        background: Background,
        at_once: int,
        withdrawn: Container[int] = (),
    ) -> None:
        self._dialogue, self._background = dialogue, background
        self._allowance = Allowance(at_once)
        self._withdrawn = withdrawn
        self._news: queue.Queue[_News] = queue.Queue(_MOST_NEWS)
        self._open: dict[int, Transcript] = {}
        self._tasks: dict[int, Future[None]] = {}
        self._count = 0

    def interrupted(self) -> dict[int, Generation]:
        """Return what the open rows have said so far."""
        return {row: each.generation("interrupted") for row, each in self._open.items()}

    def answers(self, requests: Iterable[Request | None]) -> Iterator[EngineEvent]:
        """Ask all requests; yields the events of `engines.Engine.stream`."""
        rest = iter(requests)
        silence = Silence(self._dialogue.connection.url)
        is_more = True
        while True:
            self._give_up()
            is_more = is_more and self._filled(rest)
            if not self._open:
                if not is_more:
                    return
                silence.ends()  # nothing is asked
            with suppress(queue.Empty):
                number, news = self._news.get(timeout=_SOON)
                for event in self._told(number, news) if number in self._open else ():
                    yield event
                    silence.ends()
            yield from silence.said()

    def _filled(self, rest: Iterator[Request | None]) -> bool:
        """Send requests while there is room for them; tells whether there may be more."""
        while len(self._open) < self._allowance.count:
            try:
                request = next(rest)
            except StopIteration:
                return False
            if request is None:
                break
            self._send(self._count, request)
            self._count += 1
        return True

    def _give_up(self) -> None:
        for row in [each for each in self._open if each in self._withdrawn]:
            self._end(row)

    def _send(self, row: int, request: Request) -> None:
        dialogue = self._dialogue
        self._open[row] = Transcript(request, row, dialogue.connection, dialogue.manners)
        self._tasks[row] = self._background.submit(self._ask(row, request))

    async def _ask(self, row: int, request: Request) -> None:
        """Ask in the background; whatever comes is put into the queue."""
        try:
            async with aclosing(self._dialogue.ask(request, self._allowance)) as events:
                async for data in events:
                    await self._put((row, data))
        except Exception as error:
            # Without its frames, which hold the connection.
            await self._put((row, error.with_traceback(None)))
        else:
            await self._put((row, None))

    async def _put(self, news: _News) -> None:
        while True:
            try:
                self._news.put_nowait(news)
            except queue.Full:
                await asyncio.sleep(_SOON)
            else:
                return

    def _told(self, row: int, news: str | Exception | None) -> Iterator[EngineEvent]:
        transcript = self._open[row]
        try:
            if isinstance(news, Exception):
                raise news
            if news is None:
                yield from transcript.end()
                finished = Finished(transcript.finished(), row)
                self._end(row)
                self._allowance.answered()
                yield finished
            elif news.strip() == DONE:
                transcript.done = True
            else:
                yield from transcript.take(news)
        except Glm4vError as error:
            if isinstance(error, EngineError) and error.reach == "unknown":  # nothing held back
                error.generations = {row: transcript.generation("failed")}
            self._end(row)
            yield Failed(error, row)

    def _end(self, row: int) -> None:
        self._open.pop(row, None)
        task = self._tasks.pop(row, None)
        if task is not None:
            task.cancel()
