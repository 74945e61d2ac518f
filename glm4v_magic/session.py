"""The model in use, and asking it: the Python API beneath the magics.

A `Session` holds at most one model in memory. It is loaded when it is first needed, or with
`Session.load`, and used by one caller at a time.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from glm4v_magic.conversation import Answer, Conversation, Generation, Message, Request, Sampling
from glm4v_magic.errors import (
    BusyError,
    ConversationError,
    GenerationInterrupted,
    Glm4vError,
    OptionError,
)

if TYPE_CHECKING:
    from glm4v_magic.checkpoints import LoadProgress
    from glm4v_magic.engines import Engine, EngineInfo
    from glm4v_magic.images import SourcedImage

__all__ = ["ModelChoice", "Session", "Status", "load"]

OnProgress: TypeAlias = "Callable[[LoadProgress], None]"
Start: TypeAlias = "Callable[[OnProgress], Engine]"

DTYPES = ("float32", "bfloat16", "float16")
_DEFAULTS = Sampling()
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model, and how it is loaded.

    Attributes:
        model: folder, repository id in the hub cache, or ``demo``; ``None`` is ``demo``.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``None`` leaves it to the device.
        device_map: as in `from_pretrained`; ``None`` leaves it to the engine.
    """

    model: str | None = None
    dtype: str | None = None
    device_map: str | Mapping[str, int | str] | None = None

    @property
    def name(self) -> str:
        """The model's name as the user would type it."""
        from glm4v_magic.checkpoints import DEMO

        return self.model or DEMO


@dataclass(frozen=True, slots=True)
class Status:
    """Where a session stands.

    Attributes:
        choice: the model in use, or the one that the next question loads.
        info: of the loaded model; ``None`` when none is loaded.
        busy: whether a call is running.
        last: the latest answer, an interrupted one included.
    """

    choice: ModelChoice
    info: EngineInfo | None
    busy: bool
    last: Answer | None


def _prepare_local(choice: ModelChoice) -> Start:
    """Check the files of a checkpoint; the result loads them into this process."""
    from glm4v_magic import checkpoints

    checkpoint = checkpoints.resolve(choice.model)
    device_map = (
        dict(choice.device_map) if isinstance(choice.device_map, Mapping) else choice.device_map
    )

    def start(on_progress: OnProgress) -> Engine:
        # Importing torch takes seconds, so the first sign of life comes before it.
        on_progress(checkpoints.LoadProgress(0, checkpoint.total_bytes, ""))
        import torch

        from glm4v_magic.engines import local

        return local.load(
            checkpoint,
            dtype=None if choice.dtype is None else getattr(torch, choice.dtype),
            device_map=device_map,
            on_progress=on_progress,
        )

    return start


