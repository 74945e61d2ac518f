"""`Session`, the Python API: a model in use and the conversations with it.

A `Session` holds at most one model in memory. It is loaded when it is first needed, or with
`Session.load`, and used by one caller at a time. It also holds the conversations with it, which
outlive the model: a chat begun with one model may go on with another.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_magic.calls.asking import asking
from glm4v_magic.calls.call import Call, Terms, answer_of, generated, in_form, sourced, terms_of
from glm4v_magic.calls.prompt import require_text
from glm4v_magic.calls.refusals import (
    Takes,
    refuse_call,
    refuse_more_than,
    refuse_more_than_fit,
    refuse_task,
    refuse_thinking,
    refuse_too_many_at_once,
    refuse_video,
    takes_of,
)
from glm4v_magic.calls.tags import shown
from glm4v_magic.calls.tasks import asked
from glm4v_magic.core.conversation import ENDED, Answer, Conversation, Message, Request
from glm4v_magic.core.errors import (
    BusyError,
    ConversationError,
    EngineError,
    FormatError,
    GenerationInterrupted,
    Glm4vError,
    OptionError,
    OutOfMemoryError,
)
from glm4v_magic.core.events import Done, Event, Started
from glm4v_magic.core.model import EngineInfo, ModelChoice
from glm4v_magic.core.options import AnswerForm, VideoParts, of_group, taken
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.python_options import accepts
from glm4v_magic.core.remarks import PYTHON, Remark, remark
from glm4v_magic.core.server_address import ServerAddress, is_address
from glm4v_magic.core.tokens import joined
from glm4v_magic.dispatch.activity import ActivityRecorder
from glm4v_magic.outside import path_text
from glm4v_magic.session.chats import UNNAMED, Chats
from glm4v_magic.session.opening import connect, find, prepare, told_what_was_released
from glm4v_magic.session.stream import Stream

if TYPE_CHECKING:
    from glm4v_magic.calls.answer import ImageAnswer
    from glm4v_magic.calls.compared import ComparedAnswers
    from glm4v_magic.checkpoints import Checkpoint
    from glm4v_magic.checkpoints.files import Stamp
    from glm4v_magic.core.image import SourcedImage
    from glm4v_magic.core.plan import Plan
    from glm4v_magic.core.remarks import Words
    from glm4v_magic.core.video import SourcedVideo
    from glm4v_magic.engines import Engine
    from glm4v_magic.engines.prefixes import CacheFacts
    from glm4v_magic.images import Limits
    from glm4v_magic.inspect.inspection import Inspection
    from glm4v_magic.inspect.tracing import Trace
    from glm4v_magic.mapping.answer_cache import AnswerStore
    from glm4v_magic.mapping.evaluation import Evaluation
    from glm4v_magic.mapping.items import Items, PlannedRow
    from glm4v_magic.mapping.runner import Job, Read, ReadVideo
    from glm4v_magic.session.comparing import Setting

__all__ = ["Session", "Status", "load"]


_OF_A_VIDEO = tuple(each.name for each in of_group(VideoParts))
_OF_SCORES = ("by", "bins")
_OF_A_CHOICE = (
    "revision",
    "device_map",
    "served_model",
    "timeout",
    "keep",
    "base",
    "lora",
    "replicas",
    "cluster",
)


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


class Session:
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

    def __init__(self, engine: Engine | None = None) -> None:
        self._lock = threading.Lock()
        self._choice = ModelChoice()
        self._stamp: Stamp | None = None
        self._engine = engine
        self._last: Answer | None = None
        self._chats = Chats()
        self._store: AnswerStore | None = None
        self._recorder = ActivityRecorder()
        self._neighbour: Session | None = None  # whose model makes room for one that is loaded here

    @accepts("load")
    def load(self, model: str | os.PathLike[str] | None = None, **options: Any) -> Session:
        """Load a model and return this session; errors as `stream_load`.

        Args:
            model: as in `stream_load`.
            options: likewise.
        """
        self.stream_load(model, **options).follow()
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
            model: folder, id of a repository on the hub, ``demo`` (the default), or the address of
                a server that speaks OpenAI's protocol. The folder may be that of an adapter.
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
        choice = _choice_of(model, options)
        return self._locked(lambda: self._load(choice))

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

    @accepts("ask")
    def ask(
        self,
        text: str,
        images: object = (),
        video: object = None,
        before_video: int | None = None,
        **options: Any,
    ) -> ImageAnswer:
        """Ask a question and return the answer; errors as `stream`.

        Args:
            text: the question.
            images: one image or a list of them; see `stream`.
            video: as in `stream`.
            before_video: likewise.
            options: where the question goes, how tokens are chosen, the form of the answer.
        """
        answer: ImageAnswer = self.stream(text, images, video, before_video, **options).follow()
        return answer

    @accepts("ask")
    def stream(
        self,
        text: str,
        images: object = (),
        video: object = None,
        before_video: int | None = None,
        **options: Any,
    ) -> Stream:
        """Ask a question about `images`, loading the model if none is loaded.

        Args:
            text: the question; empty with a ``task``.
            images: one image or a list of them, each a path, a URL, a Pillow image, bytes, an
                array, an open file or a figure. Those of the chat stay in it and are seen again.
            video: path of a clip; or frames, as a list of images or an array of frames x height x
                width x channels.
            before_video: number of images that stand before the video in the prompt; all of them by
                default.
            options: where the question goes, how tokens are chosen, the form of the answer.

        Returns:
            Its events: `Loading` if the model is loaded now, `Started`, `Thinking` and `Text` as
            they come, `Correcting` before the model is asked once more, and `Done`.

        Raises:
            InputError: if text, images or options cannot be used; nothing was loaded for it unless
                the prompt turns out to be too long.
            GenerationInterrupted: on an interrupt; its `answer` holds what was said until then.
            FormatError: if the answer is not in its form; `answer` holds it, and it is in the chat.
            CheckpointError, PlacementError: if the model has to be loaded and cannot be.
            OutOfMemoryError, EngineError: if the model or its server fails; it can be asked again.
            BusyError: if another call is running.
        """
        terms = terms_of(options)
        question = asked(text, terms.task, terms.form.schema)
        message = self._question(question, images, video, before_video, options)

        def events() -> Generator[Event, None, None]:
            name, before = self._before(options)
            yield from self._make(Call(name, before.add(message), terms))

        return self._locked(events)

    @accepts("draft")
    def draft(
        self,
        text: str,
        images: object = (),
        video: object = None,
        before_video: int | None = None,
        **options: Any,
    ) -> Conversation:
        """Return the conversation that `ask` would send.

        Args:
            text: the question.
            images: as in `stream`.
            video: likewise.
            before_video: likewise.
            options: where the question goes.

        Raises:
            InputError: as `stream`.
        """
        message = self._question(text, images, video, before_video, options)
        return self._before(options)[1].add(message)

    @accepts("carry_on")
    def carry_on(self, chat: str | None = None, **options: Any) -> ImageAnswer:
        """Carry on an answer and return all of it; errors as `stream_carry_on`.

        Args:
            chat: name of a chat; by default that of the latest answer.
            options: how tokens are chosen, for the new part; and the form of the whole answer, by
                default the one that was asked for.
        """
        answer: ImageAnswer = self.stream_carry_on(chat, **options).follow()
        return answer

    @accepts("carry_on")
    def stream_carry_on(self, chat: str | None = None, **options: Any) -> Stream:
        """Carry on the answer that was stopped, or cut off at ``max_tokens``.

        Args:
            chat: name of a chat; by default that of the latest answer.
            options: how tokens are chosen, for the new part; and the form of the whole answer, by
                default the one that was asked for.

        Returns:
            Its events, as `stream`. `Text` is the new part alone, and `Started` holds what stands
            before it; the answer of `Done` is whole, its usage that of the new part.

        Raises:
            ConversationError: if there is no such chat, or its answer is finished.
            Glm4vError: any other as `stream`.
        """
        terms_of(options)  # refused before the session is locked

        def events() -> Generator[Event, None, None]:
            conversation = self._chats.require(chat)
            partial = conversation.partial
            if partial is None:
                raise ConversationError(
                    "The latest answer is finished, so there is nothing to carry on.",
                    "Ask the next question.",
                )
            if not (partial.text or partial.thinking):  # its first token is still to come
                conversation = conversation.without_last_answer()
            terms = terms_of(options, partial.form)
            yield from self._make(Call(self._named(chat), conversation, terms))

        return self._locked(events)

    @accepts("retry")
    def retry(self, chat: str | None = None, **options: Any) -> ImageAnswer:
        """Ask again and return the new answer; errors as `stream_retry`.

        Args:
            chat: name of a chat; by default that of the latest answer.
            options: how tokens are chosen, and the form of the answer.
        """
        answer: ImageAnswer = self.stream_retry(chat, **options).follow()
        return answer

    @accepts("retry")
    def stream_retry(self, chat: str | None = None, **options: Any) -> Stream:
        """Ask the latest question again; the new answer takes the place of the old one.

        Until the new answer is there, the old one stays: an interrupt leaves it in the chat.

        Args:
            chat: name of a chat; by default that of the latest answer.
            options: how tokens are chosen, and the form of the answer. Those of the first time are
                not remembered.

        Raises:
            ConversationError: if there is no such chat, or no question in it.
            Glm4vError: any other as `stream`.
        """
        terms = terms_of(options)

        def events() -> Generator[Event, None, None]:
            before = self._chats.require(chat)
            conversation = before.without_last_answer()
            if not conversation.messages or conversation.messages[-1].role != "user":
                raise ConversationError("There is no question in this chat to ask again.")
            is_first = conversation == before  # a chat from a file may end with a question
            yield from self._make(Call(self._named(chat), conversation, terms, is_first))

        return self._locked(events)

    def inspect(self, chat: str | None = None) -> Inspection:
        """Return a look into the model that gave the latest answer of a chat.

        Args:
            chat: its name; by default that of the latest answer.

        Raises:
            ConversationError: if there is none, or it was interrupted or imported.
            EngineError: if the model is on a server, in other processes, or is no longer loaded.
            BusyError: if another call is running.
        """
        answer = self._chats.answer(chat)
        from glm4v_magic.inspect.inspection import inspected

        return inspected(answer)

    @accepts("trace")
    def trace(
        self,
        text: str,
        images: object = (),
        video: object = None,
        before_video: int | None = None,
        **options: Any,
    ) -> Trace:
        """Return nnsight's context for a question: what the model computes, to read and to change.

        The answer is computed when the block ends, by the loaded model, wherever it is, and goes
        into no chat::

            with session.trace("What colour is the circle?", "shapes.png") as trace:
                state = trace.layers[2].output.save()
            print(trace.answer.text, state.shape)

        Args:
            text: the question.
            images: as in `stream`.
            video: likewise.
            before_video: likewise.
            options: where the question goes, how tokens are chosen.

        Raises:
            OptionError: if nnsight is not installed, or an option makes no sense.
            InputError: as `stream`.
            EngineError: if no model is loaded, or it is on a server or in other processes.
            BusyError: if another call is running.
        """
        from glm4v_magic.calls.tracing import traced

        message = self._question(text, images, video, before_video, options)
        _, before = self._before(options)
        engine = self._engine
        # Weak: whoever keeps a trace does not keep the model.
        weak = (lambda: None) if engine is None else weakref.ref(engine)
        lend = partial(_lent, weakref.ref(self), weak)
        return traced(Call("", before.add(message), terms_of(options)), lend)

    @property
    def chats(self) -> dict[str, Conversation]:
        """All chats by name, oldest first; questions outside of any chat have the name ``""``."""
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
            chat: name of the chat here; by default its own.
            limits: limits on its images.

        Returns:
            The name of the chat.

        Raises:
            ConversationError: if the file is not a chat, or another chat has this name.
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

    @accepts("map")
    def map(
        self,
        prompt: str,
        items: object,
        *,
        column: object = None,
        images: object = (),
        video: object = None,
        before_video: int | None = None,
        names: Mapping[str, object] | None = None,
        read: Read | None = None,
        read_video: ReadVideo | None = None,
        **options: Any,
    ) -> Any:
        """Ask the same of many and return the rows; errors as `stream_map`.

        Args:
            prompt: the question; see `stream_map`.
            items: a list of images or values, a folder, a pattern, a pandas Series, a DataFrame.
            column: of a DataFrame, the one that holds the images or values.
            images: images that go with every row.
            video: a video that goes with every row; see `stream`.
            before_video: number of these images that stand before it; all of them by default.
            names: what else expressions in the prompt may use.
            read: how an item becomes images; `images.to_images` by default.
            read_video: how an item becomes a video; `images.video.to_video` by default.
            options: how rows are asked and how tokens are chosen.
        """
        return self.stream_map(
            prompt,
            items,
            column=column,
            images=images,
            video=video,
            before_video=before_video,
            names=names,
            read=read,
            read_video=read_video,
            **options,
        ).follow()

    @accepts("map")
    def stream_map(
        self,
        prompt: str,
        items: object,
        *,
        column: object = None,
        images: object = (),
        video: object = None,
        before_video: int | None = None,
        names: Mapping[str, object] | None = None,
        read: Read | None = None,
        read_video: ReadVideo | None = None,
        words: Words = PYTHON,
        **options: Any,
    ) -> Stream:
        """Ask the same about many images or values, each in a conversation of its own.

        Rows that fail keep their error and the others go on. What was answered in this session
        before is not asked again.

        Args:
            prompt: the question; ``{{item}}``, ``{{index}}`` and ``{{row.name}}`` differ from row
                to row, see `mapping.items`.
            items: a list of images or values, a folder, a pattern, a pandas Series, a DataFrame.
            column: of a DataFrame, the one that holds the images or values.
            images: images that go with every row.
            video: a video that goes with every row; see `stream`.
            before_video: number of these images that stand before it; all of them by default.
            names: what else expressions in the prompt may use.
            read: how an item becomes images; `images.to_images` by default.
            read_video: how an item becomes a video; `images.video.to_video` by default.
            words: front end that words the errors in a DataFrame.
            options: how rows are asked and how tokens are chosen. They count for each row by
                itself: with a ``seed`` every row is answered as `ask` would with this seed, without
                one each row draws its own and reports it; an answer that is not in its ``format``
                is its row's error; answers that break the ``schema`` are corrected together.

        Returns:
            Its events: those of `stream` with the row that they belong to, but no `Started` if
            every answer is known; `RowDone` for each row; and `MapDone`, whose result is
            `core.rows.Rows`, or a DataFrame for a Series or a DataFrame; see
            `mapping.results.result_of`. With ``save`` it is `mapping.row_file.SavedRows`.

        Raises:
            InputError: if the items or options cannot be used, or the prompt fails for every row.
            MapInterrupted: on an interrupt; its `result` holds the rows that are done.
            CheckpointError, PlacementError: if the model has to be loaded and cannot be.
            EngineError: if a server refuses the key, or fails for two rows in turn and for all that
                are being answered then. The same call goes on where it stopped, and what is done is
                the `result` of the latest `Progress`.
            SaveError: if rows cannot be written any more; likewise.
            BusyError: if another call is running.
        """
        from glm4v_magic.images import to_images
        from glm4v_magic.images.video import to_video
        from glm4v_magic.mapping.items import Items, items_of, plan
        from glm4v_magic.mapping.runner import Job

        terms = terms_of(options)
        if not isinstance(items, Items):
            items = items_of(items, "items", column=column)
        if not isinstance(names, Mapping | None):
            raise OptionError(f"names is of type {type(names).__name__}, but must be a mapping.")
        prompt = asked(prompt, terms.task, terms.form.schema)
        rows = plan(prompt, items, names or {}, raw=options.get("raw", False))
        shared = sourced(images)
        parts: dict[str, Any] = {each: options.get(each) for each in _OF_A_VIDEO}
        own_video = any(row.is_video for row in rows)
        _refuse_parts_of_no_video(parts, own_video or video is not None)
        if own_video and video is not None:
            raise OptionError("Rows are videos, and every row has another; a question has one.")
        _refuse_place(before_video, len(shared), with_video=video is not None)
        videos = () if video is None else self._videos(video, parts)
        system = options.get("system")
        told = require_text(system) if system else None

        job = Job(
            terms,
            told,
            shared,
            videos,
            before_video,
            read or to_images,
            read_video or partial(to_video, **parts),
            options.get("batch_size"),
            options.get("fresh", False),
            words,
        )
        return self._locked(partial(self._map, rows, job, items, prompt, options.get("save")))

    def _map(
        self,
        rows: Sequence[PlannedRow],
        job: Job,
        items: Items,
        prompt: str,
        save: str | os.PathLike[str] | None,
    ) -> Generator[Event, None, None]:
        """Ask all rows, and keep them in memory or in the file `save`."""
        from glm4v_magic.mapping.answer_cache import AnswerStore, model_key
        from glm4v_magic.mapping.runner import run

        choice = self._chosen(job.terms)
        self._store = self._store or AnswerStore()
        engine = self._engine_for_rows(job, rows)
        is_here = not is_address(choice.name)
        terms = _followed(job.terms, choice)
        job = replace(job, terms=terms, model=model_key(choice), is_here=is_here)
        if save is not None:
            from glm4v_magic.mapping.row_file import RowFile

            job = replace(job, kept=RowFile(save, prompt, job, rows, items))
        yield from run(rows, job, engine, self._store, items)

    def _engine_for_rows(
        self, job: Job, rows: Sequence[PlannedRow]
    ) -> Generator[Event, None, Engine]:
        """Return the engine, which takes the images and the video that each row has at least."""
        terms = job.terms
        bare = Request(Conversation(), terms.sampling)
        at_least = len(job.images) + (rows[0].is_image and not rows[0].is_video)
        has_video = bool(job.videos) or all(row.is_video for row in rows)

        def refuse(model: Takes) -> None:
            refuse_task(terms.task, model.name, model.tasks, at_least)
            refuse_thinking(bare, model.name, model.thinks, model.efforts)
            refuse_more_than(model.max_images, at_least, model.name, "each row")
            if has_video:
                refuse_video(model.name, model.takes_video)

        engine = yield from self._ready(terms, refuse)
        yield Started(engine.info, job.images)
        return engine

    @accepts("evaluate")
    def evaluate(
        self,
        dataset: object,
        prompt: str,
        *,
        answer: object,
        images: object = None,
        shared: object = (),
        video: object = None,
        before_video: int | None = None,
        names: Mapping[str, object] | None = None,
        read: Read | None = None,
        read_video: ReadVideo | None = None,
        **options: Any,
    ) -> Evaluation:
        """Ask the same of many whose answers are known, and say how many are right.

        Errors as `stream_evaluate`.

        Args:
            dataset: a DataFrame, another table, or a list of dictionaries.
            prompt: the question, as of `stream_map`.
            answer: column with the expected answers.
            images: column with the images; without one each row is in the prompt.
            shared: images that go with every row.
            video: a video that goes with every row; see `stream`.
            before_video: number of these images that stand before it; all of them by default.
            names: what else expressions in the prompt may use.
            read: as of `stream_map`.
            read_video: likewise.
            options: how rows are asked, how tokens are chosen, and how they are scored.
        """
        evaluation: Evaluation = self.stream_evaluate(
            dataset,
            prompt,
            answer=answer,
            images=images,
            shared=shared,
            video=video,
            before_video=before_video,
            names=names,
            read=read,
            read_video=read_video,
            **options,
        ).follow()
        return evaluation

    @accepts("evaluate")
    def stream_evaluate(
        self,
        dataset: object,
        prompt: str,
        *,
        answer: object,
        images: object = None,
        shared: object = (),
        video: object = None,
        before_video: int | None = None,
        names: Mapping[str, object] | None = None,
        read: Read | None = None,
        read_video: ReadVideo | None = None,
        words: Words = PYTHON,
        **options: Any,
    ) -> Stream:
        """Map a prompt over rows whose answers are known, and hold the model's against them.

        An answer is right if it is the expected one, with ``choices`` the same choice; see
        `mapping.scoring.normal` for how texts are compared. With the format json values are
        compared. A row whose answer is not in its form is wrong; one that failed, or for which no
        answer is known, does not count. Rows go on where they stopped, as those of `stream_map`.

        Args:
            dataset: a DataFrame, another table, or a list of dictionaries.
            prompt: the question, as of `stream_map`.
            answer: column with the expected answers.
            images: column with the images; without one each row is in the prompt.
            shared: images that go with every row.
            video: a video that goes with every row; see `stream`.
            before_video: number of these images that stand before it; all of them by default.
            names: what else expressions in the prompt may use.
            read: as of `stream_map`.
            read_video: likewise.
            words: likewise.
            options: how rows are asked, how tokens are chosen, and how they are scored.

        Returns:
            Its events, as of `stream_map`; the result is a `mapping.evaluation.Evaluation`, and so
            is what a `Progress` or an interrupt has of the rows until then.

        Raises:
            InputError: if there is no such column, it holds no answer, or one that is none of the
                choices; nothing was asked.
            Glm4vError: any other as `stream_map`.
        """
        from glm4v_magic.mapping.evaluating import evaluated
        from glm4v_magic.mapping.items import Items, items_of
        from glm4v_magic.mapping.scoring import BINS, truth_of

        form = terms_of(options).form
        if not isinstance(dataset, Items):
            dataset = items_of(dataset, "dataset", column=images)
        truth = truth_of(
            dataset,
            answer,
            options.get("by"),
            choices=form.choices,
            format=form.format,
            bins=options.get("bins") or BINS,
        )
        asked = {name: value for name, value in options.items() if name not in _OF_SCORES}
        stream = self.stream_map(
            prompt,
            dataset,
            images=shared,
            video=video,
            before_video=before_video,
            names=names,
            read=read,
            read_video=read_video,
            words=words,
            **asked,
        )
        return Stream(evaluated(stream, dataset, truth, is_saved=options.get("save") is not None))

    @accepts("compare")
    def compare(
        self,
        text: str,
        images: object = (),
        video: object = None,
        before_video: int | None = None,
        *,
        settings: object,
        **options: Any,
    ) -> ComparedAnswers:
        """Ask several models or settings the same and return their answers side by side.

        Errors as `stream_compare`.

        Args:
            text: the question.
            images: one image or a list of them; see `stream`.
            video: as in `stream`.
            before_video: likewise.
            settings: models and settings; see `stream_compare`.
            options: how tokens are chosen and the form of the answer, unless a setting has its own.
        """
        comparison: ComparedAnswers = self.stream_compare(
            text, images, video, before_video, settings=settings, **options
        ).follow()
        return comparison

    @accepts("compare")
    def stream_compare(
        self,
        text: str,
        images: object = (),
        video: object = None,
        before_video: int | None = None,
        *,
        settings: object,
        **options: Any,
    ) -> Stream:
        """Ask several models or settings the same, one after the other, outside of any chat.

        Answers have log-probabilities, unless they are choices, which have probabilities. What is
        loaded answers where a setting names no other model, and stays loaded. Every other model is
        loaded into a session of its own and released again. Without room for both, what is loaded
        is released first, and loaded again at the end. An error of one is kept in its column.

        Args:
            text: the question.
            images: one image or a list of them; see `stream`.
            video: as in `stream`.
            before_video: likewise.
            settings: a list of models, by name or address, and of dicts of options: ``model``,
                those of `load`, and those below.
            options: how tokens are chosen and the form of the answer, unless a setting has its own.

        Returns:
            Its events: `ColumnBegun` for each model or setting, those of `stream` without `Done`,
            and `ColumnDone`. The result is a `calls.compared.ComparedAnswers`.

        Raises:
            InputError: if the question, images, settings or options cannot be used.
            ComparisonInterrupted: on an interrupt, which ends all; `result` has what was answered.
            BusyError: if another call is running.
        """
        from glm4v_magic.session.comparing import settings_of

        columns = settings_of(settings)
        for each in columns:
            terms = terms_of(_with(options, each))
            asked(text, terms.task, terms.form.schema)
        # Without a model: what one takes of images is for its own column to say.
        message = Session()._question(text, images, video, before_video, options)
        return self._locked(partial(self._compare, text, message, columns, options))

    def _compare(
        self,
        text: str,
        message: Message,
        columns: Sequence[Setting],
        options: Mapping[str, Any],
    ) -> Generator[Event, None, None]:
        from glm4v_magic.session.comparing import Steps, compared

        chosen = self._chosen(terms_of(options))
        choices = [_meant(each, chosen) for each in columns]
        given = {name: value for name, value in options.items() if name not in _OF_A_VIDEO}
        was_loaded = self._engine is not None
        other: Session | None = None

        def ask(at: int) -> Generator[Event, None, None]:
            nonlocal other
            choice, terms = choices[at], _with(given, columns[at])
            if terms.get("logprobs") is None and terms.get("choices") is None:
                terms["logprobs"] = 0
            if choice is None:
                engine = yield from self._ready(terms_of(terms))
                session = Session(engine)
            else:
                if other is not None and other.status().choice != choice:
                    other.unload()
                    other = None
                session = other = other or Session()
                session._neighbour = self
                with session._locked(partial(session._load, choice)) as loading:
                    for event in loading:
                        yield event
            video = message.videos[0] if message.videos else None
            asking = session.stream(
                text, list(message.images), video, message.before_videos, **terms
            )
            with asking as events:
                for event in events:
                    yield self._owned(event) if choice is None else event

        def release() -> None:
            if other is not None:
                other.unload()

        # Those of one model in a row, so that each is loaded once.
        order = sorted(range(len(columns)), key=lambda at: choices.index(choices[at]))
        away = partial(self._away, was_loaded)
        steps = Steps(ask, release, partial(self._restored, away), away)
        yield from compared(text, columns, order, steps)

    def _away(self, was_loaded: bool) -> str:
        """Return the name of the model that was loaded and has made room, ``""`` for none."""
        return self._choice.name if was_loaded and self._engine is None else ""

    def _restored(self, away: Callable[[], str]) -> Generator[Event, None, None]:
        """Load again what has made room."""
        if away():
            with suppress(Glm4vError):  # the next question tells why it cannot be loaded
                engine = yield from self._ready(terms_of({}))
                yield Started(engine.info)

    def _owned(self, event: Event) -> Event:
        """Return an event whose answer is looked into with the engine of this session."""
        origin = event.answer.origin if isinstance(event, Done) else None
        if origin is None:
            return event
        assert isinstance(event, Done)
        assert self._engine is not None  # it has answered
        lend = partial(_lent, weakref.ref(self), weakref.ref(self._engine))
        return Done(replace(event.answer, origin=replace(origin, lend=lend)))

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

    def forget_answers(self) -> None:
        """Forget the answers that `map` remembers, so that equal rows are asked again."""
        self._store = None

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
        info = self.status().info
        if info is not None:
            refuse_too_many_at_once(given, info.model, info.max_images)
            refuse_more_than_fit(given, info.model, info.least_image, info.context)

    def require_video(self) -> None:
        """Raise if the loaded model takes no video, before the video is read.

        Raises:
            ConversationError: if it takes none.
        """
        info = self.status().info
        if info is not None:
            refuse_video(info.model, info.takes_video)

    def _question(
        self,
        text: str,
        images: object,
        video: object,
        before_video: int | None,
        options: Mapping[str, Any],
    ) -> Message:
        said = require_text(text)
        videos = self._videos(video, {each: options.get(each) for each in _OF_A_VIDEO})
        found = self._sourced(images)
        _refuse_place(before_video, len(found), with_video=bool(videos))
        return Message("user", said, found, videos=videos, before_videos=before_video)

    def _videos(self, video: object, parts: Mapping[str, Any]) -> tuple[SourcedVideo, ...]:
        from glm4v_magic.images.video import to_video

        _refuse_parts_of_no_video(parts, video is not None)
        if video is None:
            return ()
        self.require_video()
        return (to_video(video, "video", **parts),)

    def _sourced(self, images: object) -> tuple[SourcedImage, ...]:
        if isinstance(images, list | tuple):
            self.require_images(len(images))
        return sourced(images)

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

    @contextmanager
    def holding(self, engine: Engine | None) -> Iterator[Engine | None]:
        """Lock the session and give an engine; ``None`` if it is not the one in use.

        Raises:
            BusyError: if another call is running.
        """
        self._refuse_if_busy()
        with self._lock:
            yield engine if engine is self._engine else None

    def _named(self, chat: str | None) -> str:
        return self._chats.current if chat is None else chat

    def _before(self, options: Mapping[str, Any]) -> tuple[str, Conversation]:
        """Return the name of a question's chat, and its conversation so far."""
        chat, system = options.get("chat"), options.get("system")
        if options.get("follow_up"):
            name, before = self._named(chat), self._chats.require(chat)
        elif chat is None:
            name, before = UNNAMED, Conversation()
        else:
            name, before = chat, self._chats.get(chat) or Conversation()
        if system is not None:
            before = before.with_system(require_text(system) if system else "")
        return name, before

    def _make(self, call: Call) -> Generator[Event, None, None]:
        """Make a call and add its answer to the chat."""
        engine = yield from self._ready(call.terms, partial(refuse_call, call))
        # Weak: whoever keeps an answer does not keep the model.
        call = replace(call, lend=partial(_lent, weakref.ref(self), weakref.ref(engine)))
        conversation = call.conversation
        media = conversation.media
        seen = engine.seen(call.request) if media else ()
        yield Started(engine.info, media, conversation.partial, seen)
        try:
            generation = yield from generated(engine, replace(call.request, is_kept=True))
        except GenerationInterrupted as stopped:
            stopped.answer = self._last = answer_of(call, stopped.generation, engine.info)
            if call.keeps_partial:
                self._keep(call, stopped.answer)
            stopped.text = _left(stopped.answer, in_chat=call.keeps_partial)
            raise
        except (OutOfMemoryError, EngineError) as error:
            self._keep_said(call, error, engine.info)
            raise
        answer: Answer = answer_of(call, generation, engine.info)
        try:
            answer = yield from in_form(answer, call, engine)
        except FormatError as error:
            answer = error.answer or answer
            raise
        except KeyboardInterrupt:
            # Interrupted during a correction: the first answer is complete, though not in its form.
            interrupt = GenerationInterrupted({0: generation})
            interrupt.answer, interrupt.text = answer, _left(answer, in_chat=True)
            raise interrupt from None
        finally:
            self._last = answer
            self._keep(call, answer)
        yield Done(answer)

    def _keep_said(
        self, call: Call, error: OutOfMemoryError | EngineError, info: EngineInfo
    ) -> None:
        """Keep what was said before memory ran out or a server was gone, as after an interrupt."""
        generation = error.generations.get(0)
        if generation is None or not (generation.text or generation.thinking):
            return
        if call.keeps_partial:
            error.answer = self._last = answer_of(call, generation, info)
            self._keep(call, error.answer)
            if isinstance(error, OutOfMemoryError):
                error.advise_like(remark("ran_out_within_answer", ways=error.values["ways"]))
            else:
                error.what += " What was said until then is kept, and can be carried on."

    def _keep(self, call: Call, answer: Answer) -> None:
        complete = answer.finish_reason in ENDED
        # A character of which only the first bytes came is generated again when it is carried on.
        text, thinking, written = (
            said if complete else said.rstrip("\ufffd")
            for said in (answer.text, answer.thinking, answer.written)
        )
        if written:
            text = shown(written, complete=complete).text
        kept = call.conversation.with_answer(
            text,
            complete=complete,
            thinking=thinking,
            tokens=joined(answer.tokens, None, len(text)),
            thinking_tokens=joined(answer.thinking_tokens, None, len(thinking)) or (),
            written=written,
            form={} if complete else call.terms.form.kept,
        )
        self._chats.keep(call.chat, kept, answer)

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
            engine = connect(found)
        else:
            engine = yield from self._load_from(found, choice, old)
        if choice == self._choice and stamp != self._stamp:
            self._store = None  # of rows answered by what the files held before
        before = self._engine
        self._engine, self._choice, self._stamp = engine, choice, stamp
        if before is not None:
            before.close()
        return engine

    def _load_from(
        self, found: Checkpoint, choice: ModelChoice, old: ModelChoice | None
    ) -> Generator[Event, None, Engine]:
        """Load a model. The one before is released only if there is no room for two."""
        opening = yield from prepare(choice, found, self._recorder)
        holder: Session = self
        if old is None and self._neighbour is not None and self._neighbour._engine is not None:
            holder, old = self._neighbour, self._neighbour._choice
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


