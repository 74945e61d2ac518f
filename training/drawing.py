"""Scenes -> images, with PIL alone and with no font files needed."""

from __future__ import annotations

import functools
import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.scenes import RGB, Glyph, Item, Scene

__all__ = ["bounds", "draw_scene", "paint", "render"]

# Looked up by PIL in the system's font folders; those that are missing give way to the font
# that comes with PIL.
_OPTIONAL_FONTS = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf",
)  # fmt: skip


def draw_scene(scene: Scene, side: int) -> Image.Image:
    """Draw `scene` in RGB; the short side of the image has `side` pixels."""
    width, height = _canvas(scene, side)
    if scene.kind == "noise":
        return _noise(scene, side)
    image = Image.new("RGB", (width, height), scene.background_rgb)
    canvas = ImageDraw.Draw(image)
    for item in scene.items:
        border = (0, 0, 0) if item.outlined else None
        paint(canvas, item, width, height, item.rgb, border)
    if scene.glyph is not None:
        write_digit(canvas, scene.glyph, width, height, scene.glyph.rgb)
    return image


def render(scene: Scene, size: int, rng: random.Random) -> Image.Image:
    """Draw `scene` as a user's image arrives at the model: drawn larger, then resized.

    Returns a square RGB image of `size` x `size` pixels.
    """
    if scene.kind == "noise":
        return draw_scene(scene, size)
    scale = rng.choice((1, 2, 2, 2, 3))
    image = draw_scene(scene, size * scale)
    if image.size == (size, size):
        return image
    if scale == 2 and scene.aspect == 1.0 and rng.random() < 0.5:
        return image.reduce(2)
    return image.resize((size, size), Image.Resampling.BICUBIC)


def paint(
    canvas: ImageDraw.ImageDraw,
    item: Item,
    width: int,
    height: int,
    fill: RGB | int,
    border: RGB | None = None,
) -> None:
    """Paint one shape on a canvas of `width` x `height` pixels."""
    x, y, short = item.x * width, item.y * height, min(width, height)
    radius = item.radius * short
    line = max(1, round(short * 0.012))
    if item.shape in ("circle", "ring"):
        box = (x - radius, y - radius, x + radius, y + radius)
        if item.shape == "ring":
            canvas.ellipse(box, outline=fill, width=max(2, round(radius * 0.38)))
        else:
            canvas.ellipse(box, fill=fill, outline=border, width=line)
        return
    canvas.polygon(_polygon(item, width, height), fill=fill, outline=border, width=line)


def bounds(item: Item, width: int, height: int) -> tuple[float, float, float, float]:
    """Return the left, upper, right and lower edge in pixels of a shape that `paint` paints."""
    if item.shape in ("circle", "ring"):
        x, y, radius = item.x * width, item.y * height, item.radius * min(width, height)
        return x - radius, y - radius, x + radius, y + radius
    across, down = zip(*_polygon(item, width, height), strict=True)
    return min(across), min(down), max(across), max(down)


def _polygon(item: Item, width: int, height: int) -> list[tuple[float, float]]:
    x, y, radius = item.x * width, item.y * height, item.radius * min(width, height)
    cos, sin = math.cos(item.tilt), math.sin(item.tilt)
    return [
        (x + radius * (u * cos - v * sin), y + radius * (u * sin + v * cos))
        for u, v in _corners(item.shape, item.upright)
    ]


def write_digit(
    canvas: ImageDraw.ImageDraw, glyph: Glyph, width: int, height: int, fill: RGB | int
) -> None:
    """Write one digit on a canvas of `width` x `height` pixels, centred on its place."""
    short = min(width, height)
    # A digit is about 0.72 of its font's size high.
    font = _font(glyph.font, max(8, round(glyph.height * short / 0.72)))
    stroke = round(glyph.weight * short * 0.008)
    canvas.text(
        (glyph.x * width, glyph.y * height), str(glyph.digit),
        fill=fill, font=font, anchor="mm", stroke_width=stroke,
    )  # fmt: skip


def _canvas(scene: Scene, side: int) -> tuple[int, int]:
    return round(side * max(1.0, scene.aspect)), round(side * max(1.0, 1 / scene.aspect))


def _noise(scene: Scene, side: int) -> Image.Image:
    rng = np.random.default_rng(scene.noise_seed)
    shape = (scene.noise_grain, scene.noise_grain, 3)
    cells = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    smooth = Image.Resampling.BICUBIC if scene.noise_seed % 2 else Image.Resampling.NEAREST
    return cells.resize((side, side), smooth)


@functools.lru_cache(maxsize=512)
def _font(index: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if index < len(_OPTIONAL_FONTS):
        try:
            return ImageFont.truetype(_OPTIONAL_FONTS[index], size)
        except OSError:
            pass
    return ImageFont.load_default(size)


@functools.cache
def _corners(shape: str, upright: bool) -> tuple[tuple[float, float], ...]:
    """Corners in units of the radius, y down."""
    if shape == "square":
        return ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9))
    if shape == "rectangle":
        a, b = (0.5, 1.0) if upright else (1.0, 0.5)
        return ((-a, -b), (a, -b), (a, b), (-a, b))
    if shape == "diamond":
        return ((0, -1), (0.75, 0), (0, 1), (-0.75, 0))
    if shape == "cross":
        w = 0.33
        return (
            (-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w),
            (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w),
        )  # fmt: skip
    if shape == "triangle":
        return tuple((1.05 * u, 1.05 * v + 0.15) for u, v in _on_circle(3))
    if shape == "star":
        return tuple(
            (u * (1.05 if corner % 2 == 0 else 0.44), v * (1.05 if corner % 2 == 0 else 0.44))
            for corner, (u, v) in enumerate(_on_circle(10))
        )
    if shape == "heart":
        return _heart()
    raise ValueError(f"no corners are known for the shape {shape!r}")


def _on_circle(count: int) -> list[tuple[float, float]]:
    angles = [2 * math.pi * k / count - math.pi / 2 for k in range(count)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _heart(points: int = 24) -> tuple[tuple[float, float], ...]:
    """The heart curve 16 sin^3 t, 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled to radius 1."""
    corners = []
    for k in range(points):
        t = 2 * math.pi * k / points
        u = 16 * math.sin(t) ** 3
        v = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        corners.append((u / 17, -v / 17))
    return tuple(corners)
