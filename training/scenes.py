"""What a training image holds: a few coloured shapes, one digit, nothing at all, or noise.

A scene is plain data in fractions of the image, so that one scene can be drawn at any
resolution (`training.drawing`), labelled (`training.labels`) and asked about
(`training.questions`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "EVERYTHING",
    "LARGE_FROM",
    "MAX_SHAPES",
    "SHAPES",
    "SMALL_UP_TO",
    "Glyph",
    "Item",
    "Palette",
    "Scene",
    "SceneKind",
    "rng_for",
    "sample_scene",
    "stands_out",
    "tint",
]

RGB = tuple[int, int, int]
SceneKind = Literal["shapes", "digit", "blank", "noise"]

# Several tints a name: the plotting libraries' and web names' idea of each colour.
COLOURS: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (220, 20, 60), (214, 39, 40), (200, 10, 10)),
    "green": ((0, 128, 0), (44, 160, 44), (0, 200, 0), (34, 139, 34), (0, 255, 0)),
    "blue": ((0, 0, 255), (31, 80, 200), (65, 105, 225), (0, 0, 160)),
    "yellow": ((255, 255, 0), (255, 225, 25), (240, 220, 0)),
    "orange": ((255, 165, 0), (255, 127, 14), (255, 140, 0)),
    "purple": ((128, 0, 128), (148, 60, 189), (110, 20, 160)),
    "pink": ((255, 192, 203), (255, 105, 180), (255, 150, 190)),
    "brown": ((139, 69, 19), (140, 86, 75), (110, 60, 20)),
    "black": ((0, 0, 0), (20, 20, 20)),
    "white": ((255, 255, 255), (245, 245, 245)),
    "gray": ((128, 128, 128), (150, 150, 150), (110, 110, 110)),
    "cyan": ((0, 255, 255), (23, 190, 207), (0, 215, 225)),
}
SHAPES = (
    "circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart", "rectangle",
)  # fmt: skip
BACKGROUNDS = ("white", "black", "gray", "yellow", "blue", "green", "pink", "cyan", "red")
MAX_SHAPES = 5

# Radii are fractions of the image's short side. Between the two bounds a shape is neither
# small nor large, and nobody asks for its size.
SMALL_UP_TO = 0.128
LARGE_FROM = 0.178
_RADII = ((0.10, 0.125), (0.125, 0.18), (0.18, 0.26))

# A shape must stand out from its background; these neighbours are too close to tell apart.
_TOO_CLOSE = frozenset(
    frozenset(pair)
    for pair in (
        ("red", "orange"), ("red", "brown"), ("red", "pink"), ("orange", "yellow"),
        ("orange", "brown"), ("blue", "purple"), ("blue", "cyan"), ("cyan", "green"),
        ("black", "gray"), ("white", "gray"), ("white", "yellow"),
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Palette:
    """What a scene is made of: names of colours, of shapes and of the colours of backgrounds."""

    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    backgrounds: tuple[str, ...]


EVERYTHING = Palette(tuple(COLOURS), SHAPES, BACKGROUNDS)


@dataclass(frozen=True, slots=True)
class Item:
    """One shape. `x`, `y`: centre as fractions of width and height; `radius`: of the short side.

    `upright` tells a standing rectangle from a lying one; `tilt` is in radians; `outlined` draws
    a thin black border.
    """

    shape: str
    colour: str
    rgb: RGB
    x: float
    y: float
    radius: float
    upright: bool = False
    tilt: float = 0.0
    outlined: bool = False

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Glyph:
    """One digit. `height` is a fraction of the short side; `font` and `weight` vary its look."""

    digit: int
    colour: str
    rgb: RGB
    x: float
    y: float
    height: float
    font: int
    weight: int


@dataclass(frozen=True, slots=True)
class Scene:
    """An image as data.

    Attributes:
        kind: what it shows.
        background: name of its colour; empty for noise.
        background_rgb: the colour itself.
        items: the shapes, which never overlap.
        glyph: the digit of a ``digit`` scene.
        aspect: width over height of the canvas before it is squeezed into a square.
        noise_seed, noise_grain: of a ``noise`` scene; the grain is its resolution in cells.
        palette: what it might have held: who asks for what is missing asks for something of it.
    """

    kind: SceneKind
    background: str
    background_rgb: RGB = (0, 0, 0)
    items: tuple[Item, ...] = ()
    glyph: Glyph | None = None
    aspect: float = 1.0
    noise_seed: int = 0
    noise_grain: int = 0
    palette: Palette = EVERYTHING


def rng_for(split: str, *key: int) -> random.Random:
    """Return the generator of a split ("train", "held-out", ...); equal keys of two differ."""
    return random.Random("/".join([split, *map(str, key)]))


def sample_scene(
    rng: random.Random,
    kind: SceneKind | None = None,
    shapes: tuple[int, int] = (1, MAX_SHAPES),
    *,
    alike: bool = False,
    palette: Palette = EVERYTHING,
    aspect: float | None = None,
) -> Scene:
    """Draw a scene at random.

    Args:
        rng: random number generator.
        kind: what it shows; drawn at random by default.
        shapes: bounds the number of shapes, both ends included.
        alike: whether all have one outline, so that only their colours tell them apart.
        palette: what it is made of.
        aspect: width over height; drawn at random by default.
    """
    if kind is None:
        kinds: tuple[SceneKind, ...] = ("shapes", "digit", "blank", "noise")
        kind = rng.choices(kinds, (84, 10, 2, 4))[0]
    if kind == "noise":
        grain = rng.choice((3, 4, 7, 14, 28, 56, 112))
        return Scene(kind, "", noise_seed=rng.randrange(1 << 30), noise_grain=grain)
    background = "white" if rng.random() < 0.45 else rng.choice(palette.backgrounds)
    if aspect is None:
        aspect = 1.0 if rng.random() < 0.85 else rng.uniform(0.8, 1.25)
    rgb = tint(rng, background, 6)
    if kind == "blank":
        return Scene(kind, background, rgb, aspect=aspect)
    colours = [colour for colour in palette.colours if stands_out(colour, background)]
    if kind == "digit":
        return Scene(kind, background, rgb, glyph=_sample_glyph(rng, colours), aspect=aspect)
    items = _sample_items(rng, colours, palette.shapes, rng.randint(*shapes), aspect, alike)
    return Scene(kind, background, rgb, items=items, aspect=aspect, palette=palette)


def stands_out(colour: str, background: str) -> bool:
    """Whether a colour can be told from that of the background."""
    return colour != background and frozenset((colour, background)) not in _TOO_CLOSE


def tint(rng: random.Random, name: str, jitter: int) -> RGB:
    """Return one of a colour's tints, each part up to `jitter` away."""
    red, green, blue = (
        max(0, min(255, value + rng.randint(-jitter, jitter)))
        for value in rng.choice(COLOURS[name])
    )
    return red, green, blue


