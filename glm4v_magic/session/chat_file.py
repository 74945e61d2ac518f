"""Files of chats.

JSON holds everything, images included, and can be read back. Markdown is for people and other
programs: it has questions and answers as they were written, so nothing of them is lost; this
package never shows it. Its only HTML is the fold around a model's thinking, which the thinking
cannot end: see `_folded`. (A cell shows a model's Markdown with `notebook.render.markdown`, which
lets no part of it act on the page.)
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from glm4v_magic.calls.boxes import marks_of
from glm4v_magic.calls.boxes_text import line_of, mark_lines
from glm4v_magic.calls.forms import form_of
from glm4v_magic.calls.tags import shown
from glm4v_magic.core.conversation import Conversation, Message, Role
from glm4v_magic.core.errors import ConversationError, OptionError, did_you_mean
from glm4v_magic.core.options import AnswerForm, of_group
from glm4v_magic.core.text_files import OTHER_NAME, replace_text
from glm4v_magic.core.tokens import Alternative, Token
from glm4v_magic.core.video import Frame, SourcedVideo
from glm4v_magic.core.wording import clock, pixels, printable
from glm4v_magic.images import DEFAULT_LIMITS, Limits, SourcedImage, to_image
from glm4v_magic.outside import (
    SHUT,
    FileKind,
    checked,
    expanded,
    is_shut,
    is_there,
    listed_names,
    path_text,
    text_of,
)
from glm4v_magic.session.chats import UNNAMED

__all__ = ["from_json", "read_chat", "to_json", "to_markdown", "write_chat"]

_CHAT = FileKind(
    "glm4v_magic.chat", 1, "an exported chat", "Only the .json of an export can be read back."
)


def _decoded(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("it should be a string")  # noqa: TRY004  pydantic takes no TypeError
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError("it is not base64") from None


def _whole_characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds half a character, {text[error.start]!a}") from None
    return text


_Text = Annotated[str, AfterValidator(_whole_characters)]


class _Image(BaseModel):
    model_config = ConfigDict(strict=True)

    source: str
    original_size: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
    png: Annotated[bytes, BeforeValidator(_decoded)]


def _bytes_of(text: str, utf8: bytes | None) -> bytes:
    return text.encode(errors="replace") if utf8 is None else utf8


class _Alternative(BaseModel):
    """A token; ``utf8`` is left out where it is simply the text encoded."""

    model_config = ConfigDict(strict=True)

    text: str
    logprob: Annotated[float, Field(allow_inf_nan=False)]
    id: int | None = None
    utf8: Annotated[bytes | None, BeforeValidator(_decoded)] = None

    def as_alternative(self) -> Alternative:
        return Alternative(self.text, self.logprob, self.id, _bytes_of(self.text, self.utf8))


class _Token(_Alternative):
    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]
    alternatives: list[_Alternative] = []

    def as_token(self) -> Token:
        alternatives = tuple(each.as_alternative() for each in self.alternatives)
        utf8 = _bytes_of(self.text, self.utf8)
        place = self.start, self.end
        return Token(self.text, self.logprob, *place, self.id, alternatives, utf8)


class _Frame(BaseModel):
    model_config = ConfigDict(strict=True)

    time: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    png: Annotated[bytes, BeforeValidator(_decoded)]


class _Video(BaseModel):
    """A video as the frames that the model saw; the clip itself is not kept."""

    model_config = ConfigDict(strict=True)

    source: str
    size: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    frames: Annotated[list[_Frame], Field(min_length=1)]


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    role: Role
    text: _Text
    complete: bool
    images: list[_Image]
    videos: list[_Video] = []
    before_videos: NonNegativeInt | None = None
    form: dict[str, Any] = {}
    thinking: _Text = ""
    tokens: list[_Token] | None = None
    thinking_tokens: list[_Token] = []
    written: str = ""

    @model_validator(mode="after")
    def _videos_are_among_the_images(self) -> _Message:
        if (self.before_videos or 0) > len(self.images):
            raise ValueError("more images are before its videos than it has")
        return self

    @model_validator(mode="after")
    def _has_a_form(self) -> _Message:
        if self.form.keys() - {each.name for each in of_group(AnswerForm)}:
            raise ValueError("it has a form with unknown options")
        try:
            form_of(**self.form)
        except OptionError as error:
            raise ValueError(f"it has no form of an answer: {error.what}") from None
        return self

    @model_validator(mode="after")
    def _only_answers_think(self) -> _Message:
        if self.thinking and self.role != "assistant":
            raise ValueError("it has a thinking, but is not an answer")
        return self

    @model_validator(mode="after")
    def _tokens_are_in_the_text(self) -> _Message:
        for tokens, text in ((self.tokens, self.text), (self.thinking_tokens, self.thinking)):
            if any(not each.start <= each.end <= len(text) for each in tokens or ()):
                raise ValueError("it has tokens that are not in its text")
        return self

    @model_validator(mode="after")
    def _shows_what_the_model_is_told(self) -> _Message:
        if not self.written:
            return self
        if self.role != "assistant":
            raise ValueError("it has tags around boxes, but is not an answer")
        if shown(self.written, complete=self.complete).text != self.text:
            raise ValueError("its text is not what it is without the tags around boxes")
        return self


class _Chat(BaseModel):
    model_config = ConfigDict(strict=True)

    name: _Text
    messages: list[_Message]


def to_json(conversation: Conversation, name: str = UNNAMED) -> str:
    """Write a chat, images included, as JSON that `from_json` reads without loss.

    Of videos it holds the frames that the model saw.
    """
    return json.dumps(
        {
            **_CHAT.head(),
            "name": name,
            "messages": [_plain(message) for message in conversation.messages],
        },
        ensure_ascii=False,
        indent=2,
    )


def from_json(
    text: str, what: str = "The chat", limits: Limits | None = None
) -> tuple[str, Conversation]:
    """Read a chat that `to_json` wrote.

    Args:
        text: the JSON.
        what: name of the text in messages.
        limits: limits on its images.

    Returns:
        The chat's name and the conversation.

    Raises:
        ConversationError: if `text` is not a chat that `to_json` wrote.
        ImageError: if an image in it cannot be read.
    """
    content = _CHAT.content(text, what, ConversationError)
    chat = checked(_Chat, content, what, ConversationError)
    return chat.name, Conversation(tuple(_message(message, limits) for message in chat.messages))


def to_markdown(conversation: Conversation, name: str = UNNAMED) -> str:
    """Write a chat for reading; images and videos are named, not shown.

    Texts stay Markdown, without control characters and overrides of the writing direction.
    """
    title = f"# {name}\n\n" if name else ""
    return printable(title + "\n".join(_paragraphs(conversation)).rstrip() + "\n")


def write_chat(path: str | os.PathLike[str], conversation: Conversation, name: str) -> Path:
    """Write a chat to a file; the suffix decides the format: ``.json`` or ``.md``.

    An existing file is replaced once the new one is complete; of JSON only a chat is.

    Raises:
        ConversationError: if the suffix is another, or the file cannot be written.
    """
    file = expanded(path_text(path, "The file of a chat", ConversationError))
    if file.suffix.lower() == ".json":
        text = to_json(conversation, name) + "\n"
    elif file.suffix.lower() in (".md", ".markdown"):
        text = to_markdown(conversation, name)
    else:
        raise ConversationError(
            f"The name of the file {file} must end in .json, to be read back, or in .md.",
        )
    try:
        replace_text(file, text, is_json=file.suffix.lower() == ".json")
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise ConversationError(
            f"The chat cannot be written to {file}: {getattr(error, 'strerror', error)}.",
            OTHER_NAME if isinstance(error, FileExistsError) else "",
        ) from None
    return file


def read_chat(
    path: str | os.PathLike[str], limits: Limits | None = None
) -> tuple[str, Conversation]:
    """Read a chat from a JSON file that `write_chat` wrote; see `from_json`.

    Raises:
        ConversationError: if the file cannot be read, or is not a chat that `write_chat` wrote.
    """
    file = expanded(path_text(path, "The file of a chat", ConversationError))
    if is_shut(file):
        raise ConversationError(f"{file} cannot be read: permission denied.", SHUT)
    if not is_there(file):
        found = listed_names(file.parent, ".json")
        raise ConversationError(f"There is no file {file}.", did_you_mean(file.name, found))
    return from_json(text_of(file, str(file), ConversationError), str(file), limits)


def _paragraphs(conversation: Conversation) -> Iterator[str]:
    for turn, message in enumerate(conversation.messages):
        speaker = {"system": "System", "user": "Question", "assistant": "Answer"}[message.role]
        yield f"**{speaker}**" + ("" if message.complete else " (unfinished)") + "\n"
        for each in message.media:
            if isinstance(each, SourcedVideo):
                yield f"*{each.source}, {pixels(each.size)}, video*\n"
            else:
                yield f"*{each.source}, {pixels(each.original_size)}*\n"
        if message.thinking:
            yield _folded(message.thinking)
        yield f"{message.text}\n"
        yield from _marks(conversation, turn)


def _marks(conversation: Conversation, turn: int) -> Iterator[str]:
    """Yield a list of the boxes and points of an answer, if there are any."""
    marks = marks_of(conversation, turn).all
    lines = mark_lines(marks, conversation.images, conversation.videos)
    if lines:
        shown = (html.escape(line_of(line), quote=False) for line in lines)
        yield "\n".join(f"- {each}" for each in shown) + "\n"


def _folded(thinking: str) -> str:
    """Return a model's thinking in a fold, unchanged except for what would end the fold."""
    thinking = re.sub("<(?=/details)", "&lt;", thinking, flags=re.IGNORECASE)
    return f"<details><summary>Thinking</summary>\n\n{thinking}\n\n</details>\n"


