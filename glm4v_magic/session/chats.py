"""Chats: conversations that go on over several cells, and the files they are kept in.

JSON holds everything, images included, and can be read back. Markdown is for people.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.conversation import Conversation, Message, Role
from glm4v_magic.core.errors import ConversationError, did_you_mean

if TYPE_CHECKING:
    from glm4v_magic.images import Limits, SourcedImage

__all__ = ["UNNAMED", "Chats", "from_json", "read_chat", "to_json", "to_markdown", "write_chat"]

UNNAMED = ""
"""Name of the chat of cells that name none; every fresh question begins it anew."""

_FORMAT = "glm4v_magic.chat"
_VERSION = 1
_ROLES: tuple[Role, ...] = ("system", "user", "assistant")


class Chats:
    """Conversations by name, and which one is current: the one of the latest answer."""

    def __init__(self) -> None:
        self._chats: dict[str, Conversation] = {}
        self.current = UNNAMED

    def all(self) -> dict[str, Conversation]:
        """All chats by name, oldest first."""
        return dict(self._chats)

    def get(self, name: str | None = None) -> Conversation | None:
        """Return a chat, or the current one; ``None`` if it has not begun."""
        return self._chats.get(self.current if name is None else name)

    def require(self, name: str | None = None) -> Conversation:
        """Return a chat, or the current one.

        Raises:
            ConversationError: if there is no such chat.
        """
        chat = self.get(name)
        if chat is None:
            raise self._missing(name)
        return chat

    def keep(self, name: str, conversation: Conversation) -> None:
        """Keep a conversation under a name, which becomes the current one."""
        self._chats[name] = conversation
        self.current = name

    def add(self, name: str, conversation: Conversation) -> None:
        """Keep a conversation that comes from elsewhere; it becomes the current one.

        Raises:
            ConversationError: if another one has this name.
        """
        if self._chats.get(name, conversation) != conversation:
            which = f"a chat {name!r}" if name else "an unnamed conversation"
            raise ConversationError(
                f"There is {which} already, and it is another one.",
                "Give a name to the one that comes, or forget the one that is there.",
            )
        self.keep(name, conversation)

    def reset(self, name: str | None = None) -> tuple[str, ...]:
        """Forget a chat, or the current one, and return the names that are gone."""
        name = self.current if name is None else name
        return (name,) if self._forget(name) else ()

    def clear(self) -> tuple[str, ...]:
        """Forget all chats and return their names."""
        return tuple(name for name in self.all() if self._forget(name))

    def _forget(self, name: str) -> bool:
        if name == self.current:
            self.current = UNNAMED
        return self._chats.pop(name, None) is not None

    def _missing(self, name: str | None) -> ConversationError:
        if not name:
            return ConversationError(
                "There is no conversation to go on with.", "Ask a question first."
            )
        what = f"There is no chat {name!r}."
        named = [known for known in self._chats if known]
        hint = did_you_mean(name, named)
        if not hint and named:
            hint = f"There are {', '.join(named)}."
        if hint:
            return ConversationError(what, hint)
        return ConversationError(what, code="chat_not_begun", name=name)


def to_json(conversation: Conversation, name: str = UNNAMED) -> str:
    """Write a chat as JSON that `from_json` reads; images are in it, without loss."""
    return json.dumps(
        {
            "format": _FORMAT,
            "version": _VERSION,
            "name": name,
            "messages": [_plain(message) for message in conversation.messages],
        },
        ensure_ascii=False,
        indent=2,
    )


def from_json(
    text: str, where: str = "The chat", limits: Limits | None = None
) -> tuple[str, Conversation]:
    """Read a chat that `to_json` wrote.

    Args:
        text: the JSON.
        where: what it is called in messages.
        limits: what is refused of its images; the usual by default.

    Returns:
        The chat's name and the conversation.

    Raises:
        ConversationError: if `text` is not such a chat.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConversationError(f"{where} is not valid JSON: {error}.") from None
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise ConversationError(f"{where} is not an exported chat of glm4v_magic.")
    if data.get("version") != _VERSION:
        raise ConversationError(
            f"{where} has version {data.get('version')!r}; this one reads {_VERSION}."
        )
    name, messages = data.get("name"), data.get("messages")
    if not isinstance(name, str) or not isinstance(messages, list):
        raise ConversationError(f"{where} lacks its name or its messages.")
    return name, Conversation(
        tuple(
            _message(message, f"Message {number} of {_inside(where)}", limits)
            for number, message in enumerate(messages, start=1)
        )
    )


def to_markdown(conversation: Conversation, name: str = UNNAMED) -> str:
    """Write a chat for reading; images are named, not shown."""
    title = f"# {name}\n\n" if name else ""
    return title + "\n".join(_paragraphs(conversation)).rstrip() + "\n"


