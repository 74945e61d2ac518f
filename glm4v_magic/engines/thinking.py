"""A model's thinking, told apart from its answer while both arrive in pieces.

Such a model writes ``<think>...</think>`` before its answer, and GLM-4.1V-Thinking puts the answer
itself between ``<answer>`` and ``</answer>``. Some servers take the thinking out. Others leave it
in the text with both tags, or with the closing one alone, where the chat template has written the
opening one into the prompt already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["CLOSE", "OPEN", "Part", "ThinkingSplitter"]

OPEN, CLOSE = "<think>", "</think>"
_ANSWER_OPEN, _ANSWER_CLOSE = "<answer>", "</answer>"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the thinking or of the answer.

    Attributes:
        text: what is new. Never empty.
        is_thinking: which of the two it is. Thinking comes before the answer. So if parts of an
            answer came first, they turn out to have been thinking, and are in `text` once more.
    """

    text: str
    is_thinking: bool


class _At(Enum):
    """Where in its writing the model is."""

    START = auto()  # nothing but white space, or the beginning of a tag
    THINKING = auto()
    TEXT = auto()  # of an answer, unless a closing tag says that it was thinking
    THOUGHT = auto()  # between thinking and answer
    ANSWER = auto()
    WRAPPED = auto()  # in an answer between tags
    LAST = auto()  # behind what may be the end of that answer


class ThinkingSplitter:
    """Splits what a model writes; what it gives back never ends inside of a tag.

    Args:
        inside: the text goes on with thinking that was stopped.
        answer: it goes on with an answer that was stopped. Tags in that are words like others.
        thought: before that answer the model thought.
    """

    def __init__(self, *, inside: bool = False, answer: bool = False, thought: bool = False):
        self._inside = inside
        self._held = ""  # not given back yet: white space, or what may be a part of a tag
        self._text: list[str] = []  # given back as an answer, which may have been thinking
        self._at = _At.START
        if answer:
            self._at = _At.WRAPPED if thought else _At.ANSWER

    def add(self, piece: str) -> Iterator[Part]:
        """Take the next piece of the text, and give back what it tells."""
        self._held += piece
        before = None
        while self._held and before != (self._at, self._held):
            before = (self._at, self._held)
            yield from self._step()

    def add_thinking(self, piece: str) -> Iterator[Part]:
        """Take a piece that the server says is thinking: it has taken out the tags, then."""
        if self._at is _At.THINKING:
            yield from self.end()
        if self._at in (_At.START, _At.THINKING):
            self._at = _At.THOUGHT
        yield Part(piece, is_thinking=True)

    def end(self) -> Iterator[Part]:
        """Give back what was held: no more is coming."""
        held, self._held = self._held, ""
        held = held.lstrip() if self._at is _At.THOUGHT else held
        if self._at is _At.TEXT and held == CLOSE and OPEN not in "".join(self._text):
            yield from self._thought()
        elif self._at is not _At.LAST and held.strip():
            inside = self._at is _At.START and self._inside
            yield Part(held, inside or self._at is _At.THINKING)

    def _step(self) -> Iterator[Part]:
        """Go on by one tag or less."""
        match self._at:
            case _At.START:
                yield from self._start()
            case _At.THINKING:
                yield from self._until(CLOSE, _At.THOUGHT, is_thinking=True)
            case _At.TEXT:
                yield from self._unless_thinking()
            case _At.THOUGHT:
                self._after_thinking()
            case _At.WRAPPED:
                yield from self._until(_ANSWER_CLOSE, _At.LAST)
            case _At.LAST:
                yield from self._last()
            case _At.ANSWER:
                yield Part(self._taken(len(self._held)), is_thinking=False)

    def _start(self) -> Iterator[Part]:
        text = self._held.lstrip()
        if text.startswith(OPEN):
            self._held, self._at = text.removeprefix(OPEN), _At.THINKING
        elif not OPEN.startswith(text):
            self._at = _At.THINKING if self._inside else _At.TEXT
        yield from ()

    def _after_thinking(self) -> None:
        text = self._held.lstrip()
        if text.startswith(_ANSWER_OPEN):
            self._held, self._at = text.removeprefix(_ANSWER_OPEN), _At.WRAPPED
        elif not _ANSWER_OPEN.startswith(text):
            self._held, self._at = text, _At.ANSWER

    def _until(self, tag: str, then: _At, *, is_thinking: bool = False) -> Iterator[Part]:
        """Give back what comes before a tag; what may be its beginning is held."""
        at = self._held.find(tag)
        text = self._taken(at if at >= 0 else len(self._held) - _overlap(self._held, tag))
        if at >= 0:
            self._held, self._at = self._held.removeprefix(tag), then
        if text:
            yield Part(text, is_thinking)

    def _unless_thinking(self) -> Iterator[Part]:
        at = self._held.find(CLOSE)
        if at < 0:
            text = self._taken(len(self._held) - _overlap(self._held, CLOSE))
        elif len(self._held) == at + len(CLOSE):
            text = self._taken(at)  # what follows may be a quotation mark
        elif self._speaks_of_tags("".join(self._text) + self._held[:at], at):
            text, self._at = self._taken(len(self._held)), _At.ANSWER
        else:
            self._text.append(self._taken(at))
            self._held = self._held.removeprefix(CLOSE)
            yield from self._thought()
            return
        self._text.append(text)
        if text:
            yield Part(text, is_thinking=False)

    def _speaks_of_tags(self, before: str, at: int) -> bool:
        quotes = before[-1:] + self._held[at + len(CLOSE)]
        return OPEN in before or quotes in ("``", "''", '""')

    def _thought(self) -> Iterator[Part]:
        """Take the text until here back: it was thinking."""
        self._at = _At.THOUGHT
        text = "".join(self._text)
        if text:
            yield Part(text, is_thinking=True)

    def _last(self) -> Iterator[Part]:
        if not self._held.isspace():  # it goes on, so the tag was a word like others
            self._at = _At.WRAPPED
            yield Part(_ANSWER_CLOSE, is_thinking=False)

    def _taken(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken


def _overlap(text: str, tag: str) -> int:
    """Return how many of the last signs of `text` may be the beginning of `tag`."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)
