"""Boxes and points drawn on an image.

Each has a number beside its label, and its lines are white between black ones, so that they can be
told apart on any image and in print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from glm4v_magic.core.boxes import Box, Mark
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.images.fonts import Font, lettered

__all__ = ["cut_out", "marked"]

_LONGEST = 40  # characters of a label on an image


def marked(image: SourcedImage, marks: Sequence[tuple[str, Mark]]) -> Image.Image:
    """Return a copy of an image with boxes and points drawn on it; warns as `fonts.lettered`.

    Args:
        image: the image; a smaller copy of the original will do.
        marks: boxes and points on it, each with its name.
    """
    drawn = image.image.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    across, down = _scale(image)
    line = max(1, round(max(drawn.size) / 400))
    names = lettered(map(_shortened, (name for name, _ in marks)), max(10, max(drawn.size) // 45))
    for (name, font), (_, mark) in zip(names, marks, strict=True):
        if isinstance(mark, Box):
            x0, y0 = round(mark.x0 * across), round(mark.y0 * down)
            x1, y1 = round(mark.x1 * across), round(mark.y1 * down)
            x0, y0 = min(x0, drawn.width - 1), min(y0, drawn.height - 1)
            corners = (x0, y0, min(x1, drawn.width - 1), min(y1, drawn.height - 1))
            draw.rectangle(corners, outline="black", width=3 * line)
            draw.rectangle(_inset(corners, line), outline="white", width=line)
            place = (x0, y0)
        else:
            x, y = round(mark.x * across), round(mark.y * down)
            for radius, colour in ((5 * line, "black"), (4 * line, "white"), (2 * line, "black")):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
            place = (x + 6 * line, y)
        _write(draw, place, name, font, drawn.size)
    return drawn


def cut_out(image: SourcedImage, box: Box) -> Image.Image:
    """Return the part of an image that is in a box, all pixels that it touches."""
    across, down = _scale(image)
    width, height = image.image.size
    left, upper = math.floor(box.x0 * across), math.floor(box.y0 * down)
    right, lower = math.ceil(box.x1 * across), math.ceil(box.y1 * down)
    left, upper = min(left, width - 1), min(upper, height - 1)
    return image.image.crop(
        (left, upper, min(max(right, left + 1), width), min(max(lower, upper + 1), height))
    )


def _scale(image: SourcedImage) -> tuple[float, float]:
    """Return pixels of the image at hand per pixel of the original, across and down."""
    (width, height), (across, down) = image.image.size, image.original_size
    return width / across, height / down


def _inset(corners: tuple[int, int, int, int], line: int) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = corners
    inset = min(line, (x1 - x0) // 2, (y1 - y0) // 2)
    return x0 + inset, y0 + inset, x1 - inset, y1 - inset


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    name: str,
    font: Font,
    size: tuple[int, int],
) -> None:
    """Write a name above a place, or below where there is no room, on black."""
    left, upper, right, lower = draw.textbbox((0, 0), name, font=font)
    wide, high = right - left + 6, lower - upper + 6
    x = max(0, min(at[0], size[0] - wide))
    y = at[1] - high if at[1] >= high else at[1]
    draw.rectangle((x, y, x + wide, y + high), fill="black")
    draw.text((x + 3 - left, y + 3 - upper), name, font=font, fill="white")