def write_chat(path: str | os.PathLike[str], conversation: Conversation, name: str) -> Path:
    """Write a chat to a file, as its name says: ``.json`` or ``.md``.

    A file that is there already is replaced once the new one is written.

    Raises:
        ConversationError: if the name ends in something else, or the file cannot be written.
    """
    file = Path(os.path.expanduser(path))  # noqa: PTH111  Path's own fails on ~nobody
    if file.suffix.lower() == ".json":
        text = to_json(conversation, name) + "\n"
    elif file.suffix.lower() in (".md", ".markdown"):
        text = to_markdown(conversation, name)
    else:
        raise ConversationError(
            f"The name of the file {file} must end in .json, to be read back, or in .md.",
        )
    try:
        place = file.resolve()
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".glm4v-") as folder:
            new = Path(folder, place.name)
            # A file name that is no Unicode is kept as JSON keeps it.
            new.write_text(text, encoding="utf-8", errors="backslashreplace")
            new.replace(place)
    except OSError as error:
        raise ConversationError(
            f"The chat cannot be written to {file}: {error.strerror or error}."
        ) from None
    return file


def read_chat(
    path: str | os.PathLike[str], limits: Limits | None = None
) -> tuple[str, Conversation]:
    """Read a chat from a JSON file that `write_chat` wrote; see `from_json`.

    Raises:
        ConversationError: if the file cannot be read, or is no such chat.
    """
    file = Path(os.path.expanduser(path))  # noqa: PTH111  as above
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConversationError(f"{file} is not an exported chat of glm4v_magic.") from None
    except FileNotFoundError:
        found = [each.name for each in file.parent.glob("*.json")]
        raise ConversationError(
            f"There is no file {file}.", did_you_mean(file.name, found)
        ) from None
    except OSError as error:
        raise ConversationError(f"{file} cannot be read: {error.strerror or error}.") from None
    return from_json(text, str(file), limits)


def _paragraphs(conversation: Conversation) -> Iterator[str]:
    for message in conversation.messages:
        speaker = {"system": "System", "user": "Question", "assistant": "Answer"}[message.role]
        yield f"**{speaker}**" + ("" if message.complete else " (unfinished)") + "\n"
        for image in message.images:
            width, height = image.original_size
            yield f"*{image.source}, {width} x {height} px*\n"
        if message.thinking:
            # Only its end could get out of the fold; the rest is as the model wrote it.
            thinking = re.sub("<(?=/details)", "&lt;", message.thinking, flags=re.IGNORECASE)
            yield f"<details><summary>Thinking</summary>\n\n{thinking}\n\n</details>\n"
        yield f"{message.text}\n"


def _plain(message: Message) -> dict[str, Any]:
    return {
        "role": message.role,
        "text": message.text,
        **({"thinking": message.thinking} if message.thinking else {}),
        "complete": message.complete,
        "images": [_plain_image(image) for image in message.images],
    }


def _plain_image(image: SourcedImage) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.image.save(buffer, format="png")
    return {
        "source": image.source,
        "original_size": list(image.original_size),
        "png": base64.b64encode(buffer.getvalue()).decode("ascii"),
    }


def _message(data: object, where: str, limits: Limits | None) -> Message:
    needed = {"role", "text", "complete", "images"}
    if not isinstance(data, Mapping) or set(data) - {"thinking"} != needed:
        raise ConversationError(
            f"{where} needs exactly role, text, complete and images; thinking may be with them."
        )
    thinking = data.get("thinking", "")
    role, text, complete, images = (data[key] for key in ("role", "text", "complete", "images"))
    if role not in _ROLES:
        raise ConversationError(f"{where} has the role {role!r}.", f"Roles: {', '.join(_ROLES)}.")
    if not isinstance(text, str) or not isinstance(complete, bool) or not isinstance(images, list):
        raise ConversationError(f"{where} has a text, complete or images of the wrong kind.")
    if not isinstance(thinking, str) or (thinking and role != "assistant"):
        raise ConversationError(f"{where} has a thinking that is not an answer's text.")
    sourced = tuple(_image(image, where, limits) for image in images)
    return Message(role, text, sourced, complete, thinking)


def _inside(where: str) -> str:
    """Return `where` as it stands in a sentence: what a file is called stays as it is."""
    first, space, rest = where.partition(" ")
    return f"{first.lower()}{space}{rest}" if first in ("The", "Message") else where


def _image(data: object, where: str, limits: Limits | None) -> SourcedImage:
    from glm4v_magic.images import DEFAULT_LIMITS, to_image

    size = data.get("original_size") if isinstance(data, Mapping) else None
    if (
        not isinstance(data, Mapping)
        or not isinstance(data.get("source"), str)
        or not isinstance(data.get("png"), str)
        or not (isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size))
    ):
        raise ConversationError(f"An image in {_inside(where)} is damaged.")
    try:
        content = base64.b64decode(data["png"], validate=True)
    except binascii.Error:
        raise ConversationError(f"An image in {_inside(where)} is not base64.") from None
    image = to_image(content, data["source"], limits=limits or DEFAULT_LIMITS)
    return replace(image, original_size=(size[0], size[1]))