@contextmanager
def _lent(
    session: weakref.ReferenceType[Session], engine: Callable[[], Engine | None]
) -> Iterator[Engine | None]:
    """Give an engine as `Session.holding` does; ``None`` if the session is gone."""
    holder = session()
    if holder is None:
        yield None
        return
    with holder.holding(engine()) as held:
        yield held


def _left(answer: Answer, *, in_chat: bool) -> Remark:
    """Return where an interrupt leaves an answer, and how to go on with it."""
    if not in_chat:
        return remark("retry_interrupted")
    if answer.finish_reason in ENDED:
        return remark("interrupted_after_the_answer")
    return remark("answer_interrupted")


def _choice_of(model: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> ModelChoice:
    """Return a model with options of `Session.load` as a choice."""
    given = dict(options)
    for name in ("base", "lora"):
        if given.get(name) is not None:
            given[name] = os.fspath(given[name])
    if given.get("device_map") is not None:
        from glm4v_magic.planning.files import read_given

        # Read here, because a file may have changed since a model was loaded by it.
        given["device_map"] = read_given(given["device_map"])
    return ModelChoice(
        model=None if model is None else path_text(model, "The model", OptionError),
        options=taken(PlacementOptions, given),
        **{name: given[name] for name in _OF_A_CHOICE if name in given},
    )


def _meant(setting: Setting, chosen: ModelChoice) -> ModelChoice | None:
    """Return the model of a column of a comparison; ``None`` for the one that is `chosen` here."""
    if setting.model is None and not setting.loading:
        return None
    choice = _choice_of(setting.model or chosen.name, setting.loading)
    return None if choice == replace(chosen, model=chosen.name) else choice


def _with(options: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """Return the options of a column: its own before those of all, and its form as a whole."""
    forms = {each.name for each in of_group(AnswerForm)}
    left = set() if forms.isdisjoint(setting.asking) else forms
    return {name: options[name] for name in options if name not in left} | dict(setting.asking)


def _refuse_place(before_video: int | None, images: int, *, with_video: bool) -> None:
    if before_video is not None and not (with_video and 0 <= before_video <= images):
        there = f"are {images} images to choose from" if with_video else "is no video"
        raise OptionError(f"before_video is {before_video}, but there {there}.")


def _refuse_parts_of_no_video(parts: Mapping[str, Any], with_video: bool) -> None:
    for name, value in parts.items():
        if value is not None and not with_video:
            raise OptionError(f"{name} is about a video, and there is none.", option=name)


def _require(terms: Terms) -> None:
    """Raise OptionError if a model in this process cannot answer in this form."""
    if terms.constraint is not None:
        from glm4v_magic.engines.grammars import require

        require(terms.constraint)


def _followed(terms: Terms, choice: ModelChoice) -> Terms:
    """Return terms without a constraint that the model will not follow: it would change nothing.

    A model in this process does not follow a schema if llguidance is missing.
    """
    from glm4v_magic.engines.grammars import is_available

    is_checked = terms.constraint is not None and terms.constraint.schema
    if is_checked and not is_address(choice.name) and not is_available():
        return replace(terms, constraint=None)
    return terms


def load(model: str | os.PathLike[str] | None = None, **options: Any) -> Session:
    """Return a new `Session` with a model loaded; arguments as `Session.stream_load`."""
    return Session().load(model, **options)