class Session:
    """One model and the questions put to it.

    All methods may be called from any thread. While one of `load`, `ask` and `unload` runs, a
    second call raises `BusyError`; `status` always answers.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._choice = ModelChoice()
        self._engine: Engine | None = None
        self._last: Answer | None = None

    def load(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        dtype: str | None = None,
        device_map: str | Mapping[str, int | str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Session:
        """Load a model and return this session.

        The new checkpoint's files are checked while the old model is still there. Then the old one
        is released, because two rarely fit, and the new one loaded. If that fails after all, the
        next question loads the old one again. A model that is loaded already is kept.

        Args:
            model: folder, repository id in the hub cache, or ``demo`` (the default).
            dtype: ``float32``, ``bfloat16`` or ``float16``; ``None`` leaves it to the device.
            device_map: as in `from_pretrained`; ``None`` leaves it to the engine.
            on_progress: called as weights arrive.

        Raises:
            CheckpointError: if the checkpoint is not usable.
            PlacementError: if it cannot be placed on the devices.
            OptionError: if `dtype` is none of the above.
            BusyError: if another call is running.
        """
        if dtype is not None and dtype not in DTYPES:
            raise OptionError(f"There is no dtype {dtype!r}.", f"Use one of {', '.join(DTYPES)}.")
        choice = ModelChoice(None if model is None else os.fspath(model), dtype, device_map)
        self._refuse_if_busy()
        with self._lock:
            if self._engine is None or choice != self._choice:
                self._open(choice, on_progress)
        return self

    def ask(
        self,
        text: str,
        images: object = (),
        *,
        max_tokens: int = _DEFAULTS.max_tokens,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        on_progress: OnProgress | None = None,
        on_start: Callable[[EngineInfo, tuple[SourcedImage, ...]], None] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Ask a fresh question about `images`, loading the model if none is loaded.

        Args:
            text: the question.
            images: one picture or a list of them, each as `images.to_image` takes it.
            max_tokens: see `Sampling`, as for the next five.
            temperature: 0 is greedy; ``None`` leaves it to the checkpoint.
            top_p: nucleus size.
            top_k: how many of the likeliest tokens stay in.
            repetition_penalty: above 1 discourages repeats.
            seed: repeats a sampled answer.
            on_progress: called as weights arrive, if the model is loaded now.
            on_start: called once everything is checked, before the model begins, with the model's
                facts and the pictures as they are sent.
            on_text: called with each new piece of the answer.

        Raises:
            InputError: if text, pictures or options cannot be used; nothing was loaded for it
                unless the model itself refuses them.
            GenerationInterrupted: on an interrupt; its `answer` holds what was said until then.
            CheckpointError, PlacementError: if the model has to be loaded and cannot be.
            OutOfMemoryError, EngineError: if the model fails; it can be asked again.
            BusyError: if another call is running.
        """
        from glm4v_magic.prompt import require_text

        sampling = _checked(
            Sampling(max_tokens, temperature, top_p, top_k, repetition_penalty, seed)
        )
        message = Message("user", require_text(text), _pictures(images))
        request = Request(Conversation((message,)), sampling)
        self._refuse_if_busy()
        with self._lock:
            engine = self._engine or self._open(self._choice, on_progress)
            _refuse_too_many(request, engine.info)
            if on_start is not None:
                on_start(engine.info, request.conversation.images)
            try:
                generation = engine.generate(request, on_text or _ignore)
            except GenerationInterrupted as stopped:
                self._last = stopped.answer = _answer(request, stopped.generation, engine.info)
                raise
            self._last = _answer(request, generation, engine.info)
            return self._last

    def unload(self) -> bool:
        """Give the model's memory back; the next question loads the same model again.

        Returns:
            Whether a model was loaded.

        Raises:
            BusyError: if another call is running.
        """
        self._refuse_if_busy()
        with self._lock:
            return self._release()

    def status(self) -> Status:
        """Return where this session stands, also while a call is running."""
        engine = self._engine
        return Status(
            choice=self._choice,
            info=None if engine is None else engine.info,
            busy=self._lock.locked(),
            last=self._last,
        )

    def _refuse_if_busy(self) -> None:
        # The lock itself is then taken with a plain "with", which is safe against an interrupt
        # between taking it and entering the block; acquire(blocking=False) is not. Of two calls
        # that both find it free, the second waits for the first instead of being refused.
        if self._lock.locked():
            raise BusyError(
                "Another call is running in this session.",
                "Wait for it to end, or interrupt it.",
            )

    def _open(self, choice: ModelChoice, on_progress: OnProgress | None) -> Engine:
        start = _prepare_local(choice)
        old = self._choice
        released = self._release()
        try:
            self._engine = start(on_progress or _ignore)
        except Glm4vError as error:
            if released:
                error.hint += (
                    f" {old.name} was released to make room; the next question loads it again."
                )
            raise
        self._choice = choice
        return self._engine

    def _release(self) -> bool:
        engine, self._engine = self._engine, None
        if engine is None:
            return False
        engine.close()
        return True


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    dtype: str | None = None,
    device_map: str | Mapping[str, int | str] | None = None,
    on_progress: OnProgress | None = None,
) -> Session:
    """Return a new `Session` with a model loaded; arguments and errors as `Session.load`."""
    return Session().load(model, dtype=dtype, device_map=device_map, on_progress=on_progress)


def _ignore(_: object) -> None:
    """Take news that nobody asked for."""


def _pictures(images: object) -> tuple[SourcedImage, ...]:
    from glm4v_magic.images import to_images

    if images is None or (isinstance(images, list | tuple) and not images):
        return ()
    return to_images(images, "images")


def _refuse_too_many(request: Request, info: EngineInfo) -> None:
    given = len(request.conversation.images)
    if info.max_images is not None and given > info.max_images:
        few = "one picture" if info.max_images == 1 else f"{info.max_images} pictures"
        raise ConversationError(
            f"{info.model} takes {few} in a conversation, and this one has {given}.",
            "Ask about them one after the other, or join them into one picture.",
        )


def _answer(request: Request, generation: Generation, info: EngineInfo) -> Answer:
    return Answer(
        text=generation.text,
        prompt=request.conversation.messages[-1].text,
        model=info.model,
        usage=generation.usage,
        finish_reason=generation.finish_reason,
        seed=generation.seed,
        notice=info.notice,
        images=request.conversation.images,
    )


def _checked(sampling: Sampling) -> Sampling:
    """Refuse values that no model can sample with, by the name the user knows them."""
    demands: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
        ("max_tokens", "a whole number of at least 1", lambda value: value >= 1),
        ("temperature", "a number of at least 0 (0 is greedy)", lambda value: value >= 0),
        ("top_p", "a number above 0 and at most 1", lambda value: 0 < value <= 1),
        ("top_k", "a whole number of at least 1", lambda value: value >= 1),
        ("repetition_penalty", "a number above 0", lambda value: value > 0),
        ("seed", "a whole number from 0 to 2**63 - 1", lambda value: 0 <= value <= _LARGEST_SEED),
    )
    for name, demand, holds in demands:
        value = getattr(sampling, name)
        if value is None and name != "max_tokens":
            continue
        kinds: tuple[type, ...] = (int,) if "whole" in demand else (int, float)
        good = isinstance(value, kinds) and not isinstance(value, bool)
        if not (good and math.isfinite(value) and holds(value)):
            raise OptionError(f"{name} is {value!r}, but must be {demand}.")
    return sampling
