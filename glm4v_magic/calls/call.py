"""One call of a model: its terms, its answer, and the form that the answer is asked in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from glm4v_magic.calls.forms import Form, correction, form_of
from glm4v_magic.core.conversation import Answer, Conversation, Generation, Message, Request
from glm4v_magic.core.errors import ConversationError, FormatError, Glm4vError, OptionError
from glm4v_magic.core.events import EngineEvent, Finished, Reclassified, Text, Thinking
from glm4v_magic.core.options import Format, Sampling, check

if TYPE_CHECKING:
    from glm4v_magic.core.model import EngineInfo, LoadProgress
    from glm4v_magic.engines import Engine
    from glm4v_magic.images import SourcedImage

__all__ = [
    "Call",
    "OnProgress",
    "OnStart",
    "OnText",
    "Terms",
    "answer_of",
    "checked_sampling",
    "corrected",
    "correction_of",
    "generation_of",
    "ignore",
    "images_of",
    "in_form",
    "refuse_more_than",
    "refuse_thinking",
    "refuse_too_many",
    "tell",
    "terms_of",
    "with_value",
]

OnProgress: TypeAlias = "Callable[[LoadProgress], None]"
OnStart: TypeAlias = "Callable[[EngineInfo, tuple[SourcedImage, ...]], None]"
OnText: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Terms:
    """How a call of the model is made, and whom it tells; see `Session.ask`."""

    sampling: Sampling
    form: Form
    model: str | None
    on_progress: OnProgress
    on_start: OnStart
    on_text: OnText
    on_thinking: OnText
    on_correction: OnText


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the model, and what becomes of its answer.

    Attributes:
        chat: name of the chat that the answer goes into.
        conversation: what is sent.
        terms: how.
        keeps_partial: whether an interrupted answer goes into the chat too.
    """

    chat: str
    conversation: Conversation
    terms: Terms
    keeps_partial: bool = True


def ignore(*_: object) -> None:
    """Take news that nobody asked for."""


def images_of(images: object) -> tuple[SourcedImage, ...]:
    """Return what `images.to_images` makes of `images`; nothing of nothing."""
    from glm4v_magic.images import to_images

    if images is None or (isinstance(images, list | tuple) and not images):
        return ()
    return to_images(images, "images")


def refuse_too_many(conversation: Conversation, model: str, most: int | None) -> None:
    """Refuse a conversation with more images than a model takes.

    Raises:
        ConversationError: if there are more than `most`.
    """
    *before, latest = conversation.messages
    stayed = any(message.images for message in before)
    refuse_more_than(
        most,
        len(conversation.images),
        model,
        "this one",
        "The images before are still in it: leave the new one out, or ask a fresh question."
        if stayed and latest.images
        else "Ask about them one after the other, or join them into one image.",
    )


def refuse_more_than(
    most: int | None, given: int, model: str, whose: str = "this row", hint: str = ""
) -> None:
    """Refuse more images than a model takes.

    Raises:
        ConversationError: if there are more than `most`.
    """
    if most is not None and given > most:
        few = "one image" if most == 1 else f"{most} images"
        raise ConversationError(
            f"{model} takes {few} in a conversation, and {whose} has {given}.", hint
        )


def refuse_thinking(request: Request, model: str, thinks: bool | None) -> None:
    """Refuse to have a model think that cannot.

    Raises:
        OptionError: if it is told to.
        ConversationError: if it would carry on what another model was thinking.
    """
    if thinks is not False:
        return
    if request.sampling.thinking:
        raise OptionError(
            f"{model} does not think before it answers.",
            code="model_does_not_think",
        )
    partial = request.conversation.partial
    if partial is not None and partial.thinking and not partial.text:
        raise ConversationError(
            f"The answer was stopped while its model was thinking, and {model} does not think.",
            code="thinking_cannot_go_on",
        )


def tell(
    engine: Engine,
    requests: Sequence[Request],
    on_row: Callable[[int, Generation], None],
    on_text: OnText,
    on_thinking: OnText,
) -> None:
    """Answer requests, and call back with what the engine tells.

    Raises:
        GenerationInterrupted: on an interrupt, also one that is raised by a callback.
    """
    said: list[str] = []

    def take(event: EngineEvent) -> None:
        match event:
            case Text():
                said.append(event.text)
                on_text(event.text)
            case Thinking():
                on_thinking(event.text)
            case Reclassified():
                on_thinking("".join(said))
            case Finished():
                on_row(event.row, event.generation)

    with contextlib.closing(engine.stream(requests)) as events:
        for event in events:
            interrupt = None
            try:
                take(event)
            except KeyboardInterrupt as raised:
                interrupt = raised
            if interrupt is not None:
                events.throw(interrupt)


