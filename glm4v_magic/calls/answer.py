"""`ImageAnswer`, an answer whose boxes can be drawn and cut out, and whose model looked into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm4v_magic.calls.drawing import cropped, drawn
from glm4v_magic.core.conversation import Answer

if TYPE_CHECKING:
    from PIL import Image

    from glm4v_magic.inspect.inspection import Inspection

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

    def inspect(self) -> Inspection:
        """Return a look into the model that gave the answer: why it said that, token by token.

        Nothing is computed until something is asked of it.

        Raises:
            ConversationError: if the answer was interrupted, or was not given in this session.
            EngineError: if the model is on a server, in other processes, or is no longer loaded.
            BusyError: if a call is running in the session.
        """
        from glm4v_magic.inspect.entry import inspected

        return inspected(self)
