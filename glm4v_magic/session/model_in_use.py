"""`ModelInUse`: at most one model in memory, loaded when it is needed, for one caller at a time."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from glm4v_magic.calls.refusals import (
    Takes,
    refuse_more_than_fit,
    refuse_too_many_at_once,
    refuse_video,
    takes_of,
)
from glm4v_magic.core.errors import BusyError
from glm4v_magic.core.events import Event
from glm4v_magic.core.model import ModelChoice
from glm4v_magic.core.python_options import accepts
from glm4v_magic.core.server_address import ServerAddress, is_address
from glm4v_magic.dispatch.activity import ActivityRecorder
from glm4v_magic.session.opening import (
    choice_of,
    connect,
    find,
    prepare,
    told_what_was_released,
)
from glm4v_magic.session.stream import Stream

if TYPE_CHECKING:
    from glm4v_magic.calls.call import Terms
    from glm4v_magic.checkpoints import Checkpoint
    from glm4v_magic.checkpoints.files import Stamp
    from glm4v_magic.core.plan import Plan
    from glm4v_magic.engines import Engine

__all__ = ["ModelInUse", "loaded_all_the_same"]


class ModelInUse:
    """A model in memory, or the choice of one that the next question loads.

    Args:
        engine: engine to use instead of loading a model.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self._lock = threading.Lock()
        self._choice = ModelChoice()
        self._stamp: Stamp | None = None
        self._engine = engine
        self._recorder = ActivityRecorder()
        self._neighbour: ModelInUse | None = None  # whose model makes room for one loaded here

    @accepts("load")
    def load(self, model: str | os.PathLike[str] | None = None, **options: Any) -> Self:
        """Load a model and return this session; errors as `stream_load`.

        Args:
            model: as in `stream_load`.
            options: likewise.
        """
        before = self._engine
        try:
            self.stream_load(model, **options).follow()
        except KeyboardInterrupt as interrupt:
            now = self._engine
            if type(interrupt) is not KeyboardInterrupt or now is None or now is before:
                raise
            raise loaded_all_the_same(now.info.model) from None
        return self

    @accepts("load")
    def stream_load(self, model: str | os.PathLike[str] | None = None, **options: Any) -> Stream:
        """Load a model; yields `Loading` as weights arrive.

        Files, plan and device map are checked while the old model is still loaded. Where there is
        room for both, it stays loaded until the new one is there, and so survives every error and
        interrupt. Otherwise it is released first, which `Loading` tells; if the load then fails
        or is interrupted, the next question loads the old one again. A model that is loaded
        already is kept, unless its files have changed.

        With GPUs, a plan decides which GPU runs which layers. Without one, the model runs on the
        CPU. A server (``http://127.0.0.1:8000/v1``) has loaded its model itself; if it wants a
        key, that is read from the environment variable ``GLM4V_API_KEY``.

        Args:
            model: folder, id of a repository on the hub, ``demo``, or the address of a server that
                speaks OpenAI's protocol. The folder may be that of an adapter. The default is the
                model of a plan that is given as `device_map`, or else ``demo``.
            options: where it goes, and which of several models it is.

        Raises:
            CheckpointError: if the checkpoint is not usable.
            EngineError: if the server cannot be used.
            PlacementError: if it cannot be placed on the devices.
            OutOfMemoryError: if a GPU has no room for its weights after all.
            LoadInterrupted: on an interrupt when the old model had been released.
            OptionError: if an option makes no sense.
            BusyError: if another call is running.
        """
        choice = choice_of(model, options)
        return self._locked(lambda: self._load(choice))

    def unload(self) -> bool:
        """Release the model's memory; the next question loads the same model again.

        Returns:
            Whether a model was loaded.

        Raises:
            BusyError: if another call is running.
        """
        self._refuse_if_busy()
        with self._lock:
            return self._release()

    @property
    def engine(self) -> Engine | None:
        """Engine in use; ``None`` if no model is loaded.

        For a model in this process it has `model` and `processor`, see `engines.local.LocalEngine`.
        """
        return self._engine

    @property
    def recorder(self) -> ActivityRecorder:
        """Recorder of the running part of the model, used while a view of it is open."""
        return self._recorder

    @property
    def plan(self) -> Plan | None:
        """Plan of the loaded model; ``None`` on the CPU or with a given device map."""
        engine = self._engine
        return None if engine is None else engine.info.plan

    def require_images(self, given: int) -> None:
        """Raise if a question has more images than the loaded model takes, before any is decoded.

        Raises:
            ConversationError: if it takes fewer than `given`, or its context cannot hold them.
        """
        engine = self._engine
        if engine is not None:
            info = engine.info
            refuse_too_many_at_once(given, info.model, info.max_images)
            refuse_more_than_fit(given, info.model, info.least_image, info.context)

    def require_video(self) -> None:
        """Raise if the loaded model takes no video, before the video is read.

        Raises:
            ConversationError: if it takes none.
        """
        engine = self._engine
        if engine is not None:
            info = engine.info
            refuse_video(info.model, info.takes_video)

    @contextmanager
    def holding(self, engine: Engine | None) -> Iterator[Engine | None]:
        """Lock the session and give an engine; ``None`` if it is not the one in use.

        Raises:
            BusyError: if another call is running.
        """
        self._refuse_if_busy()
        with self._lock:
            yield engine if engine is self._engine else None

    def _stream_beside(self, neighbour: ModelInUse, choice: ModelChoice) -> Stream:
        """Load a chosen model as `stream_load`; without room for both, `neighbour` makes room."""
        self._neighbour = neighbour
        return self._locked(partial(self._load, choice))

    def _load(self, choice: ModelChoice) -> Generator[Event, None, None]:
        # Only an engine of this process can lose its devices: virtual GPUs end with their block.
        is_gone = getattr(self._engine, "is_gone", False)
        is_same = self._engine is not None and choice == self._choice and not is_gone
        # A server may have been started anew, with another model, so it is asked again.
        if is_same and self._stamp is None and not is_address(choice.name):  # given by the caller
            return
        found = find(choice)
        if not is_same or isinstance(found, ServerAddress) or self._stamp != found.stamp:
            yield from self._open(choice, found)

    def _refuse_if_busy(self) -> None:
        # The lock itself is then taken with a plain "with", which is safe against an interrupt
        # between taking it and entering the block; acquire(blocking=False) is not. Of two calls
        # that both find it free, the second waits for the first instead of being refused.
        if self._lock.locked():
            raise BusyError(
                "Another call is running in this session.",
                "Wait for it to end, interrupt it, or close its stream.",
            )

    def _locked(self, events: Callable[[], Generator[Event, None, None]]) -> Stream:
        """Return a stream that locks the session from its first event to its last."""
        self._refuse_if_busy()

        def run() -> Generator[Event, None, None]:
            self._refuse_if_busy()
            with self._lock:
                yield from events()

        return Stream(run())

    def _lending(
        self, engine: Engine | None
    ) -> Callable[[], AbstractContextManager[Engine | None]]:
        """Return what gives an engine as `holding` does, as long as there are both.

        Weak: whoever keeps an answer or a trace does not keep the model.
        """
        weak = (lambda: None) if engine is None else weakref.ref(engine)
        return partial(_lent, weakref.ref(self), weak)

    def _chosen(self, terms: Terms) -> ModelChoice:
        """Return the choice of the model in use, or of the one to load."""
        choice = self._choice
        return choice if choice.model is not None else replace(choice, model=terms.model)

    def _ready(
        self, terms: Terms, refuse: Callable[[Takes], None] = lambda _: None
    ) -> Generator[Event, None, Engine]:
        """Return the engine, loaded if there was none.

        Args:
            terms: how it is asked.
            refuse: called with what the model takes, as soon as that is known; raises if the model
                cannot answer this. By default nothing is refused.
        """
        engine = self._engine
        if engine is None:
            choice = self._chosen(terms)
            found = find(choice)
            if not isinstance(found, ServerAddress):
                _require(terms)
                refuse(takes_of(found.name, found))
            engine = yield from self._open(choice, found)
        refuse(takes_of(engine.info.model, engine.info))
        return engine

    def _open(self, choice: ModelChoice, found: Any) -> Generator[Event, None, Engine]:
        """Open a model in place of the current one."""
        old = self._choice if self._engine is not None else None
        stamp = None if isinstance(found, ServerAddress) else found.stamp  # before it is read
        if isinstance(found, ServerAddress):
            engine = yield from connect(found)
        else:
            engine = yield from self._load_from(found, choice, old)
        before = self._engine
        self._engine, self._choice, self._stamp = engine, choice, stamp
        if before is not None:
            before.close()
        return engine

    def _load_from(
        self, found: Checkpoint, choice: ModelChoice, old: ModelChoice | None
    ) -> Generator[Event, None, Engine]:
        """Load a model. The one before is released only if there is no room for two."""
        holder: ModelInUse = self
        if old is None and self._neighbour is not None and self._neighbour._engine is not None:
            holder, old = self._neighbour, self._neighbour._choice
        opening = yield from prepare(choice, found, self._recorder, holder._engine)
        if old is None:
            return (yield from opening.load())
        engine = yield from opening.load_beside()
        if engine is None:
            with told_what_was_released(old):
                holder._release()
                engine = yield from opening.load(old.name)
        return engine

    def _release(self) -> bool:
        engine, self._engine = self._engine, None
        if engine is None:
            return False
        engine.close()
        return True


def loaded_all_the_same(model: str) -> KeyboardInterrupt:
    """Return the interrupt of a load that came when the model was in use already."""
    return KeyboardInterrupt(
        f"{model} is loaded all the same: it was ready when the interrupt came."
    )


@contextmanager
def _lent(
    session: weakref.ReferenceType[ModelInUse], engine: Callable[[], Engine | None]
) -> Iterator[Engine | None]:
    """Give an engine as `ModelInUse.holding` does; ``None`` if the session is gone."""
    holder = session()
    if holder is None:
        yield None
        return
    with holder.holding(engine()) as held:
        yield held


def _require(terms: Terms) -> None:
    """Raise OptionError if a model in this process cannot answer in this form."""
    if terms.constraint is not None:
        from glm4v_magic.engines.grammars import require

        require(terms.constraint)
