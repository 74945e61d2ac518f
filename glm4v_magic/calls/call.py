"""One question to a model: its terms, its answer, and the format of the answer."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from glm4v_magic.calls.answer import ImageAnswer
from glm4v_magic.calls.asking import asking
from glm4v_magic.calls.boxes import Frames, marks
from glm4v_magic.calls.forms import Form, correction, find_json, form_of
from glm4v_magic.calls.tags import shown
from glm4v_magic.calls.tasks import EXTRACT
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import (
    ENDED,
    Answer,
    Conversation,
    Generation,
    Lend,
    Message,
    Origin,
    Request,
)
from glm4v_magic.core.errors import (
    FormatError,
    Glm4vError,
    OptionError,
)
from glm4v_magic.core.events import Correcting, Failed, Finished, Piece, Waiting
from glm4v_magic.core.options import AnswerForm, Sampling, of_group, taken
from glm4v_magic.core.tokens import joined
from glm4v_magic.core.wording import counted

if TYPE_CHECKING:
    from glm4v_magic.core.image import SourcedImage
    from glm4v_magic.core.model import EngineInfo
    from glm4v_magic.engines import Engine

__all__ = [
    "Call",
    "Terms",
    "answer_of",
    "corrected",
    "correction_of",
    "generated",
    "in_form",
    "sourced",
    "terms_of",
    "with_value",
]


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms of a question; see `Session.stream`.

    Attributes:
        sampling: sampling options.
        form: format of the answer.
        model: model to load if none was chosen yet.
        constraint: constraint that the engine is asked to follow; the form is checked in any case.
        task: task whose published prompt is the question, if any.
    """

    sampling: Sampling
    form: Form
    model: str | None
    constraint: Constraint | None = None
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A question to the model, and the chat that keeps its answer.

    Attributes:
        chat: name of the chat that the answer is added to.
        conversation: conversation to send.
        terms: terms of the question.
        keeps_partial: whether an interrupted answer is added to the chat, too.
        lend: gives the engine later, to look into the model; ``None`` if nobody will ask.
    """

    chat: str
    conversation: Conversation
    terms: Terms
    keeps_partial: bool = True
    lend: Lend | None = None

    @property
    def request(self) -> Request:
        """Request for the engine."""
        told = self.conversation.as_written()
        return Request(told, self.terms.sampling, self.terms.constraint)


def sourced(images: object) -> tuple[SourcedImage, ...]:
    """Return `images` as `images.to_images` reads them; an empty tuple for ``None``."""
    from glm4v_magic.images import to_images

    if images is None or (isinstance(images, list | tuple) and not images):
        return ()
    return to_images(images, "images")


def _about_nothing(text: str, generation: Generation) -> str:
    """Say that a model has ended its answer without a word; empty if there is an answer."""
    if text or generation.finish_reason not in ENDED:
        return ""
    return f"Empty answer: {'only thinking came' if generation.thinking else 'not a word came'}."


def answer_of(call: Call, generation: Generation, info: EngineInfo) -> ImageAnswer:
    """Return a generation as an answer; a continued one includes its earlier part."""
    conversation = call.conversation
    before = conversation.partial or Message("assistant", "")
    begun = before.written or before.text
    written = begun + generation.text
    said = shown(written, complete=generation.finish_reason in ENDED)
    found = marks(
        written,
        [image.original_size for image in conversation.images],
        lists=call.terms.form.format not in ("json", "code"),
        frames=Frames.of(conversation.videos),
    )
    return ImageAnswer(
        text=said.text,
        prompt=conversation.question,
        model=info.model,
        usage=generation.usage,
        finish_reason=generation.finish_reason,
        seed=generation.seed,
        notice=" ".join(
            filter(None, (info.notice, generation.notice, _about_nothing(said.text, generation)))
        ),
        images=conversation.images,
        format=call.terms.form.format,
        plan=info.plan,
        thinking=before.thinking + generation.thinking,
        seen=generation.seen,
        tokens=joined(
            before.tokens, said.moved(generation.tokens, len(begun)), said.place(len(begun))
        ),
        thinking_tokens=joined(
            before.thinking_tokens, generation.thinking_tokens, len(before.thinking)
        )
        or (),
        choices=generation.choices,
        boxes=found.boxes,
        points=found.points,
        boxes_fault=found.fault,
        written=written if said.cuts else "",
        videos=conversation.videos,
        origin=None if call.lend is None else Origin(call.request, generation.ids, call.lend),
    )


def generated(engine: Engine, request: Request) -> Generator[Piece | Waiting, None, Generation]:
    """Send one request to an engine: yields the pieces, returns the whole generation.

    The pieces come without the tags around boxes; the generation keeps them.

    Raises:
        GenerationInterrupted: on an interrupt, also one that is thrown in, with what was said
            until then.
        Glm4vError: as `engines.Engine.stream`.
    """
    generation: Generation | None = None
    with asking(engine, [request]) as events:
        for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                generation = event.generation
            else:
                yield event
    assert generation is not None  # an engine finishes every row, or raises
    return generation


def in_form(
    answer: Answer, call: Call, engine: Engine
) -> Generator[Correcting | Piece | Waiting, None, Answer]:
    """Return the answer with its parsed value, corrected once if it violates a schema.

    Raises:
        FormatError: if it does not follow its format; `answer` holds it.
        GenerationInterrupted: if the correction is interrupted.
    """
    try:
        return with_value(answer, call.terms.form)
    except FormatError as error:
        fault = error
    again = correction_of(answer, call, fault, is_here=engine.info.server is None)
    if again is None:
        raise fault
    yield Correcting(fault.what)
    try:
        generation = yield from generated(engine, again)
    except Glm4vError as error:
        fault.what += f" Asking again failed: {error.what}"
        fault.advise_like(error)
        raise fault from None
    second = answer_of(replace(call, conversation=again.conversation), generation, engine.info)
    return with_value(corrected(answer, second, fault.what), call.terms.form)


def correction_of(
    answer: Answer, call: Call, fault: FormatError, *, is_here: bool
) -> Request | None:
    """Return the request for a correction; ``None`` if asking again would not help.

    Args:
        answer: the first answer.
        call: its call.
        fault: what is wrong with it. If it followed its form until it was cut off, as it would be
            once more, this comes to say where.
        is_here: whether the model is not on a server, so that it follows forms.
    """
    form = call.terms.form
    is_checked = form.schema is not None or form.choices or form.regex
    if isinstance(fault.__cause__, OptionError):
        return None
    if is_here and _breaks_off(answer, call):
        written = counted(answer.usage.new_tokens or 0, "token")
        fault.what = f"The answer breaks off after {written}."
        return None
    if not is_checked:
        return None
    first = call.conversation.with_answer(answer.text, complete=True, written=answer.written)
    again = first.add(Message("user", correction(fault.what.rstrip("."), form)))
    return Request(again.as_written(), call.terms.sampling, call.terms.constraint)


def _breaks_off(answer: Answer, call: Call) -> bool:
    """Tell whether the limit cut off an answer that was written in its form, token by token."""
    from glm4v_magic.engines.grammars import is_available

    is_followed = call.terms.constraint is not None and is_available()
    # What is carried on may have begun as prose.
    if answer.finish_reason != "length" or not is_followed or call.conversation.partial:
        return False
    if call.terms.form.regex:
        return True
    try:
        find_json(answer.text)
    except FormatError:
        return True
    return False


def corrected(first: Answer, second: Answer, what: str) -> Answer:
    """Return the second answer with the usage of both; `what` was wrong with the first."""
    return replace(
        first,
        text=second.text,
        usage=first.usage + second.usage,
        finish_reason=second.finish_reason,
        seed=second.seed,
        corrected=what,
        thinking=second.thinking,
        tokens=second.tokens,
        thinking_tokens=second.thinking_tokens,
        choices=second.choices,
        boxes=second.boxes,
        points=second.points,
        boxes_fault=second.boxes_fault,
        written=second.written,
        origin=second.origin,
    )


def with_value(answer: Answer, form: Form) -> Answer:
    """Return the answer with its parsed value.

    Raises:
        FormatError: if it does not follow its format; `answer` holds it. Its cause is an
            `OptionError` if the schema has a reference that cannot be resolved.
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


def terms_of(options: Mapping[str, Any], kept: Mapping[str, Any] | None = None) -> Terms:
    """Return the terms of a call from options of the table, checked; others are left out.

    Args:
        options: the options.
        kept: form of the answer that is carried on, as `Message.form`; it counts unless `options`
            name another.

    Raises:
        OptionError: if the form is invalid; see `form_of`.
    """
    task = options.get("task")
    given = {each.name: options.get(each.name) for each in of_group(AnswerForm)}
    if all(value is None for value in given.values()):
        given |= {"format": "json"} if task == EXTRACT else kept or {}
    form = form_of(**given)
    return Terms(taken(Sampling, options), form, options.get("model"), form.constraint, task)
