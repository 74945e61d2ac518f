"""An answer whose words are shaded by certainty, and the probabilities of its tokens.

Nothing depends on shading alone: words below one half are also underlined, for print without
backgrounds, and are <mark>, for pages that drop styles, as GitHub does; a table has everything for
screen readers. The result is one line of HTML within Markdown, in which everything from a model is
escaped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from glm4v_magic.core.conversation import Answer
from glm4v_magic.core.tokens import Alternative, Token
from glm4v_magic.core.wording import columns, counted, padded, printable
from glm4v_magic.notebook.render import Html
from glm4v_magic.notebook.render.templates import fill

__all__ = ["certainty_html", "certainty_text", "listed", "percent", "shade", "shown_token"]

_AMBER = "rgba(245, 158, 11, {})"  # translucent: for light and dark pages
_LEVELS = (
    (0.9, "", ""),
    (0.7, _AMBER.format(0.15), ""),
    (0.5, _AMBER.format(0.27), ""),
    (0.25, _AMBER.format(0.38), "underline dotted"),
    (0.0, _AMBER.format(0.5), "underline"),
)
"""Least probability of each level, and colour and decoration of its words."""

_IN_TITLE = 5  # alternatives of a word in its title
_ROWS = 400  # tokens in the table
_LINES = 40  # tokens as plain text
_SHADED = 4000  # parts of a text: a page of many more is slow
_LONGEST = 60  # characters of a token; servers may send any


@dataclass(frozen=True, slots=True)
class _Part:
    """Part of the text, and the style and title of its words.

    Attributes:
        lines: its text.
        style: style sheet; ``None`` for text of which no probability is known.
        title: probability and alternatives.
    """

    lines: list[str]
    style: str | None = None
    title: str = ""


def certainty_html(answer: Answer) -> Html:
    """Return the text of an answer, shaded, above a fold with a table of its tokens."""
    tokens = answer.tokens or ()
    return fill(
        "certainty",
        parts=list(_parts(answer.text, tokens)),
        legend=[
            (_style(least), f"{least:.0%} or more" if least else f"below {before:.0%}")
            for (before, _, _), (least, _, _) in pairwise(_LEVELS)
        ],
        line=_line(tokens),
        rows=[
            (shown_token(token), percent(token.logprob), f"{token.logprob:.3f}", listed(token))
            for token in tokens[:_ROWS]
        ],
        more=_more(tokens, _ROWS),
    )


def certainty_text(answer: Answer) -> str:
    """Return a table of an answer's tokens as plain text."""
    tokens = answer.tokens or ()
    width = max((columns(shown_token(token)) for token in tokens[:_LINES]), default=0)
    shown = [(token, padded(shown_token(token), width)) for token in tokens[:_LINES]]
    lines = [
        f"{percent(token.logprob):>8}  {text}  {listed(token)}".rstrip() for token, text in shown
    ]
    more = _more(tokens, _LINES)
    return "\n".join([_line(tokens), *lines, *([more] if more else [])])


def _parts(text: str, tokens: Sequence[Token]) -> Iterator[_Part]:
    """Yield the text in parts; tokens that share a character are one."""
    shown = re.sub(r"(?m)^ +| {2,}", lambda run: "\u00a0" * len(run[0]), text)
    at = 0
    for group in _groups(tokens)[:_SHADED]:
        start, end = group[0].start, max(token.end for token in group)
        if at < start:
            yield _Part(_lines(shown[at:start]))
        at = end
        words = shown[start:end].lstrip()
        if len(words) < end - start:
            yield _Part(_lines(shown[start : end - len(words)]))
        if words:
            logprob = sum(token.logprob for token in group)
            yield _Part(_lines(words), _style(_probability(logprob)), _title(group, logprob))
    if at < len(text):
        yield _Part(_lines(shown[at:]))


def _groups(tokens: Sequence[Token]) -> list[list[Token]]:
    """Return the tokens that are in the text, in groups that overlap."""
    groups: list[list[Token]] = []
    end = 0
    for token in sorted(tokens, key=lambda each: each.start):
        if token.start == token.end:
            continue
        if groups and token.start < end:
            groups[-1].append(token)
        else:
            groups.append([token])
        end = max(end, token.end)
    return groups


def _lines(text: str) -> list[str]:
    return printable(text).replace("\t", "\u2003").split("\n")


def shade(probability: float) -> tuple[str, str]:
    """Return colour and decoration of a word by its probability; empty for none."""
    return next((colour, line) for least, colour, line in _LEVELS if probability >= least)


def _style(probability: float) -> str:
    colour, line = shade(probability)
    found = f"background-color:{colour}" if colour else ""
    return f"{found};color:inherit;text-decoration:{line}" if line else found


def _title(group: Sequence[Token], logprob: float) -> str:
    if len(group) > 1:
        return f"{percent(logprob)}, {counted(len(group), 'token')} together"
    likeliest = listed(group[0], _IN_TITLE)
    return percent(logprob) + (f"; likeliest: {likeliest}" if likeliest else "")


def _line(tokens: Sequence[Token]) -> str:
    """Return how certain the whole answer was: the mean, and the least likely token."""
    if not tokens:
        return counted(0, "token")
    mean = sum(token.logprob for token in tokens) / len(tokens)
    least = min(tokens, key=lambda token: token.logprob)
    return (
        f"{counted(len(tokens), 'token')}, geometric mean {percent(mean)}; "
        f"least likely {shown_token(least)} with {percent(least.logprob)}"
    )


def listed(token: Token, most: int | None = None) -> str:
    """Return the likeliest tokens in place of a token, with their probabilities."""
    each = token.alternatives[:most]
    return ", ".join(f"{shown_token(other)} {percent(other.logprob)}" for other in each)


def shown_token(token: Token | Alternative) -> str:
    """Return a token in quotes, white space and line ends visible, or as its bytes."""
    if "\ufffd" in token.text and token.utf8:
        return f"bytes {token.utf8[: _LONGEST // 3].hex(' ').upper()}"
    text = printable(token.text)
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return json.dumps(text, ensure_ascii=False)


def percent(logprob: float) -> str:
    """Return the probability of a log-probability, in percent."""
    probability = _probability(logprob)
    if probability < 0.0001:
        return "<0.01%"
    if probability >= 0.9995:
        return ">99.9%"
    return f"{probability:.1%}" if probability >= 0.01 else f"{probability:.2%}"


def _probability(logprob: float) -> float:
    return math.exp(min(logprob, 0.0))


def _more(tokens: Sequence[Token], most: int) -> str:
    left = len(tokens) - most
    return f"{counted(left, 'more token')}: the answer's tokens has them all." if left > 0 else ""
