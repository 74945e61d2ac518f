"""Maps of values over images, as figures and in words.

Each figure is one ``<img>`` of an SVG, in which nothing can run. What does not matter is dark, the
part that matters most has a frame, what speaks against a word is hatched, and numbers stand where
there is room: nothing depends on colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.render.answers.boxes import svg_uri
from glm4v_magic.notebook.render.answers.image import data_uri
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    import PIL.Image

    from glm4v_magic.inspect.comparison import MapPair
    from glm4v_magic.inspect.grids import ImageMap

__all__ = [
    "LARGE",
    "LEAST",
    "SIDE",
    "STRENGTH",
    "Figure",
    "difference_figure",
    "map_figure",
    "map_figures",
    "map_text",
]

SIDE = 224
"""Longest side of an image in pixels."""

STRENGTH = 0.7
"""How dark a part is that does not matter, from 0 to 1."""

LEAST = 0.1
"""Drop of a log-probability below which a part is said not to matter."""

LARGE = 2
"""Rows and columns of parts, where none of the usual ones matters by itself."""

_ROOM = 30  # pixels of a part with a number on it
_NUMBERS = 8  # numbers on an image
_HATCHED = 200  # parts on an image that are hatched
_FADED = 0.75  # how much of the image below a difference is white
_SHARES = ("attention", "rollout")


@dataclass(frozen=True, slots=True)
class Figure:
    """An image with its parts.

    Attributes:
        uri: the SVG; empty where no part matters.
        width: its width in pixels.
        words: what it shows.
    """

    uri: str
    width: int
    words: str


@dataclass(frozen=True, slots=True)
class _Cell:
    """A part of an image in pixels of the figure.

    Attributes:
        x: left edge.
        y: upper edge.
        width: width.
        height: height.
        fill: its colour; empty for none.
        opacity: how strong its colour is, from 0 to 1.
        is_hatched: whether it is hatched.
        is_framed: whether it has a frame.
        label: text on it; empty for none.
    """

    x: float
    y: float
    width: float
    height: float
    fill: str = ""
    opacity: float = 0.0
    is_hatched: bool = False
    is_framed: bool = False
    label: str = ""


def map_figures(
    maps: Sequence[ImageMap], strength: float = STRENGTH, side: int = SIDE, *, always: bool = False
) -> list[Figure]:
    """Return images to one scale: what matters on one and hardly on another is dark there.

    Args:
        maps: values with the axes ``row`` and ``column``, by one method.
        strength: how dark a part becomes that does not matter, from 0 to 1.
        side: longest side of an image in pixels.
        always: whether there is an SVG even where no part matters.
    """
    most = max((float(abs(each.values.values).max()) for each in maps), default=0.0)
    return [map_figure(each, strength, side, always=always, scale=most) for each in maps]


def map_figure(
    found: ImageMap,
    strength: float = STRENGTH,
    side: int = SIDE,
    *,
    always: bool = False,
    scale: float = 0.0,
) -> Figure:
    """Return an image of which only those parts stay light that matter.

    Args:
        found: values with the axes ``row`` and ``column``.
        strength: how dark a part becomes that does not matter, from 0 to 1.
        side: longest side in pixels.
        always: whether there is an SVG even where no part matters.
        scale: value of a part that stays as light as it is; the greatest unless given.
    """
    values = found.values.values
    words = _in_words(found)
    most = float(abs(values).max())
    matters = most >= _least(found.values.name)
    if not matters and not always:
        return Figure("", 0, words)
    small = _small(found.image.image, side)
    cells = _map_cells(values, found.values.name, small.size) if matters else []
    shares = abs(values) / (scale or most) if matters else 0 * values
    return _figure(small, _mask(shares, strength), cells, words)


def difference_figure(pair: MapPair, side: int = SIDE) -> Figure:
    """Return the first image, faded, with what differs: + where the first answer depends more."""
    difference, one = pair.difference, pair.one
    if difference is None or one is None:
        return Figure("", 0, _no_difference(pair))
    name, values = difference.name, difference.values
    most = float(abs(values).max())
    if most < _least(name):
        return Figure("", 0, "No part differs.")
    small = _small(one.image.image, side)
    cells = [
        _Cell(
            *_place(at, values.shape, small.size),
            fill="#2563eb" if values[at] < 0 else "#d97706",
            opacity=round(0.15 + 0.6 * abs(float(values[at])) / most, 2),
            is_hatched=bool(values[at] < 0),
            label=_number(float(values[at]), name, signed=True) if has_number else "",
        )
        for at, has_number in _telling(values, name, small.size)
    ]
    at = _strongest(values)
    more = "first" if values[at] > 0 else "second"
    words = (
        f"the {more} answer depends more on {_part(at, values.shape)}, "
        f"by {_number(abs(float(values[at])), name)}"
    )
    return _figure(_faded(small), "", cells, words[0].upper() + words[1:])


def map_text(found: ImageMap) -> list[str]:
    """Return the numbers of a small map as lines of text, one for each row of parts."""
    values = found.values.values
    if values.shape[1] > _NUMBERS or values.shape[0] > _NUMBERS:
        return []
    rows = ([_number(float(each), found.values.name) for each in row] for row in values)
    return ["  ".join(f"{each:>6}" for each in row) for row in rows]


def _small(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """Return an image whose longest side is `side`; a smaller one has no room for numbers."""
    scale = side / max(image.size)
    width, height = (max(1, round(each * scale)) for each in image.size)
    return image.convert("RGB").resize((width, height))


def _faded(image: PIL.Image.Image) -> PIL.Image.Image:
    from PIL import Image

    grey = image.convert("L").convert("RGB")
    return Image.blend(grey, Image.new("RGB", image.size, "white"), _FADED)


def _figure(small: PIL.Image.Image, mask: str, cells: Sequence[_Cell], words: str) -> Figure:
    svg = fill(
        "inspection_svg",
        width=small.width,
        height=small.height,
        uri=data_uri(small),
        mask=mask,
        cells=cells,
    )
    return Figure(svg_uri(svg), small.width, words)


def _mask(shares: Any, strength: float) -> str:
    """Return an image of a pixel for each part, the blacker the less the part matters."""
    from PIL import Image

    rows, columns = shares.shape
    dark = (255 * strength * (1 - shares)).round().astype("uint8")
    black = Image.new("L", (columns, rows))
    alpha = Image.frombytes("L", (columns, rows), dark.tobytes())
    return _png(Image.merge("LA", (black, alpha)))


def _png(image: PIL.Image.Image) -> str:
    import base64
    import io

    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _map_cells(values: Any, name: str, size: tuple[int, int]) -> list[_Cell]:
    strongest = _strongest(values, name)
    return [
        _Cell(
            *_place(at, values.shape, size),
            is_hatched=bool(values[at] < 0),
            is_framed=at == strongest,
            label=_number(float(values[at]), name) if has_number else "",
        )
        for at, has_number in _telling(values, name, size)
        if has_number or values[at] < 0 or at == strongest
    ]


def _telling(
    values: Any, name: str, size: tuple[int, int]
) -> Iterable[tuple[tuple[int, int], bool]]:
    """Yield the parts that matter, strongest last, and whether a number is on each."""
    rows, columns = values.shape
    least = max(_least(name), float(abs(values).max()) / 10)
    places = [divmod(at, columns) for at in range(rows * columns)]
    strong = [at for at in places if abs(float(values[at])) >= least]
    strong.sort(key=lambda at: abs(float(values[at])))
    has_room = min(size[0] / columns, size[1] / rows) >= _ROOM
    shown = strong[-_HATCHED:]
    for number, at in enumerate(shown):
        yield at, has_room and number >= len(shown) - _NUMBERS


def _place(
    at: tuple[int, int], shape: tuple[int, int], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    across, down = size[0] / shape[1], size[1] / shape[0]
    return round(at[1] * across, 1), round(at[0] * down, 1), round(across, 1), round(down, 1)


def _strongest(values: Any, name: str = "") -> tuple[int, int]:
    """Return the part that matters most; of parts that are covered, one that costs something."""
    costs = name == "drop" and float(values.max()) >= LEAST
    return divmod(int((values if costs else abs(values)).argmax()), values.shape[1])


def _least(name: str) -> float:
    """Return the least value that is said to matter."""
    return LEAST if name == "drop" else 1e-6


def _number(value: float, name: str, *, signed: bool = False) -> str:
    plus = "+" if signed else ""
    if name in _SHARES:
        return f"{value:{plus}.0%}" if abs(value) >= 0.1 else f"{value:{plus}.1%}"
    text = f"{value:{plus}.1f}" if name == "drop" else f"{value:{plus}.2g}"
    return text.replace("-0.0", "0.0") if text in ("-0.0", "-0") else text


def _part(at: tuple[int, int], shape: tuple[int, int]) -> str:
    return f"row {at[0] + 1}, column {at[1] + 1} of {shape[0]}x{shape[1]}"


def _in_words(found: ImageMap) -> str:
    values, what = found.values.values, found.values.name
    name = printable(found.image.source)
    if what == "drop" and float(values.max()) < LEAST:
        return f"{name}: no part matters by itself"
    if what == "drop":
        at = divmod(int(values.argmax()), values.shape[1])
        cost = _number(float(values[at]), what)
        return (
            f"{name}: covering {_part(at, values.shape)} costs most, {cost} of its log-probability"
        )
    at = _strongest(values)
    part, most = _part(at, values.shape), _number(float(values[at]), what)
    if what in _SHARES:
        share = _number(float(values.sum()), what)
        return f"{name}: {share} of the {what} falls on it, most, {most}, on {part}"
    side = "against" if values[at] < 0 else "for"
    return f"{name}: strongest on {part}, {most}, which speaks {side} it"


def _no_difference(pair: MapPair) -> str:
    if pair.one is None or pair.other is None:
        return "Nothing to compare it with: one of the answers has no such token or image."
    return "The images have different numbers of patches, which cannot be subtracted."
