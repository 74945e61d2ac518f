"""`ImageAnswer`, an answer whose boxes can be drawn and cut out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm4v_magic.calls.drawing import cropped, drawn
from glm4v_magic.core.conversation import Answer

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
        return drawn(self, image)

    def crop(self, number: int) -> Image.Image:
        """Return the part of an image that is in a box.

        Rows of a map keep small copies of their images, so there the part is small, too.

        Args:
            number: index of the box in `boxes`.

        Raises:
            OptionError: if there is no such box.
        """
        return cropped(self, number)
