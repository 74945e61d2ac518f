"""Options of a question: format, sampling, system message."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glm4v_magic.calls.forms import Form, form_of
from glm4v_magic.calls.refusals import refuse_task
from glm4v_magic.calls.tasks import EXTRACT
from glm4v_magic.core.conversation import Conversation
from glm4v_magic.core.errors import OptionError, did_you_mean
from glm4v_magic.core.option_values import python_literal
from glm4v_magic.core.options import AnswerForm, Sampling, VideoParts, check, of_group
from glm4v_magic.core.typed_options import as_typed, typed
from glm4v_magic.core.video import SourcedVideo
from glm4v_magic.images import Crop, parse_crop
from glm4v_magic.images.video import is_clip, is_video, may_be_frames, to_video
from glm4v_magic.images.words import is_lookup, looked_up
from glm4v_magic.notebook.command_line import Quoted
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.live.output import show
from glm4v_magic.outside import json_value, text_of

__all__ = [
    "clips_of",
    "crop_of",
    "form_asked",
    "frames_of",
    "sampling_of",
    "show_preview",
    "system_of",
    "video_of",
    "video_parts",
]


def crop_of(word: str | None, names: Mapping[str, Any]) -> Crop | None:
    """Return the crop that was typed, or the one in a variable: a text, or four numbers."""
    if word is None:
        return None
    value: Any = word
    if is_lookup(word, names):
        value = looked_up(word, names)
        value = value.tolist() if hasattr(value, "tolist") else value
    elif word.startswith(("(", "[")):  # as Python writes the value of an expression
        read = python_literal(word)
        value = word if read is None else read
    return parse_crop(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def form_asked(
    arguments: Namespace, names: Mapping[str, Any], kept: Mapping[str, Any] | None = None
) -> Form:
    """Return the form for ``--format``, ``--schema``, ``--choices`` and ``--regex``.

    Without any of them it is `kept`, the `Message.form` of an answer to carry on.
    """
    if kept and not typed(arguments, of_group(AnswerForm)):
        return form_of(**kept)
    extracts = getattr(arguments, "task", None) == EXTRACT  # which asking again lacks
    is_open = extracts and not any((arguments.schema, arguments.choices, arguments.regex))
    return form_of(
        arguments.format or ("json" if is_open else None),
        _schema(arguments.schema, names),
        _choices(arguments.choices, names),
        arguments.regex,
    )


def _choices(words: tuple[str, ...] | None, names: Mapping[str, Any]) -> Any:
    """Return the choices that were typed, or those in a variable."""
    if words is None or len(words) > 1:
        return words
    (word,) = words
    if word in names:
        return names[word]
    raise OptionError(
        f"--choices {word or repr(word)} is neither a variable nor a list such as yes,no.",
        did_you_mean(word, (name for name in names if not name.startswith("_"))),
    )


def _schema(word: str | None, names: Mapping[str, Any]) -> object:
    """Return the schema in a variable or a JSON file."""
    if word is None:
        return None
    if word in names and not isinstance(word, Quoted):
        return names[word]
    file, what = Path(os.path.expanduser(word)), f"--schema {word}"  # noqa: PTH111  not ~nobody
    if not os.path.lexists(file):
        raise OptionError(
            f"{what} is neither a variable nor a file.",
            did_you_mean(word, (name for name in names if not name.startswith("_"))),
        )
    return json_value(text_of(file, what, OptionError), what, OptionError)


def system_of(context: Context, arguments: Namespace) -> str | None:
    """Return the system message; the one of the settings is for new chats only."""
    if arguments.system is not None:
        return str(arguments.system)
    goes_on = arguments.follow_up or arguments.chat in context.session.chats
    return None if goes_on else context.settings.system


def sampling_of(context: Context, arguments: Namespace) -> dict[str, Any]:
    """Return the sampling options that were typed or set; the session has the defaults."""
    table = of_group(Sampling)
    values = {each.name: getattr(context.settings, each.name) for each in table if each.who.setting}
    values |= typed(arguments, table)
    return {name: value for name, value in values.items() if value is not None}


def video_parts(arguments: Namespace, refused: str | None = None) -> dict[str, Any]:
    """Return those of ``--fps``, ``--from`` and ``--to`` that are given, by their Python names.

    Args:
        arguments: as `ANSWER_OPTIONS` declares them.
        refused: why there is no video to which they could apply; ``None`` if there is one.

    Raises:
        OptionError: if one is given without a video, or out of range.
    """
    parts = typed(arguments, of_group(VideoParts))
    for name, value in parts.items():
        if refused is not None:
            raise OptionError(f"{as_typed(name)} is about a video, {refused}.")
        check(name, value, as_typed(name))
    return parts


def show_preview(context: Context, conversation: Conversation, task: str | None = None) -> None:
    """Show what would be sent, without asking.

    Args:
        context: shell and session.
        conversation: the question, in the prompt of its task.
        task: task of the question, if any.
    """
    from glm4v_magic.checkpoints import resolve
    from glm4v_magic.notebook.render.answers.preview import preview_bundle
    from glm4v_magic.session.preview import preview

    status = context.session.status()
    choice = status.choice
    checkpoint = resolve(context.model, **choice.made_of)
    refuse_task(task, checkpoint.name, checkpoint.tasks, len(conversation.images))
    info, options = status.info, choice.options
    image_size = options.image_size if info is None else info.largest_image
    show(preview_bundle(preview(checkpoint, conversation, image_size)))


def clips_of(words: Sequence[str], names: Mapping[str, Any]) -> list[str]:
    """Return the words that name videos.

    A clip is recognised by its suffix; a variable that holds a clip's path or bytes, or an array of
    several frames, is a video, too.
    """
    return [word for word in words if is_clip(word) or is_video(names.get(word))]


def frames_of(arguments: Namespace, words: Sequence[str], names: Mapping[str, Any]) -> list[str]:
    """Return the words that name lists of frames: with ``--fps``, lists of images, not of one."""
    if arguments.fps is None or clips_of(words, names):
        return []
    return [word for word in words if may_be_frames(names.get(word))]


def video_of(
    context: Context,
    arguments: Namespace,
    words: Sequence[str],
    names: Mapping[str, Any],
    frames: Sequence[str] = (),
) -> tuple[SourcedVideo | None, Sequence[str], Sequence[str]]:
    """Return the video that a word names, the words before it, and the words after it.

    Without a video all words are before it. ``--fps``, ``--from`` and ``--to`` apply to it. Words
    of `frames` name videos, too.

    Raises:
        OptionError: if several words name videos, or an option does not suit the video.
        ImageError: if the video cannot be read.
    """
    clips = [*clips_of(words, names), *frames]
    if not clips:
        return None, words, []
    if len(clips) > 2:
        raise OptionError(
            f"{clips[0]}, {clips[1]} ...: {len(clips):,} videos; a question has one.",
            "Name one of them.",
        )
    if len(clips) == 2:
        raise OptionError(
            f"{clips[0]} and {clips[1]} are two videos; a question has one.",
            "Ask about the other in a follow-up.",
        )
    (clip,) = clips
    if getattr(arguments, "compare", None) is None:
        context.session.require_video()
    parts = video_parts(arguments)
    video = to_video(names.get(clip, clip), clip, limits=context.settings.limits, **parts)
    place = words.index(clip)
    return video, words[:place], words[place + 1 :]
