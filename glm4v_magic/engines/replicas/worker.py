"""A replica: an engine in a process of its own, called remotely.

Its methods are called by `ReplicasEngine` through Ray, several at once from threads of Ray; the
model is loaded and asked in one thread, because torch keeps its modes by thread.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from glm4v_magic.core.conversation import Generation, Request
from glm4v_magic.core.errors import (
    EngineError,
    GenerationInterrupted,
    Glm4vError,
    OutOfMemoryError,
    reason,
)
from glm4v_magic.core.events import Failed, Finished, RowEvent, Waiting
from glm4v_magic.core.image import SeenImage
from glm4v_magic.core.model import EngineInfo, LoadProgress, ModelChoice
from glm4v_magic.engines import Engine

__all__ = ["OWN_VERSION", "LoadState", "News", "ReplicaWorker", "ended"]

OWN_VERSION = version("glm4v_magic")
"""Version of this package on this machine."""

_SECONDS_TO_GATHER = 0.02

Load = Callable[[ModelChoice, Callable[[LoadProgress], None]], Engine]
"""Loads a model into this process, and tells each weight that has arrived."""


@dataclass(frozen=True, slots=True)
class LoadState:
    """How far loading is.

    Attributes:
        version: version of this package there.
        progress: latest progress; ``None`` before the first weight.
        error: why it failed.
        info: facts about the loaded model; ``None`` before.
        batch_size: as in `Engine`.
    """

    version: str
    progress: LoadProgress | None = None
    error: Exception | None = None
    info: EngineInfo | None = None
    batch_size: int = 0


@dataclass(frozen=True, slots=True)
class News:
    """What has happened since the last news.

    Attributes:
        events: events of the engine, with the rows of the caller.
        error: why it failed; all open requests have ended.
        used_bytes: memory that the process holds on its devices, or in all on the CPU.
        cache: contents of the prefix cache.
    """

    events: Sequence[RowEvent]
    error: Exception | None
    used_bytes: int
    cache: Any


class _Call:
    """Requests of one call of `ReplicasEngine.stream`.

    Attributes:
        number: its number.
        at_once: number of requests to answer at once.
        waiting: rows and requests that the engine has not taken yet.
        open: row of each request that the engine has taken, by the engine's number.
        withdrawn: rows that are given up.
        partial: what open rows had said when the call was stopped.
        is_stopping, has_stopped: whether it is to be stopped, and whether it has.
    """

    def __init__(self, number: int, at_once: int) -> None:
        self.number = number
        self.at_once = at_once
        self.waiting: deque[tuple[int, Request]] = deque()
        self.open: dict[int, int] = {}
        self.withdrawn: set[int] = set()
        self.events: list[RowEvent] = []
        self.error: Exception | None = None
        self.partial: dict[int, Generation] = {}
        self.is_stopping = self.has_stopped = False


class _Withdrawn:
    """Numbers of the engine's requests that are given up."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    def __contains__(self, number: object) -> bool:
        row = self._call.open.get(number)  # type: ignore[call-overload]
        return row is None or row in self._call.withdrawn


