"""What ``%glm4v history`` and ``%glm4v chats`` show."""

from __future__ import annotations

from collections.abc import Sequence

from glm4v_magic.calls.boxes import marks_of
from glm4v_magic.calls.boxes_text import line_of, mark_lines
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.video import SourcedVideo
from glm4v_magic.core.wording import columns, counted, padded, pixels, printable
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.thinking import folded, thought_line
from glm4v_magic.notebook.render.markdown import literal, safe_markdown
from glm4v_magic.notebook.render.templates import fill

__all__ = ["chat_name", "chats_bundle", "history_bundle"]

_SPEAKERS = {"system": "System", "user": "You", "assistant": "Model"}
_PREVIEW = 60  # characters of a question
_BOXES = 40  # boxes and points of an answer


def history_bundle(conversation: Conversation) -> MimeBundle:
    """Return all turns of a conversation; images are named with their sizes."""
    plain, markdown = [], []
    for turn, message in enumerate(conversation.messages):
        speaker = _SPEAKERS[message.role] + ("" if message.complete else " (unfinished)")
        images = [f"{printable(each.source)}, {pixels(_size(each))}" for each in message.media]
        thoughts = [thought_line(message.thinking)] if message.thinking else []
        notes = [f"[{note}]" for note in (*images, *thoughts)]
        boxes = _boxes(conversation, turn)
        plain.append("\n".join([f"{speaker}:", *notes, _text(message), *boxes]))
        markdown.append(f"**{speaker}**")
        markdown += [fill("image_note", note=image) for image in images]
        markdown += [folded(message.thinking, line) for line in thoughts]
        markdown.append(
            safe_markdown(message.text.strip())
            if message.role == "assistant"
            else "  \n".join(literal(line) for line in _text(message).splitlines())
        )
        markdown += [fill("image_note", note=box) for box in boxes]
    return {"text/plain": "\n\n".join(plain), "text/markdown": "\n\n".join(markdown)}


def _size(shown: SourcedImage | SourcedVideo) -> tuple[int, int]:
    return shown.size if isinstance(shown, SourcedVideo) else shown.original_size


def chats_bundle(chats: Sequence[tuple[str, Conversation]], current: str) -> MimeBundle:
    """Return a table of chats: name, turns, images, and how the latest question begins."""
    rows = [_row(name, chat, is_current=name == current) for name, chat in chats]
    head = ("", "chat", "questions", "images", "latest question")
    widths = [max(map(columns, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return {"text/plain": "\n".join(lines), "text/html": fill("chats", titles=head, rows=rows)}


def chat_name(name: str) -> str:
    """Return the name of a chat on one line, or words for the chat without a name."""
    return " ".join(printable(name).split()) or "(unnamed)"


def _boxes(conversation: Conversation, turn: int) -> list[str]:
    """Return a line for each of the first boxes and points of an answer."""
    marks = marks_of(conversation, turn).all
    lines = mark_lines(marks, conversation.images, conversation.videos)
    more = [f"and {len(lines) - _BOXES:,} more"] if len(lines) > _BOXES else []
    return [*map(line_of, lines[:_BOXES]), *more]


def _text(message: Message) -> str:
    return printable(message.text).strip()


def _media(chat: Conversation) -> str:
    """Count images and videos; of what there is none nothing is said if there is the other."""
    images, videos = counted(len(chat.images), "image"), counted(len(chat.videos), "video")
    if not chat.videos:
        return images
    return f"{images}, {videos}" if chat.images else videos


def _row(name: str, chat: Conversation, *, is_current: bool) -> tuple[str, ...]:
    questions = [message for message in chat.messages if message.role == "user"]
    latest = " ".join(_text(questions[-1]).split()) if questions else ""
    if len(latest) > _PREVIEW:
        latest = f"{latest[:_PREVIEW].rstrip()}..."
    return (
        "->" if is_current else "",
        chat_name(name),
        counted(len(questions), "question"),
        _media(chat),
        latest,
    )
