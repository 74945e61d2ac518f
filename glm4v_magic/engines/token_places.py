"""Places of generated tokens in the text that they make."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import replace

from glm4v_magic.core.tokens import Token

__all__ = ["Span", "placed", "spelled", "tokens_within"]

Span = tuple[int, int]
"""Index of the first character and one past the last."""

_ANSWER_CLOSE = "</answer>"


def spelled(pieces: Iterable[bytes]) -> tuple[str, list[Span]]:
    """Return the text that the bytes of tokens spell, and the characters that each contributes to.

    Invalid UTF-8 becomes U+FFFD, as in every tokenizer.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, spans = "", []
    for piece in pieces:
        places = []
        for byte in piece:
            text += decoder.decode(bytes([byte]))
            is_cut = bool(decoder.getstate()[0])
            places.append(len(text) if is_cut else len(text) - 1)
        spans.append((places[0], places[-1] + 1) if places else (len(text), len(text)))
    return text + decoder.decode(b"", final=True), spans


def tokens_within(part: str, raw: str, spans: Sequence[Span]) -> int:
    """Return the number of tokens that a part of a text is made of.

    Args:
        part: the part, such as thinking without its tags.
        raw: the whole text.
        spans: place of each token in it.
    """
    start = max(raw.find(part), 0)
    end = start + len(part)
    # Those without a character of their own, such as a special token, stand between two of them.
    return sum(max(a, start) < min(b, end) or start < a == b < end for a, b in spans)


def placed(
    tokens: Sequence[Token], spans: Sequence[Span], raw: str, text: str, thinking: str = ""
) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
    """Return the tokens of the answer and those of the thinking before it, with their places.

    Args:
        tokens: all tokens, in order.
        spans: place of each in `raw`.
        raw: the whole text, with tags and surrounding whitespace.
        text: the answer in it.
        thinking: the thinking in it; empty for none.
    """
    bare = raw.rstrip().removesuffix(_ANSWER_CLOSE).rstrip()
    at = len(bare) - len(text) if bare.endswith(text) else max(raw.rfind(text), 0)
    before = max(raw.find(thinking), 0)
    answer: list[Token] = []
    thought: list[Token] = []
    for token, span in zip(tokens, spans, strict=True):
        if thinking and span[1] <= at and span[0] < at:
            thought.append(_at(token, span, before, len(thinking)))
        else:
            answer.append(_at(token, span, at, len(text)))
    return tuple(answer), tuple(thought)


def _at(token: Token, span: Span, origin: int, length: int) -> Token:
    start, end = (min(max(each - origin, 0), length) for each in span)
    return replace(token, start=start, end=end)