class ReplicaWorker:
    """A replica.

    Args:
        load: loads the model.
        choice: which one.
        threads: CPU threads that torch may use; 0 for its own choice.
    """

    def __init__(self, load: Load, choice: ModelChoice, threads: int) -> None:
        self._load = load
        self._choice = choice
        self._threads = threads
        self._state = LoadState(OWN_VERSION)
        self._engine: Engine | None = None
        self._call = _Call(-1, 1)
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def state(self) -> LoadState:
        """Return how far loading is."""
        return self._state

    def process(self) -> int:
        """Return the id of the process."""
        return os.getpid()

    def require_room(self, request: Request) -> int | None:
        """Return the number of tokens that may follow; see `Engine.require_room`."""
        assert self._engine is not None
        return self._engine.require_room(request)

    def seen(self, request: Request) -> tuple[SeenImage, ...]:
        """Return what the model sees of each image; see `Engine.seen`."""
        assert self._engine is not None
        return self._engine.seen(request)

    def put(self, number: int, at_once: int, asked: Sequence[tuple[int, Request]]) -> None:
        """Take requests of a call; those of the call before are given up.

        Args:
            number: number of the call.
            at_once: number of requests to answer at once.
            asked: row and request of each.
        """
        with self._changed:
            if number != self._call.number:
                self._call.is_stopping = True
                self._call = _Call(number, at_once)
            rows = {row for row, _ in asked}  # some may have been here, and come back
            self._call.withdrawn -= rows
            for each in [n for n, row in self._call.open.items() if row in rows]:
                del self._call.open[each]
            self._call.waiting.extend(asked)
            self._changed.notify_all()

    def withdraw(self, number: int, rows: Sequence[int]) -> None:
        """Give requests up before the next step."""
        with self._changed:
            if number == self._call.number:
                self._call.withdrawn.update(rows)
                left = [each for each in self._call.waiting if each[0] not in self._call.withdrawn]
                self._call.waiting = deque(left)

    def stop(self, number: int, seconds: float) -> Mapping[int, Generation]:
        """Stop a call, and return what its rows had said, by row.

        Answers that have ended are among them, if no news has told of their end.
        """
        with self._changed:
            call = self._call
            if number != call.number:
                return {}
            call.is_stopping = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: call.has_stopped or not call.open, seconds)
            return ended(call.events) | call.partial

    def take(self, number: int, seconds: float) -> News:
        """Return the news of a call; waits some seconds for the first.

        After the first event it waits a moment for more, which saves calls; only the end of an
        answer, which makes room for the next one, is told at once.
        """
        call = self._call
        if number != call.number:
            return News((), None, _used_bytes(), None)
        with self._changed:
            self._changed.wait_for(lambda: call.events or call.error or call.is_stopping, seconds)
            is_urgent = call.error or any(isinstance(each, Finished) for each in call.events)
        if call.events and not is_urgent:
            # A step tells of each row by itself, and asking for them takes longer than the step.
            time.sleep(_SECONDS_TO_GATHER)
        with self._changed:
            events, call.events = call.events, []
            error, call.error = call.error, None
        return News(events, error, _used_bytes(), getattr(self._engine, "cache", None))

    def _run(self) -> None:
        try:
            if self._threads:
                import torch

                torch.set_num_threads(self._threads)
            self._engine = engine = self._load(self._choice, self._arrived)
        except Exception as error:
            self._state = replace(self._state, error=_plain(error))
            return
        self._state = replace(self._state, info=engine.info, batch_size=engine.batch_size)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._call.waiting and not self._call.is_stopping)
                call = self._call
            self._answer(engine, call)

    def _arrived(self, progress: LoadProgress) -> None:
        self._state = replace(self._state, progress=progress)

    def _answer(self, engine: Engine, call: _Call) -> None:
        """Answer the requests of a call until none is open or waiting."""
        error: Exception | None = None
        partial: dict[int, Generation] = {}
        try:
            stream = engine.stream(self._requests(call), call.at_once, _Withdrawn(call))
            with closing(stream) as events:
                for event in events:
                    if not isinstance(event, Waiting):
                        self._tell(call, event)
                    if call.is_stopping:
                        stream.throw(KeyboardInterrupt())
        except GenerationInterrupted as stopped:
            partial = {
                call.open[each]: said
                for each, said in stopped.generations.items()
                if each in call.open
            }
        except (KeyboardInterrupt, StopIteration):
            pass
        except OutOfMemoryError as failed:
            failed.rows = tuple(call.open[each] for each in failed.rows if each in call.open)
            failed.generations = {
                call.open[each]: said
                for each, said in failed.generations.items()
                if each in call.open
            }
            error = failed
        except Exception as failed:
            error = failed
        with self._changed:
            call.partial, call.error = partial, None if error is None else _plain(error)
            call.open.clear()
            call.has_stopped = call.is_stopping
            self._changed.notify_all()

    def _requests(self, call: _Call) -> Iterator[Request | None]:
        """Yield requests as they come; ends the engine's call when none is open or waiting."""
        for count in itertools.count():
            while (asked := self._next(call)) is None:
                if not call.open:
                    return
                yield None
            call.open[count], request = asked
            yield request

    def _next(self, call: _Call) -> tuple[int, Request] | None:
        """Return the next row and request of a call; ``None`` if there is none now."""
        with self._changed:
            if call.is_stopping:
                raise KeyboardInterrupt
            for each in [n for n, row in call.open.items() if row in call.withdrawn]:
                del call.open[each]
            return call.waiting.popleft() if call.waiting else None

    def _tell(self, call: _Call, event: RowEvent) -> None:
        with self._changed:
            row = call.open.get(event.row)
            if row is None:
                return
            if isinstance(event, Finished | Failed):
                del call.open[event.row]
            if isinstance(event, Failed):
                event = replace(event, error=_of_row(_plain(event.error), event.row, row))
            call.events.append(replace(event, row=row))
            self._changed.notify_all()


def ended(events: Iterable[RowEvent]) -> dict[int, Generation]:
    """Return the answers that end with these events, by row."""
    return {each.row: each.generation for each in events if isinstance(each, Finished)}


def _plain(error: Exception) -> Any:
    """Return an error that can be sent: without frames, and one of ours or with its text alone."""
    if isinstance(error, Glm4vError):
        error.__cause__ = error.__context__ = error.__traceback__ = None
        return error
    return RuntimeError(reason(error))


def _of_row(error: Any, number: int, row: int) -> Any:
    """Return the error of one request, with what it had said under its caller's number."""
    if isinstance(error, EngineError) and number in error.generations:
        error.generations = {row: error.generations[number]}
    return error


def _used_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return sum(torch.cuda.memory_reserved(n) for n in range(torch.cuda.device_count()))
    import psutil

    size: int = psutil.Process().memory_info().rss
    return size
