"""A rectangle of an image: ``10,10,50,50``, ``0.5,0,0.5,1`` or ``50%,0,50%,100%``.

Left, top, width and height in the upright image. The unit follows from how the numbers are
written, never from their size:

- whole numbers: pixels;
- a decimal point in one of them: all four are fractions of width and height, 0 to 1;
- ``%`` after each number: percent of width and height. Only a 0 may do without.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from glm4v_magic.core.errors import ImageError, OptionError
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.wording import narrowed
from glm4v_magic.images.messages import one_line

__all__ = ["Crop", "parse_crop"]

Unit: TypeAlias = Literal["pixels", "fractions", "percent"]

_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)%?", re.ASCII)
_WHOLE: dict[Unit, float] = {"fractions": 1, "percent": 100}
_FORMS = "Write x,y,width,height: 10,10,50,50 (pixels), 0.5,0,0.5,1.0 or 50%,0,50%,100%."


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of an image.

    Attributes:
        box: left, top, width and height.
        unit: unit of these numbers.
        text: the rectangle as the user wrote it.
    """

    box: tuple[float, float, float, float]
    unit: Unit
    text: str

    def of(self, image: SourcedImage) -> SourcedImage:
        """Return this rectangle of `image` as an image; its size becomes the original size.

        Raises:
            ImageError: if the rectangle reaches beyond the image or contains no pixel.
        """
        width, height = image.image.size
        x, y, w, h = self.box
        across, down = (
            (1.0, 1.0)
            if self.unit == "pixels"
            else (
                width / _WHOLE[self.unit],
                height / _WHOLE[self.unit],
            )
        )
        left, right = round(x * across), round((x + w) * across)
        top, bottom = round(y * down), round((y + h) * down)
        where = f"{one_line(image.source)}, which is {width} x {height} pixels"
        if right > width or bottom > height:
            raise ImageError(f"The crop {self.text} reaches to x {right}, y {bottom} of {where}.")
        if left >= right or top >= bottom:
            raise ImageError(f"The crop {self.text} holds no pixel of {where}.")
        cut = image.image.crop((left, top, right, bottom))
        return SourcedImage(cut, f"{image.source}, crop {self.text}", cut.size)


def parse_crop(text: str) -> Crop:
    """Parse a rectangle as typed; the module docstring lists the three forms.

    Raises:
        OptionError: if `text` is none of them.
    """
    words = [word.strip() for word in narrowed(text).split(",")]
    shown = ",".join(words)
    if len(words) != 4 or not all(_NUMBER.fullmatch(word) for word in words):
        raise OptionError(f"The crop {one_line(text)!r} is not four numbers.", _FORMS)
    if any(word.startswith("-") for word in words):
        raise OptionError(f"The crop {shown} has a number below 0.", _FORMS)
    x, y, w, h = (float(word.rstrip("%")) for word in words)
    box = (x, y, w, h)
    unit: Unit = "pixels"
    if any(word.endswith("%") for word in words):
        unit = "percent"
        if not all(word.endswith("%") or word == "0" for word in words):
            raise OptionError(f"The crop {shown} has a % behind some numbers only.", _FORMS)
    elif any("." in word for word in words):
        unit = "fractions"
        if max(box) > 1:
            raise OptionError(
                f"The crop {shown} has a decimal point, so it is fractions, but {max(box):g} is "
                "above 1.",
                _FORMS,
            )
    if not w or not h:
        raise OptionError(f"The crop {shown} has no {'height' if w else 'width'}.", _FORMS)
    return Crop(box, unit, shown)
