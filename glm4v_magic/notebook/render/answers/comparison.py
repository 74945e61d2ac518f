"""Two answers side by side: their tokens, the images these come from, and what differs.

As in `inspection`, nothing depends on styles or on colour: differences are written with + or -.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from glm4v_magic.core.wording import columns, counted, padded
from glm4v_magic.inspect.maps import PARTS, of_conversation
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.certainty import certainty_html, percent, shown_token
from glm4v_magic.notebook.render.answers.heat import (
    STRENGTH,
    Figure,
    difference_figure,
    map_figures,
)
from glm4v_magic.notebook.render.answers.inspection import telling_tokens
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.core.tokens import Token
    from glm4v_magic.inspect.comparison import Comparison, MapPair, TokenPair
    from glm4v_magic.inspect.maps import Look

__all__ = ["comparison_bundle", "pair_figures", "pair_name", "telling_pairs"]

_ROWS = 60
_TELLING = 4  # pairs whose images stand side by side
_DIFFERS = 0.1  # of a log-probability


@dataclass(frozen=True, slots=True)
class _Row:
    """A pair: both tokens with their probabilities, and the difference of the log-probabilities."""

    number: int
    one: str
    one_percent: str
    other: str
    other_percent: str
    difference: str
    is_different: bool


@dataclass(frozen=True, slots=True)
class _Telling:
    """A pair with its images."""

    name: str
    figures: list[Figure]


def comparison_bundle(comparison: Comparison) -> MimeBundle:
    """Return two answers side by side; runs the models."""
    rows = [_row(comparison, at, each) for at, each in enumerate(comparison.pairs[:_ROWS])]
    pairs, image, parts = telling_pairs(comparison, len(rows))
    telling = [
        _Telling(pair_name(comparison, at), pair_figures(comparison.maps(at, image, parts=parts)))
        for at in pairs
    ]
    left = len(comparison.pairs) - _ROWS
    more = counted(left, "more token") if left > 0 else ""
    return {
        "text/plain": _text(rows, telling, more),
        "text/html": fill(
            "comparison",
            one=certainty_html(comparison.one.answer),
            other=certainty_html(comparison.other.answer),
            rows=rows,
            telling=telling,
            more=more,
        ),
    }


def pair_figures(pair: MapPair, strength: float = STRENGTH) -> list[Figure]:
    """Return the images of a pair: the first, the second, and what differs."""
    own = [each for each in (pair.one, pair.other) if each is not None]
    return [*map_figures(own, strength, always=True), difference_figure(pair)]


def pair_name(comparison: Comparison, number: int) -> str:
    """Return the tokens of a pair in quotes: one if they are equal."""
    pair = comparison.pairs[number]
    one, other = _shown(comparison.one, pair.one), _shown(comparison.other, pair.other)
    return one if one == other else f"{one} / {other}"


def _shown(look: Look, number: int | None) -> str:
    return "nothing" if number is None else shown_token(look.tokens[number].token)


def _row(comparison: Comparison, number: int, pair: TokenPair) -> _Row:
    one, other = _token(comparison.one, pair.one), _token(comparison.other, pair.other)
    difference = one.logprob - other.logprob if one is not None and other is not None else None
    return _Row(
        number,
        "" if one is None else shown_token(one),
        "" if one is None else percent(one.logprob),
        "" if other is None else shown_token(other),
        "" if other is None else percent(other.logprob),
        "" if difference is None else f"{difference:+.2f}".replace("-0.00", "+0.00"),
        one is None
        or other is None
        or one.text != other.text
        or abs(one.logprob - other.logprob) >= _DIFFERS,
    )


def _token(look: Look, number: int | None) -> Token | None:
    return None if number is None else look.tokens[number].token


def telling_pairs(
    comparison: Comparison, count: int, most: int = _TELLING
) -> tuple[list[int], int, int]:
    """Return the pairs that differ most on the first image of both, in their order.

    Args:
        comparison: two answers.
        count: number of pairs to choose from.
        most: number of pairs.

    Returns:
        The pairs, the number of the image, and the number of rows and columns of the parts.
    """
    images = [set(of_conversation(look)) for look in (comparison.one, comparison.other)]
    image = min(images[0] & images[1], default=None)
    if image is None:
        return [], 0, PARTS
    # Parts in which both answers show what they depend on.
    parts = min(telling_tokens(look, count, 1)[1] for look in (comparison.one, comparison.other))
    return _differing(comparison, count, most, image, parts), image, parts


def _differing(comparison: Comparison, count: int, most: int, image: int, parts: int) -> list[int]:
    weights = {}
    for number in range(count):
        maps = comparison.maps(number, image, parts=parts)
        own = [each.values for each in (maps.one, maps.other) if each is not None]
        compared = own if maps.difference is None else [maps.difference]
        weight = max(float(abs(each.values).max()) for each in compared)
        pair = comparison.pairs[number]
        is_other = _shown(comparison.one, pair.one) != _shown(comparison.other, pair.other)
        if weight >= _DIFFERS:
            weights[number] = maps.difference is not None, is_other, weight
    return sorted(sorted(weights, key=lambda at: weights[at], reverse=True)[:most])


def _text(rows: list[_Row], telling: list[_Telling], more: str) -> str:
    wide = max((columns(row.one) for row in rows), default=0)
    lines = [
        f"{row.one_percent:>8}  {padded(row.one, wide)}  {row.other_percent:>8}  {row.other}"
        f"  {row.difference}{' *' if row.is_different else ''}".rstrip()
        for row in rows
    ]
    for each in telling:
        lines += [each.name, *(f"          {figure.words}" for figure in each.figures)]
    return "\n".join([*lines, *filter(None, (more,))])
