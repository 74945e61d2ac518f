"""The model in use, and asking it: the Python API beneath the magics.

A `Session` holds at most one model in memory. It is loaded when it is first needed, or with
`Session.load`, and used by one caller at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from glm4v_magic.conversation import Answer, Conversation, Generation, Message, Request, Sampling
from glm4v_magic.errors import (
    BusyError,
    ConversationError,
    GenerationInterrupted,
    Glm4vError,
    OptionError,
)
from glm4v_magic.placement.decision import PlacementOptions
from glm4v_magic.ranges import require_in_range
from glm4v_magic.server_address import ServerAddress, is_address, read_address

if TYPE_CHECKING:
    from glm4v_magic.checkpoints import Checkpoint, LoadProgress
    from glm4v_magic.engines import Engine, EngineInfo
    from glm4v_magic.images import SourcedImage
    from glm4v_magic.placement.costs import Quantization
    from glm4v_magic.placement.decision import GivenMap, Placement
    from glm4v_magic.placement.search import Objective
    from glm4v_magic.placement.stages import Plan

__all__ = ["ModelChoice", "Session", "Status", "load"]

OnProgress: TypeAlias = "Callable[[LoadProgress], None]"

_DEFAULTS = Sampling()


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model, and how it is loaded.

    Attributes:
        model: folder, repository id on the hub, ``demo``, or the address of a server; ``None`` is
            ``demo``.
        revision: of a repository.
        options: how it is placed.
        device_map: a map or a plan to follow; ``None`` makes a plan, or takes the CPU.
        served_model: which model of a server; ``None`` for its only one.
        timeout: longest silence of a server in seconds; ``None`` for five minutes.
    """

    model: str | None = None
    revision: str | None = None
    options: PlacementOptions = field(default_factory=PlacementOptions)
    device_map: GivenMap | None = None
    served_model: str | None = None
    timeout: float | None = None

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


def _find(choice: ModelChoice) -> Checkpoint | ServerAddress:
    """Find the checkpoint and check its files; reads no weight. Of a server, read the address."""
    if is_address(choice.name):
        return _address(choice)
    for name in ("served_model", "timeout"):
        if getattr(choice, name) is not None:
            raise OptionError(f"{name} is about a server, and {choice.name} is none.")
    from glm4v_magic import checkpoints

    return checkpoints.resolve(choice.model, revision=choice.revision, download=True)


def _address(choice: ModelChoice) -> ServerAddress:
    url = read_address(choice.name)
    here = ModelChoice(choice.model, served_model=choice.served_model, timeout=choice.timeout)
    if choice != here:
        raise OptionError(
            f"{url} is a server: it has loaded its model as it was told to.",
            "Only served_model and timeout go with an address.",
        )
    if choice.timeout is None:
        return ServerAddress(url, choice.served_model)
    require_in_range("timeout", choice.timeout)
    return ServerAddress(url, choice.served_model, choice.timeout)


