"""Boxes and points that an answer names on its images: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["BOX_TAGS", "Box", "Mark", "Point"]

BOX_TAGS = ("<|begin_of_box|>", "<|end_of_box|>")
"""Tags between which GLM models write a box, a point, or the final answer to a question."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on an image; 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height.

    Attributes:
        label: what the model calls it, on one line; empty if it does not.
        x0: left edge, in pixels of the original image (`SourcedImage.original_size`); so are the
            others.
        y0: upper edge.
        x1: right edge.
        y1: lower edge.
        image: index of the image among those of the answer.
        frame: index of the frame among those that the model saw of the answer's video
            (`videos[0].seen`), whose pixels are meant then; ``None`` on an image.
    """

    label: str
    x0: float
    y0: float
    x1: float
    y1: float
    image: int = 0
    frame: int | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A point on an image; 0 <= x <= width and 0 <= y <= height.

    Attributes:
        label: as in `Box`.
        x: pixels of the original image from its left edge.
        y: pixels from its upper edge.
        image: as in `Box`.
        frame: as in `Box`.
    """

    label: str
    x: float
    y: float
    image: int = 0
    frame: int | None = None


Mark: TypeAlias = Box | Point
"""What an answer marks on an image."""