def generation_of(
    engine: Engine, request: Request, on_text: OnText, on_thinking: OnText
) -> Generation:
    """Answer one request; see `tell`."""
    found: dict[int, Generation] = {}
    tell(engine, [request], found.__setitem__, on_text, on_thinking)
    return found[0]


def answer_of(call: Call, generation: Generation, info: EngineInfo) -> Answer:
    """Return the answer that a generation is; a carried-on one with what was said before."""
    conversation = call.conversation
    before = conversation.partial or Message("assistant", "")
    return Answer(
        text=before.text + generation.text,
        prompt=conversation.question,
        model=info.model,
        usage=generation.usage,
        finish_reason=generation.finish_reason,
        seed=generation.seed,
        notice=info.notice,
        images=conversation.images,
        format=call.terms.form.format,
        plan=info.plan,
        thinking=before.thinking + generation.thinking,
    )


def in_form(answer: Answer, call: Call, engine: Engine) -> Answer:
    """Return the answer with what it holds in its form, corrected once if there is a schema.

    Raises:
        FormatError: if it is not in that form; `answer` holds it.
        GenerationInterrupted: if the correction is interrupted.
    """
    try:
        return with_value(answer, call.terms.form)
    except FormatError as error:
        fault = error
    again = correction_of(answer, call, fault)
    if again is None:
        raise fault
    call.terms.on_correction(fault.what)
    try:
        generation = generation_of(engine, again, call.terms.on_text, call.terms.on_thinking)
    except Glm4vError as error:
        fault.what += f" Asking again failed: {error.what}"
        fault.advise_like(error)
        raise fault from None
    return with_value(corrected(answer, generation, fault.what), call.terms.form)


def correction_of(answer: Answer, call: Call, fault: FormatError) -> Request | None:
    """Return what to ask after an answer at fault; ``None`` if asking again would not help."""
    if call.terms.form.schema is None or isinstance(fault.__cause__, OptionError):
        return None
    first = call.conversation.with_answer(answer.text, complete=True)
    again = first.add(Message("user", correction(fault.what.rstrip("."))))
    return Request(again, call.terms.sampling)


def corrected(first: Answer, second: Answer | Generation, what: str) -> Answer:
    """Return the correction of an answer in which `what` was wrong; its usage is that of both."""
    return replace(
        first,
        text=second.text,
        usage=first.usage + second.usage,
        finish_reason=second.finish_reason,
        seed=second.seed,
        corrected=what,
        thinking=second.thinking,
    )


def with_value(answer: Answer, form: Form) -> Answer:
    """Return the answer with what it holds in its form.

    Raises:
        FormatError: if it is not in that form; `answer` holds it. It is caused by an `OptionError`
            if the schema refers to what is not in it.
    """
    try:
        return replace(answer, value=form.read(answer.text))
    except OptionError as error:
        fault = FormatError(error.what)
        fault.advise_like(error)
        fault.__cause__ = error
    except FormatError as error:
        fault = error
        if answer.finish_reason == "length":
            fault.advise(code="answer_cut_off")
    fault.answer = answer
    raise fault


def terms_of(
    *,
    format: Format | None = None,  # noqa: A002  as the option of the magic
    schema: object = None,
    model: str | None = None,
    on_progress: OnProgress | None = None,
    on_start: OnStart | None = None,
    on_text: OnText | None = None,
    on_thinking: OnText | None = None,
    on_correction: OnText | None = None,
    **sampling: Any,
) -> Terms:
    """Return the terms of a call; arguments as `Session.ask`.

    Raises:
        OptionError: if one of them makes no sense.
    """
    return Terms(
        checked_sampling(Sampling(**sampling)),
        form_of(format, schema),
        model,
        on_progress or ignore,
        on_start or ignore,
        on_text or ignore,
        on_thinking or ignore,
        on_correction or ignore,
    )


def checked_sampling(sampling: Sampling) -> Sampling:
    """Refuse values that no model can sample with, by the name the user knows them."""
    for each in fields(sampling):
        check(each.name, getattr(sampling, each.name))
    return sampling
