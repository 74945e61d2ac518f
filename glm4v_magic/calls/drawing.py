"""Boxes and points of an answer, drawn into the pixels of its images by `images.marked`."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from glm4v_magic.calls.boxes_text import image_of, mark_lines, marks_counted
from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.wording import brief, counted

if TYPE_CHECKING:
    from PIL import Image

    from glm4v_magic.core.boxes import Mark
    from glm4v_magic.core.conversation import Answer
    from glm4v_magic.core.image import SourcedImage

__all__ = ["cropped", "drawn"]


def drawn(answer: Answer, image: int | None = None) -> Image.Image:
    """Return a copy of an image with the boxes and points on it; see `ImageAnswer.draw`.

    Raises:
        OptionError: if there is no such image, or none at all.
    """
    from glm4v_magic.images.marked import marked

    shown, place = _chosen(answer, image)
    return marked(shown, _named(answer, place))


def _chosen(answer: Answer, image: int | None) -> tuple[SourcedImage, tuple[int, int | None]]:
    """Return an image or a frame, and the `image` and `frame` of the marks that are on it."""
    if image is None and answer.marks and answer.marks[0].frame is not None:
        first = answer.marks[0]
        return image_of(first, answer.images, answer.videos), (first.image, first.frame)
    if image is None:
        if not answer.images:
            raise OptionError(_nothing_to_draw_on(answer))
        image = next((each.image for each in answer.marks if each.frame is None), -1)
    image = _index(image, "An image")
    if not -len(answer.images) <= image < len(answer.images):
        there = counted(len(answer.images), "image") if answer.images else "no images"
        raise OptionError(f"There is no image {image}: the answer has {there}.")
    number = image % len(answer.images)
    return answer.images[number], (number, None)


def _nothing_to_draw_on(answer: Answer) -> str:
    if answer.videos:
        return "There is nothing to draw on: the answer is about a video, and marks no frame of it."
    return "There is nothing to draw on: the answer has no images."


def _index(number: object, what: str) -> int:
    """Return an index, whatever kind of whole number it is; raises OptionError for all else."""
    try:
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        raise OptionError(
            f"{what} is named by its index, a whole number; {brief(number)} is none."
        ) from None


def _named(answer: Answer, place: tuple[int, int | None]) -> list[tuple[str, Mark]]:
    lines = mark_lines(answer.marks, answer.images, answer.videos)
    return [
        (line.name, each)
        for line, each in zip(lines, answer.marks, strict=True)
        if (each.image, each.frame) == place
    ]


def cropped(answer: Answer, number: int) -> Image.Image:
    """Return the part of an image that is in a box; see `ImageAnswer.crop`.

    Raises:
        OptionError: if there is no such box.
    """
    from glm4v_magic.images.marked import cut_out

    number = _index(number, "A box")
    if not -len(answer.boxes) <= number < len(answer.boxes):
        there = marks_counted(answer.boxes) or "no boxes"
        raise OptionError(f"There is no box {number}: the answer has {there}.")
    box = answer.boxes[number]
    return cut_out(image_of(box, answer.images, answer.videos), box)
