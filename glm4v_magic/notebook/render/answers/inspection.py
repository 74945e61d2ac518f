"""A look into an answer: where its telling words come from, and a fold for each token.

Nothing in it runs, and nothing depends on styles or on colour: folds are <details>, overlays are
SVG images with numbers on them, and tables say the same in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.wording import counted, printable
from glm4v_magic.inspect.maps import PARTS, of_conversation
from glm4v_magic.notebook.render import Html, MimeBundle
from glm4v_magic.notebook.render.answers.certainty import certainty_html, percent, shown_token
from glm4v_magic.notebook.render.answers.heat import LARGE, LEAST, Figure, map_figures, map_text
from glm4v_magic.notebook.render.answers.lens import (
    layer_name,
    layer_words,
    lens_table,
    telling_layers,
)
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.inspect.grids import ImageMap
    from glm4v_magic.inspect.inspected_token import InspectedToken
    from glm4v_magic.inspect.inspection import Inspection
    from glm4v_magic.inspect.lens import Lens
    from glm4v_magic.inspect.maps import Look

__all__ = ["inspection_bundle", "telling_tokens"]

_TOKENS = 60
_IMAGES = 4
_WORDS = 3  # of each layer
_COLUMNS = 7  # tokens of the table of layers; of more, those that tell most
_TELLING = 6  # words whose images stand side by side


@dataclass(frozen=True, slots=True)
class _Row:
    """A layer: its number, its likeliest words, and the rank of the token that was said."""

    layer: str
    words: list[str]
    rank: str


@dataclass(frozen=True, slots=True)
class _Part:
    """A token, with the parts of the images that it depends on.

    Attributes:
        number: its number.
        token: its text, in quotes.
        percent: its probability.
        figures: its images.
        numbers: what is covered and what it costs as lines of text, for each image.
        rows: what each layer would have said.
        is_telling: whether its images stand above.
    """

    number: int
    token: str
    percent: str
    figures: list[Figure]
    numbers: list[list[str]]
    rows: list[_Row]
    is_telling: bool


@dataclass(frozen=True, slots=True)
class _Look:
    """What is shown: the tokens, the lens as a table, why there is none, and what is left out."""

    parts: list[_Part]
    table: Html
    missing: str
    more: str


def inspection_bundle(look: Inspection) -> MimeBundle:
    """Return a look into an answer; runs the model."""
    found = _found(look)
    return {
        "text/plain": _text(found),
        "text/html": fill(
            "inspection",
            answer=certainty_html(look.answer),
            telling=[part for part in found.parts if part.is_telling],
            parts=found.parts,
            table=found.table,
            missing=found.missing,
            more=found.more,
            words=_WORDS,
            is_long=len(found.parts) > _COLUMNS,
        ),
    }


def telling_tokens(look: Look, count: int, most: int = _TELLING) -> tuple[list[int], int]:
    """Return the tokens that depend most on a part of an image, in their order.

    Args:
        look: look into an answer.
        count: number of tokens to choose from.
        most: number of tokens.

    Returns:
        The tokens, and the number of rows and columns of the parts.
    """
    images = of_conversation(look)[:_IMAGES]
    count = min(count, len(look.tokens))
    for parts in (PARTS, LARGE):  # what is larger than a part may depend on no single one
        drops = [
            max(
                (
                    float(look.on_image(at, each, parts=parts).values.values.max())
                    for each in images
                ),
                default=0.0,
            )
            for at in range(count)
        ]
        strongest = sorted(range(count), key=lambda at: -drops[at])[:most]
        found = sorted(at for at in strongest if drops[at] >= LEAST)
        if found:
            return found, parts
    return [], PARTS


def _found(look: Inspection) -> _Look:
    tokens = look.tokens
    lens, missing = None, ""
    try:
        lens = look.lens(_WORDS)
    except OptionError as error:  # a model without one
        missing = printable(error.what)
    images = of_conversation(look)
    shown = tokens[:_TOKENS]
    telling, parts = telling_tokens(look, len(shown))
    found = [
        _part(
            at,
            each,
            [look.on_image(at, image, parts=parts) for image in images[:_IMAGES]],
            lens,
            at in telling,
        )
        for at, each in enumerate(shown)
    ]
    left = [
        counted(len(tokens) - _TOKENS, "more token") if len(tokens) > _TOKENS else "",
        counted(len(images) - _IMAGES, "more image") if len(images) > _IMAGES else "",
    ]
    columns = list(range(len(shown)))
    if len(columns) > _COLUMNS:
        columns = telling or columns[:_COLUMNS]
    table = (
        Html() if lens is None else lens_table(lens, tokens, columns, telling_layers(lens, columns))
    )
    return _Look(found, table, missing, " and ".join(filter(None, left)))


def _part(
    at: int,
    each: InspectedToken,
    maps: Sequence[ImageMap],
    lens: Lens | None,
    is_telling: bool,
) -> _Part:
    return _Part(
        number=at,
        token=shown_token(each.token),
        percent=percent(each.token.logprob),
        figures=map_figures(maps, always=is_telling),
        numbers=[map_text(one) if is_telling else [] for one in maps],
        rows=[] if lens is None else list(_rows(lens, at)),
        is_telling=is_telling,
    )


def _rows(lens: Lens, at: int) -> Iterator[_Row]:
    for layer in range(lens.words.values.shape[0]):
        rank = f"{int(lens.said.values[layer, at]) + 1:,}"
        yield _Row(layer_name(layer), layer_words(lens, layer, at), rank)


def _text(found: _Look) -> str:
    lines: list[str] = []
    for part in found.parts:
        lines.append(f"{part.percent:>8}  {part.token}")
        for figure, numbers in zip(part.figures, part.numbers, strict=True):
            lines.append(f"          {figure.words}")
            lines += [f"          {row}" for row in numbers]
        lines += [
            f"          {row.layer}: {', '.join(row.words)}; said: rank {row.rank}"
            for row in part.rows
        ]
    return "\n".join([*lines, *filter(None, (found.missing, found.more))])
