"""What a model does not take, refused before it is asked: images, videos, thinking, tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.conversation import Conversation, Request
from glm4v_magic.core.errors import ConversationError, OptionError

if TYPE_CHECKING:
    from glm4v_magic.calls.call import Call

__all__ = [
    "Takes",
    "refuse_call",
    "refuse_more_than",
    "refuse_more_than_fit",
    "refuse_parts_of_no_video",
    "refuse_place",
    "refuse_task",
    "refuse_thinking",
    "refuse_too_many",
    "refuse_too_many_at_once",
    "refuse_video",
    "takes_of",
]


@dataclass(frozen=True, slots=True)
class Takes:
    """What a model takes; attributes as in `EngineInfo`, ``None`` where a server does not tell."""

    name: str
    max_images: int | None
    thinks: bool | None
    takes_video: bool | None
    tasks: tuple[str, ...] | None
    efforts: tuple[str, ...]


def takes_of(name: str, known: Any) -> Takes:
    """Return what a model takes.

    Args:
        name: name of the model.
        known: a `Checkpoint`, or an `EngineInfo`.
    """
    return Takes(
        name, known.max_images, known.thinks, known.takes_video, known.tasks, known.efforts
    )


def refuse_call(call: Call, model: Takes) -> None:
    """Raise an error if a model does not take a question.

    Raises:
        OptionError: if it does not have the task, or cannot think as it is asked to.
        ConversationError: if it does not take as many images, or video, or would continue another
            model's thinking.
    """
    refuse_task(call.terms.task, model.name, model.tasks, len(call.conversation.images))
    refuse_thinking(call.request, model.name, model.thinks, model.efforts)
    refuse_too_many(call.conversation, model.name, model.max_images)
    if call.conversation.videos:
        refuse_video(model.name, model.takes_video)


def refuse_too_many(conversation: Conversation, model: str, most: int | None) -> None:
    """Raise ConversationError if a conversation has more images than the model takes.

    Raises:
        ConversationError: if there are more than `most`.
    """
    *before, latest = conversation.messages
    stayed = any(message.images for message in before)
    given = len(conversation.images)
    if stayed and latest.images:
        hint = "The images before are still in it: leave the new one out, or ask a fresh question."
        refuse_more_than(most, given, model, "this one", hint)
    else:
        refuse_too_many_at_once(given, model, most)


def refuse_too_many_at_once(given: int, model: str, most: int | None) -> None:
    """Raise ConversationError if a question has more images than the model takes.

    Raises:
        ConversationError: if there are more than `most`.
    """
    hint = "Ask about them one after the other, or join them into one image."
    refuse_more_than(most, given, model, "this one", hint)


def refuse_more_than_fit(given: int, model: str, least: int, context: int | None) -> None:
    """Raise ConversationError if images cannot fit into the context, however small they are.

    Args:
        given: number of images.
        model: name of the model.
        least: fewest tokens that an image takes.
        context: context length in tokens; ``None`` if it is not known.
    """
    if context is not None and given * least > context:
        raise ConversationError(
            f"{given:,} images take at least {given * least:,} tokens, and {model} holds "
            f"{context:,} with the answer.",
            "Ask about them one after the other, or join them into one image.",
        )


def refuse_more_than(
    most: int | None, given: int, model: str, whose: str = "this row", hint: str = ""
) -> None:
    """Raise ConversationError if there are more images than the model takes.

    Raises:
        ConversationError: if there are more than `most`.
    """
    if most is not None and given > most:
        few = "one image" if most == 1 else f"{most} images"
        raise ConversationError(
            f"{model} takes {few} in a conversation, and {whose} has {given}.", hint
        )


def refuse_video(model: str, takes_video: bool | None) -> None:
    """Raise ConversationError unless a model takes video.

    Args:
        model: name of the model.
        takes_video: whether it does; ``None`` for that of a server.
    """
    if takes_video is None:
        raise ConversationError(
            f"{model} is on a server, and videos are not sent to servers.",
            "Ask about single frames of it, as images.",
        )
    if not takes_video:
        raise ConversationError(
            f"{model} takes no video.", "Ask about single frames of it, as images."
        )


def refuse_parts_of_no_video(parts: Mapping[str, Any], *, with_video: bool) -> None:
    """Raise OptionError for options about a video where there is none."""
    for name, value in parts.items():
        if value is not None and not with_video:
            raise OptionError(f"{name} is about a video, and there is none.", option=name)


def refuse_place(before_video: int | None, images: int, *, with_video: bool) -> None:
    """Raise OptionError unless so many of the images can stand before the video."""
    if before_video is not None and not (with_video and 0 <= before_video <= images):
        there = f"are {images} images to choose from" if with_video else "is no video"
        raise OptionError(f"before_video is {before_video}, but there {there}.")


def refuse_thinking(
    request: Request, model: str, thinks: bool | None, efforts: Sequence[str] = ()
) -> None:
    """Raise an error if a request asks for thinking, or an effort, that the model does not have.

    Args:
        request: the request.
        model: name of the model.
        thinks: whether the model thinks; ``None`` if a server does not tell.
        efforts: levels of reasoning effort that it offers.

    Raises:
        OptionError: if the request asks for thinking, or limits it.
        ConversationError: if it would continue another model's thinking.
    """
    effort = request.sampling.effort
    if effort is not None and effort not in efforts and thinks is not None:
        there = f"it takes {', '.join(efforts)}" if efforts else "it has no choice of it"
        raise OptionError(
            f"{model} does not think with effort {effort}: {there}.", code="no_such_effort"
        )
    if thinks is not False:
        return
    if request.sampling.thinking:
        raise OptionError(
            f"{model} does not think before it answers.",
            code="leave_thinking_out",
        )
    if request.sampling.max_thinking is not None:
        raise OptionError(
            f"{model} does not think before it answers, so there is no thinking to limit.",
            code="no_thinking_to_limit",
        )
    partial = request.conversation.partial
    if partial is not None and partial.thinking and not partial.text:
        raise ConversationError(
            f"The answer was stopped while its model was thinking, and {model} does not think.",
            code="thinking_cannot_go_on",
        )


def refuse_task(task: str | None, model: str, tasks: Collection[str] | None, images: int) -> None:
    """Raise OptionError if a model was not trained on a task, or there is no image for it.

    Args:
        task: the task that is asked for, if any.
        model: name of the model.
        tasks: its tasks; ``None`` if a server does not tell.
        images: number of images of the conversation.
    """
    if task is not None and tasks is not None and task not in tasks:
        raise OptionError(
            f"{model} has no task {task}: the tasks are those of GLM-OCR.",
            "Ask it a question in your own words.",
        )
    if task is not None and not images:
        raise OptionError(
            f"The task {task} reads an image, and there is none.", "Name one, before the task."
        )
