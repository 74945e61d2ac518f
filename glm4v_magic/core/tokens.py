"""Tokens of an answer with their log-probabilities: plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["LEAST_LOGPROB", "Alternative", "Token", "joined"]

LEAST_LOGPROB = -9999.0
"""Log-probability of the impossible, as in OpenAI's protocol: JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the likeliest tokens at a place of an answer.

    Attributes:
        text: as in `Token`; so are the others.
        logprob: log-probability.
        id: token id.
        utf8: bytes.
    """

    text: str
    logprob: float
    id: int | None = None
    utf8: bytes = b""


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token, its log-probability, and its place in the text.

    Log-probabilities are natural logarithms, of the model's own distribution over its vocabulary:
    before temperature, top-k and all other sampling options, and before constraints; none is below
    `LEAST_LOGPROB`. What a server sends is taken as it is.

    Attributes:
        text: the token's text; bytes that are not whole characters by themselves are U+FFFD.
            A special token that ends an answer is written as the vocabulary writes it, such as
            ``<|user|>``.
        logprob: log-probability of the token.
        start: index of its first character in the text.
        end: index one past its last character. A token that holds some of the bytes of a UTF-8
            character spans the whole character, as do the others with bytes of it. What is not in
            the text (special tokens, whitespace around it) spans nothing.
        id: token id; ``None`` from a server.
        alternatives: the likeliest tokens at this place, likeliest first; the chosen one is among
            them only if it is as likely.
        utf8: bytes that it adds to the text; empty for a special token, and from a server that
            does not send them.
    """

    text: str
    logprob: float
    start: int
    end: int
    id: int | None = None
    alternatives: tuple[Alternative, ...] = ()
    utf8: bytes = b""

    @property
    def probability(self) -> float:
        """Probability of the token, from 0 to 1."""
        return math.exp(min(self.logprob, 0.0))


def joined(
    first: Sequence[Token] | None, second: Sequence[Token] | None, length: int
) -> tuple[Token, ...] | None:
    """Return the tokens of a text of two parts; ``None`` if those of neither are known.

    Args:
        first: tokens of the first part.
        second: tokens of the second part.
        length: length of the first part in characters.
    """
    if first is None and second is None:
        return None
    moved = (replace(e, start=e.start + length, end=e.end + length) for e in second or ())
    # A character cut off at the end of the first part was generated again in the second.
    return (*(each for each in first or () if each.end <= length), *moved)
