"""The model in use, and talking to it: the Python API beneath the magics.

A `Session` holds at most one model in memory. It is loaded when it is first needed, or with
`Session.load`, and used by one caller at a time. It also holds the conversations with it, which
outlive the model: a chat begun with one may go on with another.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_magic.calls.call import (
    Call,
    OnProgress,
    OnStart,
    OnText,
    Terms,
    answer_of,
    generation_of,
    ignore,
    images_of,
    in_form,
    refuse_more_than,
    refuse_thinking,
    refuse_too_many,
    terms_of,
)
from glm4v_magic.core.conversation import Answer, Conversation, Message, Request
from glm4v_magic.core.errors import (
    BusyError,
    ConversationError,
    FormatError,
    GenerationInterrupted,
    Glm4vError,
    OptionError,
)
from glm4v_magic.core.model import ModelChoice
from glm4v_magic.core.options import Format, Sampling, check
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.server_address import ServerAddress, is_address, read_address
from glm4v_magic.dispatch.activity import ActivityRecorder
from glm4v_magic.session.chats import UNNAMED, Chats

if TYPE_CHECKING:
    from glm4v_magic.checkpoints import Checkpoint
    from glm4v_magic.core.model import EngineInfo
    from glm4v_magic.core.options import Objective, Quantization
    from glm4v_magic.core.placement import GivenMap
    from glm4v_magic.core.plan import Plan
    from glm4v_magic.core.rows import Progress
    from glm4v_magic.engines import Engine
    from glm4v_magic.images import Limits
    from glm4v_magic.mapping.answer_cache import AnswerStore
    from glm4v_magic.mapping.runner import Read
    from glm4v_magic.planning.decision import Placement

__all__ = ["Session", "Status", "load"]

_DEFAULTS = Sampling()


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
    check("timeout", choice.timeout)
    return ServerAddress(url, choice.served_model, choice.timeout)


def _decide(choice: ModelChoice, checkpoint: Checkpoint, on_progress: OnProgress) -> Placement:
    """Decide where the model goes; reads no weight."""
    from glm4v_magic.core.model import LoadProgress
    from glm4v_magic.planning.decision import decide

    # Importing torch takes seconds, so the first sign of life comes before it.
    on_progress(LoadProgress(0, checkpoint.total_bytes, ""))
    return decide(checkpoint.architecture, choice.options, choice.device_map)


class Session:
    """One model and the conversations with it.

    All methods may be called from any thread. While one of them works with the model or changes a
    chat, a second such call raises `BusyError`; `status`, `chats` and `conversation` always answer.

    A question begins a conversation of its own, unless it names a chat or is a follow-up. An
    interrupted answer is kept in its chat, marked as unfinished; a call that fails leaves all chats
    as they were.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._choice = ModelChoice()
        self._engine: Engine | None = None
        self._last: Answer | None = None
        self._chats = Chats()
        self._store: AnswerStore | None = None
        self._recorder = ActivityRecorder()

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
        pin: Mapping[str, int] | None = None,
        device_map: GivenMap | None = None,
        served_model: str | None = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Session:
        """Load a model and return this session.

        Files, plan and map are checked while the old model is still there. Then the old one is
        released, because two rarely fit, and the new one loaded. If that fails after all, the next
        question loads the old one again. A model that is loaded already is kept.

        With GPUs, a plan decides which GPU runs which layers. Without one, the model runs on the
        CPU. A server (``http://127.0.0.1:8000/v1``) has loaded its model itself; if it wants a
        key, that is read from the environment variable ``GLM4V_API_KEY``.

        Args:
            model: folder, id of a repository on the hub, ``demo`` (the default), or the address of
                a server that speaks OpenAI's protocol.
            revision: commit, branch or tag of the repository.
            gpus: use no more than these: a description such as ``"2x16GiB"``; ``"cpu"`` for none.
            context: positions of prompt and answer to keep room for; the model's longest by
                default.
            images: images of a prompt to keep room for.
            batch: rows to keep room for.
            objective: ``balance`` for the emptiest fullest GPU, ``fewest`` for as few GPUs as
                fit.
            dtype: ``float32``, ``bfloat16`` or ``float16``; by default as published on GPUs, and
                float32 on the CPU.
            quantize: ``8bit`` or ``4bit`` for the linear layers of the text part.
            max_memory: the most GiB to use of a GPU: one number, or one for each GPU.
            reserve: GiB of each GPU to leave alone; 3 % of its size by default.
            split_vision: let the vision tower be cut wherever that balances better.
            offload: if no split fits, keep some layers in host memory.
            pin: unit -> GPU index, for units that have to be on a certain GPU: ``vision``,
                ``embedding``, ``layer`` (all of them), ``layer.7``, ``head``.
            device_map: a map or a `Plan` to follow instead of making a plan, or a JSON file of
                either.
            served_model: which model of a server; needed if it has several.
            timeout: the longest silence of a server in seconds; 300 by default.
            on_progress: called as weights arrive.

        Raises:
            CheckpointError: if the checkpoint is not usable.
            EngineError: if the server cannot be used.
            PlacementError: if it cannot be placed on the devices.
            OutOfMemoryError: if a GPU has no room for its weights after all.
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
            tuple((pin or {}).items()),
        )
        name = None if model is None else os.fspath(model)
        choice = ModelChoice(name, revision, options, device_map, served_model, timeout)
        self._refuse_if_busy()
        with self._lock:
            if self._engine is None or choice != self._choice:
                self._open(choice, _find(choice), on_progress or ignore)
        return self

    def ask(
        self,
        text: str,
        images: object = (),
        *,
        chat: str | None = None,
        follow_up: bool = False,
        format: Format | None = None,  # noqa: A002  as the option of the magic
        schema: object = None,
        max_tokens: int = _DEFAULTS.max_tokens,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        thinking: bool | None = None,
        system: str | None = None,
        model: str | None = None,
        on_progress: OnProgress | None = None,
        on_start: OnStart | None = None,
        on_text: OnText | None = None,
        on_thinking: OnText | None = None,
        on_correction: OnText | None = None,
    ) -> Answer:
        """Ask a question about `images`, loading the model if none is loaded.

        Args:
            text: the question.
            images: one image or a list of them, each a path, a URL, a Pillow image,
                bytes, an array, an open file or a figure. Those of the chat stay in it and are
                seen again.
            chat: name of the chat that the question goes on with or begins; by default the question
                is a fresh one.
            follow_up: go on with the chat of the latest answer, or with `chat`, which must exist.
            format: ``markdown`` (the default), ``text``, ``json`` or ``code``. JSON and code are
                found in the answer and are its `value`.
            schema: JSON Schema that the JSON has to follow. The model is not told of it, only of
                what is wrong with its answer: it is then asked once more. That correction is not
                kept in the chat.
            max_tokens: the longest answer, in tokens; 512 by default.
            temperature: 0 is greedy; ``None`` leaves it to the checkpoint, as in the next four.
            top_p: nucleus size in (0, 1].
            top_k: how many of the likeliest tokens stay in.
            min_p: least probability of a token, as a share of the likeliest one's.
            repetition_penalty: above 1 discourages repeats.
            seed: repeats a sampled answer.
            thinking: whether a model that can think does, before it answers; ``None`` leaves it to
                the model. Its thinking is the answer's `thinking`, and no part of the text.
            system: what the model is told before the first question, in place of what it was told
                until now; nothing if empty.
            model: what to load, as `load` takes it, if nothing was ever loaded here.
            on_progress: called as weights arrive, if the model is loaded now.
            on_start: called once everything is checked, before the model begins, with the model's
                facts and the images as they are sent.
            on_text: called with each new piece of the answer.
            on_thinking: called with each new piece of the thinking, which comes before the answer.
                If `on_text` was called already, that was thinking too, and is told again here.
            on_correction: called with what is wrong, before the model is asked once more.

        Raises:
            InputError: if text, images or options cannot be used; nothing was loaded for it
                unless the prompt turns out to be too long.
            GenerationInterrupted: on an interrupt; its `answer` holds what was said until then.
            FormatError: if the answer is not in its form; `answer` holds it, and it is in the chat.
            CheckpointError, PlacementError: if the model has to be loaded and cannot be.
            OutOfMemoryError, EngineError: if the model or its server fails; it can be asked again.
            BusyError: if another call is running.
        """
        from glm4v_magic.calls.prompt import require_text

        terms = terms_of(
            format=format,
            schema=schema,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            thinking=thinking,
            model=model,
            on_progress=on_progress,
            on_start=on_start,
            on_text=on_text,
            on_thinking=on_thinking,
            on_correction=on_correction,
        )
        message = Message("user", require_text(text), images_of(images))
        self._refuse_if_busy()
        with self._lock:
            name, before = self._before(chat, follow_up, system)
            return self._make(Call(name, before.add(message), terms))

    def draft(
        self,
        text: str,
        images: object = (),
        *,
        chat: str | None = None,
        follow_up: bool = False,
        system: str | None = None,
    ) -> Conversation:
        """Return the conversation that `ask` would send; arguments and errors as there."""
        from glm4v_magic.calls.prompt import require_text

        message = Message("user", require_text(text), images_of(images))
        return self._before(chat, follow_up, system)[1].add(message)

    def carry_on(self, chat: str | None = None, **options: Any) -> Answer:
        """Carry on the answer that was stopped, or cut off at ``max_tokens``.

        Args:
            chat: name of a chat; by default that of the latest answer.
            options: as `ask` takes them, but for those of the question; for the part that is new.

        Returns:
            The whole answer; its usage is that of the new part, as is what ``on_text`` is told.

        Raises:
            ConversationError: if there is no such chat, or its answer is finished.
            Glm4vError: any other as `ask`.
        """
        terms = terms_of(**options)
        self._refuse_if_busy()
        with self._lock:
            conversation = self._chats.require(chat)
            if conversation.partial is None:
                raise ConversationError(
                    "The latest answer is finished, so there is nothing to carry on.",
                    "Ask the next question.",
                )
            return self._make(Call(self._named(chat), conversation, terms))

    def retry(self, chat: str | None = None, **options: Any) -> Answer:
        """Ask the latest question again; the new answer takes the place of the old one.

        Until the new answer is there, the old one stays: an interrupt leaves it in the chat.

        Args:
            chat: name of a chat; by default that of the latest answer.
            options: as `ask` takes them, but for those of the question. Those of the first time
                are not remembered.

        Raises:
            ConversationError: if there is no such chat, or no question in it.
            Glm4vError: any other as `ask`.
        """
        terms = terms_of(**options)
        self._refuse_if_busy()
        with self._lock:
            conversation = self._chats.require(chat).without_last_answer()
            if not conversation.messages or conversation.messages[-1].role != "user":
                raise ConversationError("There is no question in this chat to ask again.")
            return self._make(Call(self._named(chat), conversation, terms, keeps_partial=False))

    @property
    def chats(self) -> dict[str, Conversation]:
        """All chats by name, oldest first; that of questions outside of any chat has no name."""
        return self._chats.all()

    @property
    def current_chat(self) -> str:
        """Name of the chat of the latest answer, empty outside of any chat."""
        return self._chats.current

    def conversation(self, chat: str | None = None) -> Conversation:
        """Return a chat, by default that of the latest answer.

        Raises:
            ConversationError: if there is none.
        """
        return self._chats.require(chat)

    def reset(self, chat: str | None = None, *, everything: bool = False) -> tuple[str, ...]:
        """Forget a chat, by default that of the latest answer.

        Args:
            chat: its name.
            everything: forget all chats.

        Returns:
            The names of what was forgotten; none if there was nothing.

        Raises:
            OptionError: for a name together with `everything`.
            BusyError: if another call is running.
        """
        if everything and chat is not None:
            raise OptionError(f"Forget either {chat!r} or everything.")
        self._refuse_if_busy()
        with self._lock:
            return self._chats.clear() if everything else self._chats.reset(chat)

    def export_chat(self, path: str | os.PathLike[str], chat: str | None = None) -> Path:
        """Write a chat to a file: ``.json`` with its images, to be read back, or ``.md``.

        Args:
            path: the file. One that is there is replaced.
            chat: name of the chat; by default that of the latest answer.

        Raises:
            ConversationError: if there is no such chat, or the file cannot be written.
        """
        from glm4v_magic.session.chat_file import write_chat

        return write_chat(path, self._chats.require(chat), self._named(chat))

    def import_chat(
        self,
        path: str | os.PathLike[str],
        chat: str | None = None,
        *,
        limits: Limits | None = None,
    ) -> str:
        """Read a chat that `export_chat` wrote as JSON; a follow-up goes on with it.

        Args:
            path: the file.
            chat: what to call the chat; its own name by default.
            limits: what is refused of its images; see `images.Limits`.

        Returns:
            The name of the chat.

        Raises:
            ConversationError: if the file is no chat, or another chat has this name.
            ImageError: if an image in it cannot be read.
            BusyError: if another call is running.
        """
        from glm4v_magic.session.chat_file import read_chat

        name, conversation = read_chat(path, limits)
        name = name if chat is None else chat
        self._refuse_if_busy()
        with self._lock:
            self._chats.add(name, conversation)
        return name

    def map(
        self,
        prompt: str,
        items: object,
        *,
        column: object = None,
        images: object = (),
        names: Mapping[str, object] | None = None,
        raw: bool = False,
        batch_size: int | None = None,
        fresh: bool = False,
        read: Read | None = None,
        system: str | None = None,
        on_row: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> Any:
        """Ask the same about many images or values, each in a conversation of its own.

        Rows that fail keep their error and the others go on. What was answered in this session
        before is not asked again.

        Args:
            prompt: the question; ``{{item}}``, ``{{index}}`` and ``{{row.name}}`` differ from row
                to row, see `mapping.items`.
            items: a list of images or values, a folder, a pattern, a pandas Series, a DataFrame.
            column: of a DataFrame, the one that holds the images or values.
            images: images that go with every row.
            names: what else expressions in the prompt may use.
            raw: leave expressions as they are.
            batch_size: rows to ask at once, halved when a GPU has no room for them; 8 by default,
                1 of a large model on the CPU, and of a server.
            fresh: ask every row, answered before or not.
            read: how an item becomes images; `images.to_images` by default.
            system: what the model is told before each question; nothing if empty.
            on_row: called after each row.
            options: as `ask` takes them, but for those of a chat. They count for each row by
                itself: with a `seed` every row is answered as `ask` would with this seed, without
                one each row draws its own and reports it; an answer that is not in its `format` is
                its row's error; answers that break the `schema` are corrected together.
                `on_start` is told of the images that go with every row, and not called at all
                if every answer is known. Where rows are asked at once, `on_text` is called after
                each step, with no text.

        Returns:
            `mapping.results.Rows`, or a DataFrame for a Series or a DataFrame; see
            `mapping.results.result_of`.

        Raises:
            InputError: if the items or options cannot be used, or the prompt fails for every row.
            MapInterrupted: on an interrupt; its `result` holds the rows that are done.
            CheckpointError, PlacementError: if the model has to be loaded and cannot be.
            EngineError: if a server fails for two rows in turn; the same call then goes on where
                it stopped, and what is done is the `result` of the latest `Progress`.
            BusyError: if another call is running.
        """
        from glm4v_magic.calls.prompt import require_text
        from glm4v_magic.images import to_images
        from glm4v_magic.mapping import runner as batch
        from glm4v_magic.mapping.answer_cache import AnswerStore, model_key
        from glm4v_magic.mapping.items import Items, items_of, plan

        terms = terms_of(**options)
        if batch_size is not None:
            check("batch_size", batch_size)
        if not isinstance(items, Items):
            items = items_of(items, "items", column=column)
        rows = plan(prompt, items, names or {}, raw=raw)
        shared = images_of(images)
        self._refuse_if_busy()
        with self._lock:
            choice = self._choice
            if choice.model is None:
                choice = replace(choice, model=terms.model)
            job = batch.Job(
                terms,
                require_text(system) if system else None,
                shared,
                read or to_images,
                model_key(choice),
                batch_size,
                fresh,
            )
            at_least = len(shared) + rows[0].is_image
            bare = Request(Conversation(), terms.sampling)

            def engine_for_rows() -> Engine:
                engine = self._engine
                if engine is None:
                    found = _find(choice)
                    if not isinstance(found, ServerAddress):
                        refuse_thinking(bare, found.name, thinks=False)
                        refuse_more_than(found.max_images, at_least, found.name, "each row")
                    engine = self._open(choice, found, terms.on_progress)
                refuse_thinking(bare, engine.info.model, engine.info.thinks)
                refuse_more_than(engine.info.max_images, at_least, engine.info.model, "each row")
                terms.on_start(engine.info, shared)
                return engine

            self._store = self._store or AnswerStore()
            return batch.run(rows, job, engine_for_rows, self._store, items, on_row or ignore)

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
    def recorder(self) -> ActivityRecorder:
        """What notes which part of the model is at work, while an image of it is open."""
        return self._recorder

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

    def _named(self, chat: str | None) -> str:
        return self._chats.current if chat is None else chat

    def _before(
        self, chat: str | None, follow_up: bool, system: str | None
    ) -> tuple[str, Conversation]:
        """Return the chat that a question belongs to, and what was said in it."""
        from glm4v_magic.calls.prompt import require_text

        if chat is not None and not isinstance(chat, str):
            raise OptionError(f"chat is {chat!r}, but must be a name.")
        if follow_up:
            name, before = self._named(chat), self._chats.require(chat)
        elif chat is None:
            name, before = UNNAMED, Conversation()
        else:
            name, before = chat, self._chats.get(chat) or Conversation()
        if system is not None:
            before = before.with_system(require_text(system) if system else "")
        return name, before

    def _make(self, call: Call) -> Answer:
        """Make a call, and keep what comes of it."""
        engine = self._ready(call.conversation, call.terms)
        call.terms.on_start(engine.info, call.conversation.images)
        try:
            generation = generation_of(
                engine,
                Request(call.conversation, call.terms.sampling),
                call.terms.on_text,
                call.terms.on_thinking,
            )
        except GenerationInterrupted as stopped:
            stopped.answer = self._last = answer_of(call, stopped.generation, engine.info)
            if call.keeps_partial:
                self._keep(call, stopped.answer)
            raise
        answer = answer_of(call, generation, engine.info)
        try:
            answer = in_form(answer, call, engine)
        except FormatError as error:
            answer = error.answer or answer
            raise
        except KeyboardInterrupt:
            # While it was corrected: the first answer is whole, if not in its form.
            interrupt = GenerationInterrupted({0: generation})
            interrupt.answer = answer
            raise interrupt from None
        finally:
            self._last = answer
            self._keep(call, answer)
        return answer

    def _keep(self, call: Call, answer: Answer) -> None:
        complete = answer.finish_reason == "stop"
        # A sign of which only the first bytes came is written again when the answer is carried on.
        text, thinking = (
            said if complete else said.rstrip("\ufffd") for said in (answer.text, answer.thinking)
        )
        self._chats.keep(
            call.chat, call.conversation.with_answer(text, complete=complete, thinking=thinking)
        )

    def _ready(self, conversation: Conversation, terms: Terms) -> Engine:
        """Return the engine, loaded if there was none, if it can be asked this."""
        request = Request(conversation, terms.sampling)
        engine = self._engine
        if engine is None:
            choice = self._choice
            if choice.model is None:
                choice = replace(choice, model=terms.model)
            found = _find(choice)
            if not isinstance(found, ServerAddress):
                refuse_thinking(request, found.name, thinks=False)
                refuse_too_many(conversation, found.name, found.max_images)
            engine = self._open(choice, found, terms.on_progress)
        refuse_thinking(request, engine.info.model, engine.info.thinks)
        refuse_too_many(conversation, engine.info.model, engine.info.max_images)
        return engine

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
            self._engine = local.load(
                found, placement, recorder=self._recorder, on_progress=on_progress
            )
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
