"""PIL image of any mode -> 8-bit RGB, upright, on white."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glm4v_magic.core.errors import ImageError, reason
from glm4v_magic.images.messages import one_line
from glm4v_magic.images.scaling import eight_bits_of_floats, eight_bits_of_integers

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = ["to_rgb", "turn"]


def to_rgb(image: Image.Image, source: str = "The image") -> Image.Image:
    """Return a new image: 8-bit RGB, upright by the EXIF orientation, without metadata.

    Transparent pixels become white. 16-bit values are scaled, and modes I and F if their values
    need it (0 to 255 are kept; floats of 0 to 1 become 0 to 255).

    Raises:
        ImageError: if the pixels cannot be decoded, or their values are out of range.
    """
    try:
        image.load()
        rgb = _flat(image, source)
        upright = turn(image)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{one_line(source)} is cut short or damaged: {reason(error)}") from error
    if upright is not None:
        rgb = rgb.transpose(upright)
    rgb.info = {}  # a notebook that shows the image must not reveal where it was taken
    return rgb


def turn(image: Image.Image) -> Image.Transpose | None:
    """Return the transpose that turns an image upright: EXIF 2.32, tag 0x0112, values 2 to 8."""
    from PIL.Image import Transpose

    try:
        orientation: Any = image.getexif().get(0x0112)
    except Exception:  # broken metadata says nothing about the pixels
        return None
    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)


def _flat(image: Image.Image, source: str) -> Image.Image:
    """Return a new RGB image; Pillow alone would clip 16 bits and show transparent pixels."""
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits_of_deep(image, source)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    return image.convert("RGB")


def _eight_bits_of_deep(image: Image.Image, source: str) -> np.ndarray:
    import numpy as np

    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return np.rint(values / np.float32(257)).astype(np.uint8)
    if image.mode == "F":  # 0 to 255 in Pillow's own conversions, 0 to 1 in scientific files
        return eight_bits_of_floats(values, source, top=1 if values.max() <= 1 else 255)
    if values.min() >= 0 and values.max() <= 65535:  # the range of a 16-bit file read as mode I
        values = values.astype(np.uint16)
    return eight_bits_of_integers(values, source)
