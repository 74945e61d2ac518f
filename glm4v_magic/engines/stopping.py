"""Texts at which an answer ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from glm4v_magic.core.events import Reclassified, Text
from glm4v_magic.engines.thinking import Told

__all__ = ["StopTexts"]


class StopTexts:
    """Looks for stop texts in the pieces of an answer, and holds back what may become one.

    Thinking is not searched.

    Args:
        texts: the stop texts; none of them is empty.

    Attributes:
        is_hit: whether one has come: the answer has ended before it.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.is_hit = False
        self._texts = texts
        self._held: list[Text] = []
        self._before = 0  # characters of the pieces that were told

    def cut(self, text: str) -> str:
        """Return a whole answer up to the stop text that has come, without whitespace at the end.

        Its end may be lacking in `text`, if that is whitespace.
        """
        return text[: self._before].rstrip() if self.is_hit else text

    def take(self, events: Sequence[Told]) -> list[Told]:
        """Return the events that can be told now; none after a stop text."""
        if not self._texts:
            return list(events)
        told: list[Told] = []
        for event in events:
            if self.is_hit:
                break
            if isinstance(event, Text):
                told += self._searched(event)
            else:
                told += [*self.end(), event]
                # All text so far was thinking.
                self._before = 0 if isinstance(event, Reclassified) else self._before
        return told

    def _searched(self, event: Text) -> list[Text]:
        self._held.append(event)
        text = "".join(each.text for each in self._held)
        end = self._first(text)
        self.is_hit = end is not None
        return self._told(len(text) - self._begun(text) if end is None else end)

    def end(self) -> list[Told]:
        """Return what was held back, at the end of the answer."""
        if self.is_hit:
            return []
        return [*self._told(sum(len(each.text) for each in self._held))]

    def _told(self, length: int) -> list[Text]:
        """Return the pieces of the first `length` characters that are held back.

        The last is cut if a stop text has come, or is held back whole.
        """
        told: list[Text] = []
        while self._held and len(self._held[0].text) <= length:
            piece = self._held.pop(0)
            length -= len(piece.text)
            self._before += len(piece.text)
            told.append(piece)
        if self.is_hit and self._held and length:
            piece, end = self._held[0], self._before + length
            tokens = tuple(each for each in piece.tokens if each.end <= end)
            told.append(replace(piece, text=piece.text[:length], tokens=tokens))
            self._before = end
        return told

    def _first(self, text: str) -> int | None:
        """Return where the first stop text begins; ``None`` if there is none."""
        places = [place for each in self._texts if (place := text.find(each)) >= 0]
        return min(places, default=None)

    def _begun(self, text: str) -> int:
        """Return the length of the longest end of `text` with which a stop text begins."""
        lengths = range(min(max(map(len, self._texts)) - 1, len(text)), 0, -1)
        return next(
            (each for each in lengths if any(_.startswith(text[-each:]) for _ in self._texts)), 0
        )