def _sample_glyph(rng: random.Random, colours: list[str]) -> Glyph:
    height = rng.uniform(0.3, 0.75)
    colour = rng.choice(colours)
    x = rng.uniform(0.36 * height, 1 - 0.36 * height)
    y = rng.uniform(0.5 * height, 1 - 0.5 * height)
    weight = rng.randint(0, 2)
    digit = rng.randrange(10)
    return Glyph(digit, colour, tint(rng, colour, 10), x, y, height, rng.randrange(8), weight)


def _sample_items(
    rng: random.Random,
    colours: list[str],
    shapes: tuple[str, ...],
    count: int,
    aspect: float,
    alike: bool,
) -> tuple[Item, ...]:
    # With few colours and shapes in an image, "how many red ones" and "is there a red circle"
    # cannot be answered from the colour or the shape alone.
    few = rng.random() < 0.35
    tints = rng.sample(colours, 2) if few else colours
    outlines = rng.sample(shapes, 2) if few and rng.random() < 0.7 else shapes
    if alike:
        outlines = [rng.choice(shapes)]
    items: list[Item] = []
    for _ in range(40 * count):
        if len(items) == count:
            break
        radius = rng.uniform(*rng.choice(_RADII))
        if count > 3:
            radius = min(radius, 0.19)
        half_width, half_height = _half_extent(radius, aspect)
        x = rng.uniform(half_width, 1 - half_width)
        y = rng.uniform(half_height, 1 - half_height)
        if any(_too_near(x, y, radius, other, aspect) for other in items):
            continue
        colour = rng.choice(tints)
        items.append(
            Item(
                rng.choice(outlines), colour, tint(rng, colour, 10), x, y, radius,
                upright=rng.random() < 0.5,
                tilt=rng.uniform(-0.2, 0.2) if rng.random() < 0.3 else 0.0,
                outlined=colour != "black" and rng.random() < 0.1,
            )
        )  # fmt: skip
    return tuple(items)


def _half_extent(radius: float, aspect: float) -> tuple[float, float]:
    """Return half width and height, in fractions, of a circle of `radius` of the short side."""
    return radius / max(1.0, aspect), radius * min(1.0, aspect)


def _too_near(x: float, y: float, radius: float, other: Item, aspect: float) -> bool:
    dx, dy = (x - other.x) * max(1.0, aspect), (y - other.y) / min(1.0, aspect)
    return dx * dx + dy * dy < (1.1 * (radius + other.radius)) ** 2
