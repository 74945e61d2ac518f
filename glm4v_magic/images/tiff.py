"""TIFF files that Pillow does not read: what is in them, and how deep the values of others are."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from glm4v_magic.core.errors import ImageError
from glm4v_magic.images.formats import RAW
from glm4v_magic.images.messages import one_line

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["is_preview", "kind_of_tiff", "largest_value", "raw_image"]

# Tags of TIFF 6.0.
_WIDTH, _BITS, _COMPRESSION, _SAMPLES, _LARGEST, _FORMAT = 256, 258, 259, 277, 281, 339
_FORMATS = {2: "signed integers", 3: "floats", 5: "complex numbers", 6: "complex numbers"}
# TIFF/EP and DNG: that it is a smaller image, where the others are, pixels of a sensor, a version.
_SUBFILE, _SUB_IFDS = 254, 330
_PHOTOMETRIC, _OF_SENSORS, _DNG_VERSION = 262, (32803, 34892), 50706
_DEEPEST = 16


def kind_of_tiff(source: str, stream: IO[bytes]) -> ImageError | None:
    """Return the error for a TIFF of a kind that Pillow does not read.

    ``None`` if the stream is not a TIFF, or one whose directory is damaged.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        stream.seek(0)
        head = stream.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*"):
            return None
        tags: Any = ImageFileDirectory_v2(head)
        stream.seek(tags.next)
        tags.load(stream)
        bits, samples = tags.get(_BITS, (1,)), tags.get(_SAMPLES, 1)
        form = tags.get(_FORMAT, (1,))
        if _WIDTH not in tags or not 0 < samples <= 1000:
            return None
        if _DNG_VERSION in tags or tags.get(_PHOTOMETRIC) in _OF_SENSORS:
            return raw_image(source)
        values = _FORMATS.get(form[0] if isinstance(form, tuple) else form, "integers")
        shown = f"{samples} {'band' if samples == 1 else 'bands'} of {max(bits)}-bit {values}"
    except Exception:  # damaged in any way
        return None
    return ImageError(
        f"{one_line(source)} is a TIFF of a kind that Pillow does not read: {shown}, "
        f"compression {tags.get(_COMPRESSION, 1)}.",
        "Read it with tifffile, and give three of its bands as an array. pip install tifffile",
    )


def is_preview(image: Image.Image) -> bool:
    """Tell whether the first image of a TIFF is a small one of others, which Pillow passes over.

    So it is in raw images of many cameras, often with no more than 160 x 120 pixels.
    """
    tags: Any = getattr(image, "tag_v2", {})
    return tags.get(_SUBFILE) == 1 and _SUB_IFDS in tags


def raw_image(source: str) -> ImageError:
    """Return the error for a camera's raw image."""
    return ImageError(f"{one_line(source)} is a camera's raw image.", RAW)


def largest_value(image: Image.Image) -> int | None:
    """Return the value that is white in a TIFF of 9 to 16 bits; ``None`` if it does not say."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS)
    depth = bits[0] if isinstance(bits, tuple) and bits else bits
    if not isinstance(depth, int) or not 8 < depth <= _DEEPEST:
        return None
    largest = tags.get(_LARGEST)
    told = largest[0] if isinstance(largest, tuple) and largest else largest
    return told if isinstance(told, int) and 255 < told < 2**depth else 2**depth - 1
