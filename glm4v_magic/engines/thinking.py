"""Separates a model's thinking from its answer while both are streamed.

A model that thinks writes ``<think>...</think>`` before its answer, and GLM-4.1V-Thinking puts the
answer itself between ``<answer>`` and ``</answer>``. Some servers take the thinking out. Others
leave it in the text with both tags, or with the closing one alone, where the chat template has
written the opening one into the prompt already.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from typing import TypeAlias

from glm4v_magic.core.events import Reclassified, Text, Thinking
from glm4v_magic.core.tags import overlap

__all__ = ["CLOSE", "OPEN", "ThinkingSplitter", "Told"]

OPEN, CLOSE = "<think>", "</think>"
_ANSWER_OPEN, _ANSWER_CLOSE = "<answer>", "</answer>"

Told: TypeAlias = Thinking | Text | Reclassified


class _At(Enum):
    """State of the splitter."""

    START = auto()  # nothing but whitespace, or the beginning of a tag
    THINKING = auto()
    TEXT = auto()  # of an answer, unless a closing tag says that it was thinking
    THOUGHT = auto()  # between thinking and answer
    ANSWER = auto()
    WRAPPED = auto()  # in an answer between tags
    LAST = auto()  # behind what may be the end of that answer


class ThinkingSplitter:
    """Splits streamed text into events of row 0; no event ends inside a tag.

    `Reclassified` comes at most once: where a closing tag says that the `Text` before it was
    thinking. No text is yielded twice.

    Args:
        inside: whether the text continues interrupted thinking.
        answer: whether the text continues an interrupted answer; tags in it are ordinary text.
        thought: whether the model thought before that answer.
    """

    def __init__(self, *, inside: bool = False, answer: bool = False, thought: bool = False):
        self._inside = inside
        self._held = ""  # held back: whitespace, or a possible part of a tag
        self._text: list[str] = []  # yielded as answer, but may have been thinking
        self._at = _At.START
        if answer:
            self._at = _At.WRAPPED if thought else _At.ANSWER

    def add(self, piece: str) -> Iterator[Told]:
        """Take the next piece of text and yield its events."""
        self._held += piece
        before = None
        while self._held and before != (self._at, self._held):
            before = (self._at, self._held)
            yield from self._step()

    def add_thinking(self, piece: str) -> Iterator[Told]:
        """Take a piece that the server has marked as thinking, its tags removed."""
        if self._at is _At.THINKING:
            yield from self.end()
        if self._at in (_At.START, _At.THINKING):
            self._at = _At.THOUGHT
        yield Thinking(piece)

    def end(self) -> Iterator[Told]:
        """Yield what was held back, at the end of the text."""
        held, self._held = self._held, ""
        held = held.lstrip() if self._at is _At.THOUGHT else held
        if self._at is _At.TEXT and held == CLOSE and OPEN not in "".join(self._text):
            yield from self._thought("")
        elif self._at is not _At.LAST and held.strip():
            inside = self._at is _At.START and self._inside
            yield Thinking(held) if inside or self._at is _At.THINKING else Text(held)

    def _step(self) -> Iterator[Told]:
        """Process up to the next tag."""
        match self._at:
            case _At.START:
                self._start()
            case _At.THINKING:
                if text := self._until(CLOSE, _At.THOUGHT):
                    yield Thinking(text)
            case _At.TEXT:
                yield from self._unless_thinking()
            case _At.THOUGHT:
                self._after_thinking()
            case _At.WRAPPED:
                if text := self._until(_ANSWER_CLOSE, _At.LAST):
                    yield Text(text)
            case _At.LAST:
                yield from self._last()
            case _At.ANSWER:
                yield Text(self._taken(len(self._held)))

    def _start(self) -> None:
        text = self._held.lstrip()
        if text.startswith(OPEN):
            self._held, self._at = text.removeprefix(OPEN), _At.THINKING
        elif not OPEN.startswith(text):
            self._at = _At.THINKING if self._inside else _At.TEXT

    def _after_thinking(self) -> None:
        text = self._held.lstrip()
        if text.startswith(_ANSWER_OPEN):
            self._held, self._at = text.removeprefix(_ANSWER_OPEN), _At.WRAPPED
        elif not _ANSWER_OPEN.startswith(text):
            self._held, self._at = text, _At.ANSWER

    def _until(self, tag: str, then: _At) -> str:
        """Return the text before a tag; a possible beginning of the tag is held back."""
        at = self._held.find(tag)
        text = self._taken(at if at >= 0 else len(self._held) - overlap(self._held, tag))
        if at >= 0:
            self._held, self._at = self._held.removeprefix(tag), then
        return text

    def _unless_thinking(self) -> Iterator[Told]:
        at = self._held.find(CLOSE)
        if at < 0:
            text = self._taken(len(self._held) - overlap(self._held, CLOSE))
        elif len(self._held) == at + len(CLOSE):
            text = self._taken(at)  # what follows may be a quotation mark
        elif self._speaks_of_tags("".join(self._text) + self._held[:at], at):
            text, self._at = self._taken(len(self._held)), _At.ANSWER
        else:
            rest = self._taken(at)
            self._held = self._held.removeprefix(CLOSE)
            yield from self._thought(rest)
            return
        if text:
            self._text.append(text)
            yield Text(text)

    def _speaks_of_tags(self, before: str, at: int) -> bool:
        quotes = before[-1:] + self._held[at + len(CLOSE)]
        return OPEN in before or quotes in ("``", "''", '""')

    def _thought(self, rest: str) -> Iterator[Told]:
        """Yield events for text that turned out to be thinking, `rest` included."""
        self._at = _At.THOUGHT
        if self._text:
            yield Reclassified()
        if rest:
            yield Thinking(rest)

    def _last(self) -> Iterator[Told]:
        if not self._held.isspace():  # the answer goes on, so the tag was ordinary text
            self._at = _At.WRAPPED
            yield Text(_ANSWER_CLOSE)

    def _taken(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken
