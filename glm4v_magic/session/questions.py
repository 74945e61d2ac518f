"""`Questions`: asked of the model in use, with the chats that they and their answers go to."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_magic.calls.call import Call, answer_of, generated, in_form, sourced, terms_of
from glm4v_magic.calls.prompt import require_text
from glm4v_magic.calls.refusals import refuse_call, refuse_parts_of_no_video, refuse_place
from glm4v_magic.calls.tags import shown
from glm4v_magic.calls.tasks import asked
from glm4v_magic.core.conversation import ENDED, Answer, Conversation, Message
from glm4v_magic.core.errors import (
    ConversationError,
    EngineError,
    FormatError,
    GenerationInterrupted,
    OptionError,
    OutOfMemoryError,
)
from glm4v_magic.core.events import Done, Event, Started
from glm4v_magic.core.model import EngineInfo
from glm4v_magic.core.options import VideoParts, of_group
from glm4v_magic.core.python_options import accepts
from glm4v_magic.core.remarks import Remark, remark
from glm4v_magic.core.tokens import joined
from glm4v_magic.session.chats import UNNAMED, Chats
from glm4v_magic.session.model_in_use import ModelInUse
from glm4v_magic.session.stream import Stream

if TYPE_CHECKING:
    from glm4v_magic.calls.answer import ImageAnswer
    from glm4v_magic.core.image import SourcedImage
    from glm4v_magic.core.video import SourcedVideo
    from glm4v_magic.engines import Engine
    from glm4v_magic.images import Limits

__all__ = ["OF_A_VIDEO", "Questions"]

OF_A_VIDEO = tuple(each.name for each in of_group(VideoParts))
"""Options that say which part of a video is seen."""


class Questions(ModelInUse):
    """Questions to one model, and the conversations with it, which outlive the model."""

    def __init__(self, engine: Engine | None = None) -> None:
        super().__init__(engine)
        self._last: Answer | None = None
        self._chats = Chats()

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

    def _question(
        self,
        text: str,
        images: object,
        video: object,
        before_video: int | None,
        options: Mapping[str, Any],
    ) -> Message:
        said = require_text(text)
        videos = self._videos(video, {each: options.get(each) for each in OF_A_VIDEO})
        found = self._sourced(images)
        refuse_place(before_video, len(found), with_video=bool(videos))
        return Message("user", said, found, videos=videos, before_videos=before_video)

    def _videos(self, video: object, parts: Mapping[str, Any]) -> tuple[SourcedVideo, ...]:
        from glm4v_magic.images.video import to_video

        refuse_parts_of_no_video(parts, with_video=video is not None)
        if video is None:
            return ()
        self.require_video()
        return (to_video(video, "video", **parts),)

    def _sourced(self, images: object) -> tuple[SourcedImage, ...]:
        if isinstance(images, list | tuple):
            self.require_images(len(images))
        return sourced(images)

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
        call = replace(call, lend=self._lending(engine))
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


def _left(answer: Answer, *, in_chat: bool) -> Remark:
    """Return where an interrupt leaves an answer, and how to go on with it."""
    if not in_chat:
        return remark("retry_interrupted")
    if answer.finish_reason in ENDED:
        return remark("interrupted_after_the_answer")
    return remark("answer_interrupted")
