"""The chat template of a checkpoint, rendered so that no text becomes a control token.

A template writes text and control tokens into one string, in which a ``<|user|>`` that a user has
typed looks like the real one. So each token in a text is replaced by a mark before the template
sees it, and the mark by ordinary ids afterwards. All other text goes through the template
unchanged, so it strips, looks for and adds the same as in transformers' processor.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from glm4v_magic.checkpoints.added_tokens import is_control, since_published
from glm4v_magic.core.boxes import BOX_TAGS
from glm4v_magic.core.conversation import Conversation, Message, Role
from glm4v_magic.core.errors import CheckpointError, reason
from glm4v_magic.core.video import SourcedVideo

__all__ = ["CLOSE_THINKING", "OPEN_THINKING", "ChatTemplate"]

OPEN_THINKING, CLOSE_THINKING = "<think>", "</think>"


class ChatTemplate:
    """Renders conversations with a tokenizer and its chat template.

    Args:
        tokenizer: fast tokenizer of transformers, with a chat template.
        where: folder of the checkpoint, for messages.

    Attributes:
        ends_line: whether a prompt ends with a newline, so that the model does not begin with one.

    Raises:
        CheckpointError: if there is no chat template, it cannot be rendered, or it leaves the
            question out.
    """

    def __init__(self, tokenizer: Any, where: str) -> None:
        if not isinstance(tokenizer.chat_template, str):
            raise CheckpointError(
                f"{where} holds no chat template.",
                "It is in chat_template.jinja or tokenizer_config.json; download it again.",
            )
        self._tokenizer = tokenizer
        self._where = where
        added: Mapping[str, int] = tokenizer.get_added_vocab()
        # Words that a fine-tune has added are read out of texts.
        self._words = {each for each in since_published(added) if not is_control(each)}
        self._tokens = {each: added[each] for each in added if each not in self._words}
        # Templates look for these two, whether or not they are tokens.
        names = {*self._tokens, OPEN_THINKING, CLOSE_THINKING}
        longest_first = sorted(names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        # Here, so that a damaged template is told before any weight is read.
        question = Message("user", secrets.token_hex(8))  # which no template has in it
        rendered = self._rendered([question], _Marks(self._pattern), {})
        if question.text not in rendered:
            raise CheckpointError(
                f"The chat template of {where} does not write the question.",
                "It is in chat_template.jinja or tokenizer_config.json; download it again.",
            )
        self.ends_line = rendered.endswith("\n")

    @property
    def can_skip_thinking(self) -> bool:
        """Whether the template knows ``enable_thinking``."""
        return "enable_thinking" in self._tokenizer.chat_template

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a text by itself, special tokens in it as ordinary text."""
        found: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return found

    def ids(
        self,
        conversation: Conversation,
        thinking: bool | None = None,
        effort: str | None = None,
    ) -> tuple[list[int], bool]:
        """Return a conversation's ids, one for each image or video, and whether thinking is open.

        Args:
            conversation: the turns; an incomplete answer at the end is continued.
            thinking: whether the model is to think; ``None`` for the template's default.
            effort: how much it is to think; ``None`` for the template's default.

        Raises:
            CheckpointError: if the template cannot be rendered.
        """
        marks = _Marks(self._pattern)
        partial = conversation.partial
        before = [each for each in conversation.messages if each is not partial]
        if partial is not None and partial.text and not partial.thinking:
            thinking = False  # it was begun without, or its thinking is not known
        wanted = {"enable_thinking": thinking, "reasoning_effort": effort}
        options = {name: value for name, value in wanted.items() if value is not None}
        text = self._rendered(before, marks, options)
        is_open = text.rstrip().endswith(OPEN_THINKING)
        if partial is not None:
            text += _continued(partial, marks, text, is_open)
            is_open = bool(partial.thinking) and not partial.text
        return self._spelled(text, marks), is_open

    def _rendered(
        self, messages: Sequence[Message], marks: _Marks, options: Mapping[str, object]
    ) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                [_as_dict(message, marks) for message in messages],
                tokenize=False,
                add_generation_prompt=True,
                **options,
            )
        except Exception as error:  # a template is a program of somebody else
            raise CheckpointError(
                f"The chat template of {self._where} cannot be rendered: {reason(error)}.",
                "Download it again.",
            ) from error
        return text

    def _spelled(self, text: str, marks: _Marks) -> list[int]:
        """Return the ids of a rendered text, marks as ordinary text."""
        if not marks.texts:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
            return ids
        return [token for part in self._parts(text) for token in self._part_ids(part, marks)]

    def _parts(self, text: str) -> Iterator[str]:
        """Split a rendered text into tokens and the text between them."""
        at = 0
        for found in self._pattern.finditer(text):
            if found[0] not in self._tokens:
                continue
            yield text[at : found.start()]
            yield found[0]
            at = found.end()
        yield text[at:]

    def _part_ids(self, part: str, marks: _Marks) -> Sequence[int]:
        if part in self._tokens:
            return [self._tokens[part]]
        return self.text_ids(marks.removed(part))

    @cached_property
    def _plain(self) -> Tokenizer:
        """The tokenizer without its special tokens, which reads all text as ordinary text."""
        described = json.loads(self._tokenizer._tokenizer.to_str())
        described.update(post_processor=None, truncation=None, padding=None)
        for token in described["added_tokens"]:
            token["special"] = token["content"] not in self._words
        plain = Tokenizer.from_str(json.dumps(described))
        plain.encode_special_tokens = True  # as ordinary text
        return plain


class _Marks:
    """Replaces tokens in texts by marks that nobody can type."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self._key = secrets.token_hex(8)
        self.texts: list[str] = []

    def put(self, text: str, role: Role = "user") -> str:
        """Return `text` with a mark in place of each token.

        The tags around boxes in an answer stay, because the model wrote them as tokens.
        """

        def mark(found: re.Match[str]) -> str:
            if role == "assistant" and found[0] in BOX_TAGS:
                return found[0]
            self.texts.append(found[0])
            return f"\ue000{self._key}.{len(self.texts) - 1}\ue001"

        return self._pattern.sub(mark, text)

    def removed(self, text: str) -> str:
        """Return `text` with its marks replaced by the tokens that were typed."""
        return re.sub(
            f"\ue000{self._key}\\.(\\d+)\ue001", lambda found: self.texts[int(found[1])], text
        )


def _as_dict(message: Message, marks: _Marks) -> dict[str, Any]:
    """Return a message as templates take it; only a user's has parts."""
    text = marks.put(message.text, message.role)
    if message.role != "user":
        return {"role": message.role, "content": text}
    parts: list[dict[str, str]] = [
        {"type": "video" if isinstance(each, SourcedVideo) else "image"} for each in message.media
    ]
    return {"role": message.role, "content": [*parts, {"type": "text", "text": text}]}


def _continued(partial: Message, marks: _Marks, before: str, is_open: bool) -> str:
    """Return the text to put after the generation prompt to continue an incomplete answer."""
    if is_open and not partial.thinking:  # of a template that cannot leave thinking out
        return f"{CLOSE_THINKING}\n{marks.put(partial.text, partial.role)}"
    text = "" if before.endswith("\n") or is_open else "\n"
    if partial.thinking:
        text += ("" if is_open else OPEN_THINKING) + marks.put(partial.thinking)
        if not partial.text:
            return text
        text += f"{CLOSE_THINKING}\n"
    return text + marks.put(partial.text, partial.role)
