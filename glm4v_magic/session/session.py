"""`Session`, the Python API: a model in use and the conversations with it.

Its parts are layers in files of their own: `model_in_use` holds the model, `questions` asks it and
keeps chats, and `maps`, `evaluations`, `comparisons` and `looks_inside` stand on these.
"""

from __future__ import annotations

import os
from collections.abc import Container, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glm4v_magic.calls.asking import asking
from glm4v_magic.calls.call import terms_of
from glm4v_magic.core.conversation import Answer, Request
from glm4v_magic.core.events import Event, Started
from glm4v_magic.core.model import EngineInfo, ModelChoice
from glm4v_magic.session.comparisons import Comparisons
from glm4v_magic.session.evaluations import Evaluations
from glm4v_magic.session.looks_inside import LooksInside
from glm4v_magic.session.stream import Stream

if TYPE_CHECKING:
    from glm4v_magic.engines.prefixes import CacheFacts

__all__ = ["Session", "Status", "load"]


@dataclass(frozen=True, slots=True)
class Status:
    """Status of a session.

    Attributes:
        choice: model in use, or the one that the next question loads.
        info: facts about the loaded model; ``None`` if none is loaded.
        busy: whether a call is running.
        last: latest answer, an interrupted one included.
        kept: size and budget of the prefix cache; ``None`` if no model is loaded, and for a server.
    """

    choice: ModelChoice
    info: EngineInfo | None
    busy: bool
    last: Answer | None
    kept: CacheFacts | None = None


class Session(Evaluations, Comparisons, LooksInside):
    """One model and the conversations with it.

    All methods may be called from any thread. While one of them works with the model or changes a
    chat, a second such call raises `BusyError`; `status`, `chats` and `conversation` always answer.

    A question begins a conversation of its own, unless it names a chat or is a follow-up. An
    interrupted answer is kept in its chat, marked as unfinished; a call that fails leaves all chats
    as they were.

    Every call that takes a while has two forms: `stream` yields its events as they happen, and
    `ask` is a loop over them that returns the answer.

    Args:
        engine: engine to use instead of loading a model.
    """

    def status(self) -> Status:
        """Return the status of this session, also while a call is running."""
        engine = self._engine
        return Status(
            choice=self._choice,
            info=None if engine is None else engine.info,
            busy=self._lock.locked(),
            last=self._last,
            kept=getattr(engine, "cache", None),
        )

    def stream_requests(
        self,
        requests: Iterable[Request | None],
        at_once: int | None = None,
        withdrawn: Container[int] = (),
    ) -> Stream:
        """Answer requests of other programs in one running batch, outside of any chat.

        The server reads this one: each of its requests enters the batch when it comes, and leaves
        it when its client does.

        Args:
            requests: taken when there is room, and numbered in that order; ``None`` among them
                means that none has arrived yet. See `engines.Engine.stream`.
            at_once: maximum number of requests in the batch.
            withdrawn: numbers of requests that are given up; may grow at any time.

        Returns:
            Its events: `Loading` if the model is loaded now, `Started`, then those of all requests,
            each with its number: `Thinking` and `Text`, as the model writes it, with the tags
            around boxes, and `Finished`, or `Failed` if it cannot be answered.

        Raises:
            GenerationInterrupted: on an interrupt; its `generations` hold what was said until then.
            CheckpointError, PlacementError: if the model has to be loaded and cannot be.
            OutOfMemoryError, EngineError: if the model or its server fails; it can be asked again.
            BusyError: if another call is running.
        """

        def events() -> Generator[Event, None, None]:
            engine = yield from self._ready(terms_of({}))
            yield Started(engine.info)
            with asking(engine, requests, at_once, withdrawn, tags=True) as told:
                yield from told

        return self._locked(events)


def load(model: str | os.PathLike[str] | None = None, **options: Any) -> Session:
    """Return a new `Session` with a model loaded; arguments as `Session.stream_load`."""
    return Session().load(model, **options)