def _decide(choice: ModelChoice, checkpoint: Checkpoint, on_progress: OnProgress) -> Placement:
    """Decide where the model goes; reads no weight."""
    from glm4v_magic.checkpoints import LoadProgress
    from glm4v_magic.placement.decision import decide

    # Importing torch takes seconds, so the first sign of life comes before it.
    on_progress(LoadProgress(0, checkpoint.total_bytes, ""))
    return decide(checkpoint.architecture, choice.options, choice.device_map)


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
        revision: str | None = None,
        gpus: str | None = None,
        context: int | None = None,
        images: int = 1,
        batch: int = 1,
        objective: Objective = "balance",
        dtype: str | None = None,
        quantize: Quantization | None = None,
        max_memory: float | Sequence[float] | None = None,
        reserve: float | None = None,
        split_vision: bool = False,
        offload: bool = False,
        device_map: GivenMap | None = None,
        served_model: str | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Session:
        """Load a model and return this session.

        Files, plan and map are checked while the old model is still there. Then the old one is
        released, because two rarely fit, and the new one loaded. If that fails after all, the next
        question loads the old one again. A model that is loaded already is kept.

        With GPUs, a plan decides which card runs which layers. Without one, the model runs on the
        CPU. A server (``http://127.0.0.1:8000/v1``) has loaded its model itself; if it wants a
        key, that is read from the environment variable ``GLM4V_API_KEY``.

        Args:
            model: folder, id of a repository on the hub, ``demo`` (the default), or the address of
                a server that speaks OpenAI's protocol.
            revision: commit, branch or tag of the repository.
            gpus: use no more than these: a description such as ``"2x16GiB"``; ``"cpu"`` for none.
            context: positions of prompt and answer to keep room for; the model's longest by
                default.
            images: pictures of a prompt to keep room for.
            batch: rows to keep room for.
            objective: ``balance`` for the emptiest fullest card, ``fewest`` for as few cards as
                fit.
            dtype: ``float32``, ``bfloat16`` or ``float16``; by default as published on GPUs, and
                float32 on the CPU.
            quantize: ``8bit`` or ``4bit`` for the linear layers of the text part.
            max_memory: the most GiB to use of a card: one number, or one for each card.
            reserve: GiB of each card to leave alone; 3 % of its size by default.
            split_vision: let the vision tower be cut wherever that balances better.
            offload: if no split fits, keep some layers in host memory.
            device_map: a map or a `Plan` to follow instead of making a plan, or a JSON file of
                either.
            served_model: which model of a server; needed if it has several.
            timeout: the longest silence of a server in seconds; 300 by default.
            on_progress: called as weights arrive.

        Raises:
            CheckpointError: if the checkpoint is not usable.
            EngineError: if the server cannot be used.
            PlacementError: if it cannot be placed on the devices.
            OutOfMemoryError: if a card has no room for its weights after all.
            OptionError: if an option makes no sense.
            BusyError: if another call is running.
        """
        options = PlacementOptions(
            gpus,
            context,
            images,
            batch,
            objective,
            dtype,
            quantize,
            tuple(max_memory) if isinstance(max_memory, Sequence) else max_memory,
            reserve,
            split_vision,
            offload,
        )
        name = None if model is None else os.fspath(model)
        choice = ModelChoice(name, revision, options, device_map, served_model, timeout)
        self._refuse_if_busy()
        with self._lock:
            if self._engine is None or choice != self._choice:
                self._open(choice, _find(choice), on_progress or _ignore)
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
        system: str | None = None,
        model: str | None = None,
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
            system: what the model is told before the question; nothing if empty.
            model: what to load, as `load` takes it, if nothing was ever loaded here.
            on_progress: called as weights arrive, if the model is loaded now.
            on_start: called once everything is checked, before the model begins, with the model's
                facts and the pictures as they are sent.
            on_text: called with each new piece of the answer.

        Raises:
            InputError: if text, pictures or options cannot be used; nothing was loaded for it
                unless the prompt turns out to be too long.
            GenerationInterrupted: on an interrupt; its `answer` holds what was said until then.
            CheckpointError, PlacementError: if the model has to be loaded and cannot be.
            OutOfMemoryError, EngineError: if the model or its server fails; it can be asked again.
            BusyError: if another call is running.
        """
        from glm4v_magic.prompt import require_text

        sampling = _checked(
            Sampling(max_tokens, temperature, top_p, top_k, repetition_penalty, seed)
        )
        message = Message("user", require_text(text), _pictures(images))
        before = (Message("system", require_text(system)),) if system else ()
        request = Request(Conversation((*before, message)), sampling)
        self._refuse_if_busy()
        with self._lock:
            engine = self._engine
            if engine is None:
                choice = self._choice
                if choice.model is None:
                    choice = replace(choice, model=model)
                found = _find(choice)
                if not isinstance(found, ServerAddress):
                    _refuse_too_many(request, found.name, found.max_images)
                engine = self._open(choice, found, on_progress or _ignore)
            _refuse_too_many(request, engine.info.model, engine.info.max_images)
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

    @property
    def engine(self) -> Engine | None:
        """What answers, for a look inside; ``None`` when nothing is loaded.

        For a model in this process it has `model` and `processor`, see `engines.local.LocalEngine`.
        """
        return self._engine

    @property
    def plan(self) -> Plan | None:
        """The plan of the loaded model; ``None`` without one: on the CPU, or by a given map."""
        engine = self._engine
        return None if engine is None else engine.info.plan

    def _refuse_if_busy(self) -> None:
        # The lock itself is then taken with a plain "with", which is safe against an interrupt
        # between taking it and entering the block; acquire(blocking=False) is not. Of two calls
        # that both find it free, the second waits for the first instead of being refused.
        if self._lock.locked():
            raise BusyError(
                "Another call is running in this session.",
                "Wait for it to end, or interrupt it.",
            )

    def _open(
        self, choice: ModelChoice, found: Checkpoint | ServerAddress, on_progress: OnProgress
    ) -> Engine:
        if isinstance(found, ServerAddress):
            return self._connect(choice, found)
        placement = _decide(choice, found, on_progress)
        from glm4v_magic.engines import local

        old = self._choice
        released = self._release()
        try:
            self._engine = local.load(found, placement, on_progress=on_progress)
        except Glm4vError as error:
            if released:
                error.hint += (
                    f" {old.name} was released to make room; the next question loads it again."
                )
            raise
        self._choice = choice
        return self._engine

    def _connect(self, choice: ModelChoice, address: ServerAddress) -> Engine:
        from glm4v_magic.engines import server

        engine = server.connect(address)  # costs no memory, so the old model may wait
        self._release()
        self._engine, self._choice = engine, choice
        return engine

    def _release(self) -> bool:
        engine, self._engine = self._engine, None
        if engine is None:
            return False
        engine.close()
        return True


def load(model: str | os.PathLike[str] | None = None, **options: Any) -> Session:
    """Return a new `Session` with a model loaded; arguments and errors as `Session.load`."""
    return Session().load(model, **options)


def _ignore(_: object) -> None:
    """Take news that nobody asked for."""


def _pictures(images: object) -> tuple[SourcedImage, ...]:
    from glm4v_magic.images import to_images

    if images is None or (isinstance(images, list | tuple) and not images):
        return ()
    return to_images(images, "images")


def _refuse_too_many(request: Request, model: str, most: int | None) -> None:
    given = len(request.conversation.images)
    if most is not None and given > most:
        few = "one picture" if most == 1 else f"{most} pictures"
        raise ConversationError(
            f"{model} takes {few} in a conversation, and this one has {given}.",
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
    for each in fields(sampling):
        value = getattr(sampling, each.name)
        if value is not None or each.name == "max_tokens":
            require_in_range(each.name, value)
    return sampling
