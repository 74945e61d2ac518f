"""Boxes and points in words: a line each, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glm4v_magic.calls.boxes import frames_of
from glm4v_magic.core.boxes import Box, Mark
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.video import SourcedVideo
from glm4v_magic.core.wording import printable

__all__ = ["MarkLine", "image_of", "line_of", "mark_lines", "marks_counted"]


@dataclass(frozen=True, slots=True)
class MarkLine:
    """A box or a point in words.

    Attributes:
        name: its name on the images: its number from 1, and the label.
        place: its corners in pixels of the original image.
        image: where the image or frame came from; empty if there is only one image.
        expression: Python expression for it, given the answer.
    """

    name: str
    place: str
    image: str
    expression: str


def image_of(
    mark: Mark, images: Sequence[SourcedImage], videos: Sequence[SourcedVideo]
) -> SourcedImage:
    """Return the image, or the frame of the video, that a box or a point is on."""
    return images[mark.image] if mark.frame is None else frames_of(videos)[mark.frame].image


def mark_lines(
    marks: Sequence[Mark],
    images: Sequence[SourcedImage],
    videos: Sequence[SourcedVideo] = (),
) -> list[MarkLine]:
    """Return boxes, and then points, in words."""
    lines: list[MarkLine] = []
    first_point = sum(isinstance(each, Box) for each in marks)
    for index, each in enumerate(marks):
        source = " ".join(printable(image_of(each, images, videos).source).split())
        image = f"image {each.image + 1}, {source}" if len(images) > 1 else ""
        if each.frame is not None:
            image = f"frame {each.frame}, {source}"
        label = " ".join(printable(each.label).split())
        if isinstance(each, Box):
            place = f"({each.x0:.0f}, {each.y0:.0f}) to ({each.x1:.0f}, {each.y1:.0f}) px"
            expression = f"boxes[{index}]"
        else:
            place = f"({each.x:.0f}, {each.y:.0f}) px"
            expression = f"points[{index - first_point}]"
        lines.append(MarkLine(f"{index + 1} {label}".rstrip(), place, image, expression))
    return lines


def line_of(mark: MarkLine) -> str:
    """Return a box or a point as one line of text."""
    return ": ".join(fact for fact in (mark.name, mark.place, mark.image) if fact)


def marks_counted(marks: Sequence[Mark]) -> str:
    """Return ``1 box``, ``2 boxes, 1 point``."""
    boxes = sum(isinstance(each, Box) for each in marks)
    points = len(marks) - boxes
    counts = ((boxes, "box", "boxes"), (points, "point", "points"))
    return ", ".join(
        f"{count:,} {one if count == 1 else many}" for count, one, many in counts if count
    )