def _plain(message: Message) -> dict[str, Any]:
    return {
        "role": message.role,
        "text": message.text,
        **({"thinking": message.thinking} if message.thinking else {}),
        **({"written": message.written} if message.written else {}),
        "complete": message.complete,
        **({} if message.tokens is None else {"tokens": _plain_tokens(message.tokens)}),
        **(
            {"thinking_tokens": _plain_tokens(message.thinking_tokens)}
            if message.thinking_tokens
            else {}
        ),
        "images": [_plain_image(image) for image in message.images],
        **({"videos": [_plain_video(each) for each in message.videos]} if message.videos else {}),
        **({} if message.before_videos is None else {"before_videos": message.before_videos}),
        **({"form": message.form} if message.form else {}),
    }


def _plain_tokens(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    return [
        {
            **_plain_alternative(token),
            "start": token.start,
            "end": token.end,
            "alternatives": [_plain_alternative(each) for each in token.alternatives],
        }
        for token in tokens
    ]


def _plain_alternative(token: Token | Alternative) -> dict[str, Any]:
    is_spelled = token.utf8 == token.text.encode(errors="replace")
    utf8 = {} if is_spelled else {"utf8": base64.b64encode(token.utf8).decode("ascii")}
    return {"text": token.text, "logprob": token.logprob, "id": token.id, **utf8}


def _plain_image(image: SourcedImage) -> dict[str, Any]:
    size = list(image.original_size)
    return {"source": image.source, "original_size": size, "png": _png(image)}


def _plain_video(video: SourcedVideo) -> dict[str, Any]:
    if not video.seen:
        raise ConversationError(
            f"No model has seen {video.source} yet: there are no frames of it to write.",
            "Ask about it first.",
        )
    return {
        "source": video.source,
        "size": list(video.size),
        "fps": video.fps,
        "frames": [{"time": each.time, "png": _png(each.image)} for each in video.seen],
    }


def _png(image: SourcedImage) -> str:
    buffer = io.BytesIO()
    image.image.save(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _message(message: _Message, limits: Limits | None) -> Message:
    images = tuple(_image(image, limits) for image in message.images)
    tokens = None if message.tokens is None else _tokens(message.tokens)
    return Message(
        message.role,
        message.text,
        images,
        message.complete,
        message.thinking,
        tokens,
        _tokens(message.thinking_tokens),
        tuple(_video(video, limits) for video in message.videos),
        message.written,
        message.before_videos,
        message.form,
    )


def _video(video: _Video, limits: Limits | None) -> SourcedVideo:
    width, height = video.size
    frames = []
    for each in video.frames:
        name = f"{video.source} at {clock(each.time)}"
        image = to_image(each.png, name, limits=limits or DEFAULT_LIMITS)
        frames.append(Frame(replace(image, original_size=(width, height)), each.time))
    return SourcedVideo.of_seen(video.source, (width, height), video.fps, frames)


def _tokens(tokens: Sequence[_Token]) -> tuple[Token, ...]:
    return tuple(each.as_token() for each in tokens)


def _image(image: _Image, limits: Limits | None) -> SourcedImage:
    sourced = to_image(image.png, image.source, limits=limits or DEFAULT_LIMITS)
    width, height = image.original_size
    return replace(sourced, original_size=(width, height))
