"""Thinking and answer of one row, kept apart while they are streamed."""

from __future__ import annotations

from collections.abc import Iterable

from glm4v_magic.core.conversation import Message
from glm4v_magic.core.events import Reclassified, Text, Thinking
from glm4v_magic.engines.thinking import ThinkingSplitter, Told

__all__ = ["AnswerParts"]


class AnswerParts:
    """Records thinking and answer of a row; whitespace at the beginning of a new part is left out.

    Args:
        row: index of the request.
        partial: the incomplete answer that it continues, if any.
        inside: whether the prompt ends within the model's thinking.

    Attributes:
        answer_from: `at` of the first text of the answer, as given to `told`; ``None`` before.
    """

    def __init__(self, row: int, partial: Message | None, *, inside: bool = False) -> None:
        self._row = row
        # The continuation of an answer may begin with the space between two words.
        self._carries_on = partial is not None and bool(partial.text)
        self._thinks_on = partial is not None and bool(partial.thinking) and not partial.text
        self._thinking: list[str] = []
        self._text: list[str] = []
        self.answer_from: float | None = None
        self.splitter = ThinkingSplitter(
            inside=inside or self._thinks_on,
            answer=self._carries_on,
            thought=partial is not None and bool(partial.thinking),
        )

    @property
    def has_text(self) -> bool:
        """Whether the answer itself has begun."""
        return bool(self._text)

    @property
    def text(self) -> str:
        """The answer, without whitespace at its end."""
        return "".join(self._text).rstrip()

    @property
    def thinking(self) -> str:
        """The thinking, without whitespace at its end."""
        return "".join(self._thinking).rstrip()

    def add_late_thinking(self, piece: str) -> None:
        """Keep thinking that comes after the answer has begun; it is not streamed."""
        self._thinking.append(piece)

    def told(self, events: Iterable[Told], at: float) -> list[Told]:
        """Record events of the splitter and return those to yield, with the row's index.

        All of them are recorded before any is yielded: the caller may stop there.

        Args:
            events: events of `splitter`.
            at: time or index of the latest token.
        """
        told: list[Told] = []
        for event in events:
            match event:
                case Reclassified():
                    self.answer_from = None
                    if self._text:  # else it was whitespace, and was not told
                        self._thinking += self._text
                        self._text.clear()
                        told.append(Reclassified(self._row))
                case Thinking():
                    if text := _noted(event.text, self._thinking, self._thinks_on):
                        told.append(Thinking(text, self._row))
                case Text():
                    if self.answer_from is None:
                        self.answer_from = at
                    if text := _noted(event.text, self._text, self._carries_on):
                        told.append(Text(text, self._row))
        return told


def _noted(text: str, pieces: list[str], goes_on: bool) -> str:
    """Append a piece and return it, without whitespace at the very beginning."""
    text = text if pieces or goes_on else text.lstrip()
    if text:
        pieces.append(text)
    return text
