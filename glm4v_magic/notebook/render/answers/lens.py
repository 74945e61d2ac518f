"""The logit lens as a table of words: a row for each layer, a column for each token.

The likelier a word, the stronger its shade; its percentage says the same in black and white. A word
that was said in the end is bold and has a tick.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.render import Html
from glm4v_magic.notebook.render.answers.certainty import percent, shown_token
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.inspect.inspected_token import InspectedToken
    from glm4v_magic.inspect.lens import Lens

__all__ = ["layer_name", "layer_words", "lens_table", "telling_layers"]

_BLUE = "background-color:rgba(66, 133, 244, {})"  # translucent: for light and dark pages
_SHADES = ((0.75, 0.5), (0.5, 0.36), (0.25, 0.24), (0.05, 0.12))
"""Least probability of each level, and how strong its shade is."""

_LONGEST = 40  # characters of a word
_LAYERS = 9


@dataclass(frozen=True, slots=True)
class _Head:
    """A column: the number of its token, the token, and its probability."""

    number: int
    token: str
    percent: str
    style: str


@dataclass(frozen=True, slots=True)
class _Cell:
    """The likeliest word of a layer: its text, probability and style, and what else there was.

    Attributes:
        word: its text.
        percent: its probability.
        style: style sheet.
        is_said: whether it is the token that was said.
        title: the next likely words, and the rank of the token that was said.
    """

    word: str
    percent: str
    style: str
    is_said: bool
    title: str


@dataclass(frozen=True, slots=True)
class _Row:
    """A layer: its name and its words."""

    name: str
    cells: list[_Cell]


def lens_table(
    lens: Lens,
    tokens: Sequence[InspectedToken],
    columns: Sequence[int],
    layers: Iterable[int],
    chosen: int | None = None,
) -> Html:
    """Return the table of some tokens and layers; the chosen token's column has a frame."""
    return fill(
        "lens",
        heads=[
            _Head(
                at,
                shown_token(tokens[at].token),
                percent(tokens[at].token.logprob),
                _frame(at == chosen),
            )
            for at in columns
        ],
        rows=[
            _Row(layer_name(layer), [_cell(lens, layer, at, at == chosen) for at in columns])
            for layer in layers
        ],
    )


def layer_name(layer: int) -> str:
    """Return the name of a layer; 0 is what the first layer reads."""
    return "embeddings" if layer == 0 else f"layer {layer}"


def layer_words(lens: Lens, layer: int, token: int) -> list[str]:
    """Return the likeliest words of a layer with their probabilities."""
    return [
        f"{_word(word)} {share:.0%}"
        for word, share in zip(
            lens.words.values[layer, token], lens.probabilities.values[layer, token], strict=True
        )
    ]


def telling_layers(lens: Lens, tokens: Sequence[int]) -> list[int]:
    """Return a few layers: the first, the last, those from which words are first, some between."""
    count = lens.said.values.shape[0]
    if count <= _LAYERS:
        return list(range(count))
    found = {0, count - 1}
    for token in tokens:
        first = [at for at in range(count) if lens.said.values[at, token] == 0][:1]
        found |= {*first} if len(found) < _LAYERS - 2 else set()
    for step in range(1, _LAYERS):
        if len(found) < _LAYERS:
            found.add(round(step * (count - 1) / _LAYERS))
    return sorted(found)


def _cell(lens: Lens, layer: int, token: int, is_chosen: bool) -> _Cell:
    share = float(lens.probabilities.values[layer, token, 0])
    rank = int(lens.said.values[layer, token])
    shade = next((_BLUE.format(shade) for least, shade in _SHADES if share >= least), "")
    return _Cell(
        word=_word(lens.words.values[layer, token, 0]),
        percent=f"{share:.0%}",
        style=";".join(filter(None, (shade, _frame(is_chosen)))),
        is_said=rank == 0,
        title=f"{', '.join(layer_words(lens, layer, token))}; rank of what was said: {rank + 1:,}",
    )


def _frame(is_chosen: bool) -> str:
    return "border-left:2px solid;border-right:2px solid" if is_chosen else ""


def _word(word: str) -> str:
    return printable(repr(word)[:_LONGEST])
