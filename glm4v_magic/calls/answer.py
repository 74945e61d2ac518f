"""`ImageAnswer`, an answer whose boxes can be drawn and cut out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm4v_magic.calls.boxes_text import mark_lines, marks_counted
from glm4v_magic.core.conversation import Answer
from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.wording import counted

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageAnswer"]


class ImageAnswer(Answer):
    """An `Answer` of a session, with its images at hand."""

    __slots__ = ()

    def draw(self, image: int | None = None) -> Image.Image:
        """Return a copy of an image with the boxes and points on it, each with number and label.

        Args:
            image: index of the image; by default that of the first box or point, and the last image
                if there is neither.

        Labels are drawn in a font of the system where Pillow's own lacks their characters; those
        that no font has are written as code points, with a warning.

        Raises:
            OptionError: if there is no such image.
        """
        from glm4v_magic.images.marked import marked

        if image is None:
            image = next((each.image for each in self.marks), -1)
        if not -len(self.images) <= image < len(self.images):
            there = counted(len(self.images), "image") if self.images else "no images"
            raise OptionError(f"There is no image {image}: the answer has {there}.")
        number = image % len(self.images)
        lines = mark_lines(self.marks, self.images)
        on_it = [
            (line.name, each)
            for line, each in zip(lines, self.marks, strict=True)
            if each.image == number
        ]
        return marked(self.images[number], on_it)

    def crop(self, number: int) -> Image.Image:
        """Return the part of an image that is in a box.

        Rows of a map keep small copies of their images, so there the part is small, too.

        Args:
            number: index of the box in `boxes`.

        Raises:
            OptionError: if there is no such box.
        """
        from glm4v_magic.images.marked import cut_out

        if not -len(self.boxes) <= number < len(self.boxes):
            there = marks_counted(self.boxes) or "no boxes"
            raise OptionError(f"There is no box {number}: the answer has {there}.")
        box = self.boxes[number]
        return cut_out(self.images[box.image], box)
