"""A look into an answer: a fold for each token, with the parts of the images it depends on.

Nothing in it runs, and nothing depends on styles or on colour: folds are <details>, overlays are
SVG images with numbers on them, and tables say the same in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.wording import counted, printable
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.boxes import svg_uri
from glm4v_magic.notebook.render.answers.certainty import certainty_html, percent, shown_token
from glm4v_magic.notebook.render.answers.image import data_uri
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.inspect.grids import ImageMap
    from glm4v_magic.inspect.inspected_token import InspectedToken
    from glm4v_magic.inspect.inspection import Inspection, Lens

__all__ = ["inspection_bundle"]

_TOKENS = 60
_IMAGES = 4
_SIDE = 224  # longest side of an image in pixels
_WORDS = 3  # of each layer
_LEAST = 0.1  # drop of a log-probability below which a part is said not to matter
_DIMMED = 0.7  # how dark a part is that does not matter


@dataclass(frozen=True, slots=True)
class _Cell:
    """A part of an image in pixels of the figure; `label` is empty where none is needed."""

    x: float
    y: float
    width: float
    height: float
    dimmed: float
    label: str


@dataclass(frozen=True, slots=True)
class _Figure:
    """An image with its parts: its URI, its width in pixels, and what it shows, in words."""

    uri: str
    width: int
    words: str


@dataclass(frozen=True, slots=True)
class _Row:
    """A layer: its number, its likeliest words, and the rank of the token that was said."""

    layer: str
    words: list[str]
    rank: str


@dataclass(frozen=True, slots=True)
class _Part:
    """A token, with the parts of the images that it depends on."""

    token: str
    percent: str
    figures: list[_Figure]
    rows: list[_Row]


@dataclass(frozen=True, slots=True)
class _Look:
    """What is shown: the tokens, why there is no lens, and what is left out."""

    parts: list[_Part]
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
            parts=found.parts,
            missing=found.missing,
            more=found.more,
            words=_WORDS,
        ),
    }


def _found(look: Inspection) -> _Look:
    tokens = look.tokens
    lens, missing = None, ""
    try:
        lens = look.lens(_WORDS)
    except OptionError as error:  # a model without one
        missing = printable(error.what)
    count = len(look.source_images)
    maps = [look.occlusions(image) for image in range(min(count, _IMAGES))]
    parts = [_part(at, each, maps, lens) for at, each in enumerate(tokens[:_TOKENS])]
    left = [
        counted(len(tokens) - _TOKENS, "more token") if len(tokens) > _TOKENS else "",
        counted(count - _IMAGES, "more image") if count > _IMAGES else "",
    ]
    return _Look(parts, missing, " and ".join(filter(None, left)))


def _part(at: int, each: InspectedToken, maps: Sequence[ImageMap], lens: Lens | None) -> _Part:
    figures = [_figure(one, at) for one in maps]
    rows = [] if lens is None else list(_rows(lens, at))
    return _Part(shown_token(each.token), percent(each.token.logprob), figures, rows)


def _rows(lens: Lens, at: int) -> Iterator[_Row]:
    layers = lens.words.values.shape[0]
    for layer in range(layers):
        words = [
            f"{_word(word)} {share:.0%}"
            for word, share in zip(
                lens.words.values[layer, at], lens.probabilities.values[layer, at], strict=True
            )
        ]
        name = "embeddings" if layer == 0 else f"layer {layer}"
        yield _Row(name, words, f"{int(lens.said.values[layer, at]) + 1:,}")


def _word(word: str) -> str:
    return printable(repr(word)[:40])


def _figure(one: ImageMap, at: int) -> _Figure:
    drops = one.values.values[at]
    small = one.image.image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    rows, columns = drops.shape
    across, down = small.width / columns, small.height / rows
    most = float(drops.max())
    cells = [
        _Cell(
            round(column * across, 1),
            round(row * down, 1),
            round(across, 1),
            round(down, 1),
            round(_DIMMED * (1 - max(float(drops[row, column]), 0.0) / most), 2),
            f"{drops[row, column]:.1f}" if drops[row, column] >= max(_LEAST, most / 10) else "",
        )
        for row in range(rows)
        for column in range(columns)
        if most >= _LEAST
    ]
    svg = fill(
        "inspection_svg", width=small.width, height=small.height, uri=data_uri(small), cells=cells
    )
    return _Figure(svg_uri(svg), small.width, _in_words(one, at))


def _in_words(one: ImageMap, at: int) -> str:
    drops = one.values.values[at]
    name = printable(one.image.source)
    if float(drops.max()) < _LEAST:
        return f"{name}: no part matters by itself"
    row, column = divmod(int(drops.argmax()), drops.shape[1])
    return (
        f"{name}: covering row {row + 1}, column {column + 1} of {drops.shape[0]}x"
        f"{drops.shape[1]} costs most, {drops[row, column]:.1f} of its log-probability"
    )


def _text(found: _Look) -> str:
    lines: list[str] = []
    for part in found.parts:
        lines.append(f"{part.percent:>8}  {part.token}")
        lines += [f"          {each.words}" for each in part.figures]
        lines += [
            f"          {row.layer}: {', '.join(row.words)}; said: rank {row.rank}"
            for row in part.rows
        ]
    return "\n".join([*lines, *filter(None, (found.missing, found.more))])
