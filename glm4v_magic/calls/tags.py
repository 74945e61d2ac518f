"""Tags around boxes, taken out of a whole answer or while it is streamed.

The original is kept beside the text that is shown, because later prompts must hold it unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from glm4v_magic.core.boxes import BOX_TAGS
from glm4v_magic.core.events import Piece, Reclassified, Text
from glm4v_magic.core.tags import overlap
from glm4v_magic.core.tokens import Token

__all__ = ["TAG", "Shown", "Untagged", "shown"]

TAG = re.compile("|".join(map(re.escape, BOX_TAGS)))
"""A tag around a box."""

_LEAST_CUT = 2
"""Fewest characters of an unfinished tag that are left out: a single ``<`` may be text."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A text without its tags.

    Attributes:
        text: the text.
        cuts: parts of the original that were left out: index of the first character, and one past
            the last.
    """

    text: str
    cuts: tuple[tuple[int, int], ...] = ()

    def place(self, at: int) -> int:
        """Return the index in `text` of an index in the original."""
        return at - sum(max(min(at, end) - start, 0) for start, end in self.cuts)

    def moved(self, tokens: Sequence[Token] | None, begin: int = 0) -> tuple[Token, ...] | None:
        """Return tokens with their places in `text`.

        Args:
            tokens: tokens of a part of the original, their places counted from where the part
                begins.
            begin: index in the original where the part begins; the places that are returned count
                from the same character of `text`.
        """
        if tokens is None or not self.cuts:
            return None if tokens is None else tuple(tokens)
        origin = self.place(begin)
        return tuple(
            replace(
                each,
                start=self.place(each.start + begin) - origin,
                end=self.place(each.end + begin) - origin,
            )
            for each in tokens
        )


def shown(written: str, *, complete: bool = True) -> Shown:
    """Return an answer without its tags.

    Args:
        written: the answer as the model wrote it.
        complete: whether the answer has ended; if not, the beginning of a tag at its end is left
            out, too.
    """
    cuts = [found.span() for found in TAG.finditer(written)]
    begun = 0 if complete else _begun(written)
    if begun >= _LEAST_CUT:
        cuts.append((len(written) - begun, len(written)))
    if not cuts:
        return Shown(written)
    text = _without(written, cuts)
    lead, tail = len(text) - len(text.lstrip()), len(text.rstrip()) if complete else len(text)
    cuts += _spaces(written, cuts, lead, tail)
    cuts.sort()
    return Shown(_without(written, cuts), tuple(cuts))


def _spaces(
    written: str, cuts: Sequence[tuple[int, int]], lead: int, tail: int
) -> Iterator[tuple[int, int]]:
    """Yield the first `lead` characters that are not in `cuts`, and all from the `tail`-th on."""
    left_out = {at for start, end in cuts for at in range(start, end)}
    kept = [at for at in range(len(written)) if at not in left_out]
    yield from ((at, at + 1) for number, at in enumerate(kept) if not lead <= number < tail)


def _without(text: str, cuts: Sequence[tuple[int, int]]) -> str:
    pieces, at = [], 0
    for start, end in cuts:
        pieces.append(text[at:start])
        at = end
    return "".join([*pieces, text[at:]])


def _begun(text: str) -> int:
    return max(overlap(text, tag) for tag in BOX_TAGS)


class Untagged:
    """Takes the tags out of streamed pieces, holding back what may be the beginning of a tag.

    Args:
        begun: what the model had written before the first piece.
    """

    def __init__(self, begun: str = "") -> None:
        self._begin(begun)

    def _begin(self, begun: str) -> None:
        self._held = begun[len(begun) - _begun(begun) :] if _begun(begun) >= _LEAST_CUT else ""
        self._is_begun = bool(shown(begun, complete=False).text.strip())
        self._tokens: list[Token] = []
        self._placed: list[Token] = []
        self._taken = -len(self._held)  # characters, with tags
        self._told = 0  # likewise, without

    def take(self, piece: Piece) -> Iterator[Piece]:
        """Take the next piece, and yield what can be shown so far."""
        match piece:
            case Text():
                self._held += piece.text
                self._tokens += piece.tokens
                yield from self._tell(len(self._held) - _begun(self._held), piece.row)
            case Reclassified():
                yield from self.end(piece.row)
                self._begin("")
                yield piece
            case _:
                yield piece

    def end(self, row: int = 0, *, complete: bool = True) -> Iterator[Text]:
        """Yield what was held back when the answer has ended."""
        if complete or _begun(self._held) < _LEAST_CUT:
            yield from self._tell(len(self._held), row)

    def _tell(self, length: int, row: int) -> Iterator[Text]:
        """Yield the first `length` of the held characters, without tags."""
        said, self._held = self._held[:length], self._held[length:]
        cuts = [found.span() for found in TAG.finditer(said)]
        text = _without(said, cuts)
        if not self._is_begun:
            lead = len(text) - len(text.lstrip())
            cuts = sorted([*cuts, *_spaces(said, cuts, lead, len(text))])
            text = text[lead:]
        places = Shown(text, tuple(cuts))
        self._place(places, length)
        self._taken += length
        self._told += len(text)
        if text:
            self._is_begun = True
            tokens, self._placed = tuple(self._placed), []
            yield Text(text, row, tokens)

    def _place(self, places: Shown, length: int) -> None:
        """Place the tokens that end within the next `length` characters."""
        while self._tokens and self._tokens[0].end <= self._taken + length:
            token = self._tokens.pop(0)
            start, end = (
                self._told + places.place(max(at - self._taken, 0))
                for at in (token.start, token.end)
            )
            self._placed.append(replace(token, start=start, end=end))
