"""PIL image of any mode -> 8-bit RGB, upright, on white."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.errors import ImageError
from glm4v_magic.images.frugal import let_go
from glm4v_magic.images.messages import unreadable
from glm4v_magic.images.scaling import Scale, scale_of_floats, scale_of_integers
from glm4v_magic.images.tiff import largest_value

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["has_profile", "to_rgb", "turn"]

_WITH_PROFILES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK")
_ROUNDING = 3
"""Largest change of a value by profiles that say sRGB in another way, as with fewer digits."""
_STRIP = 2**20  # pixels that are converted at a time: what that takes is then small


def to_rgb(image: Image.Image, source: str = "The image", *, is_ours: bool = False) -> Image.Image:
    """Return a new image: 8-bit RGB, upright by the EXIF orientation, without metadata.

    Transparent pixels become white. Values of 9 to 16 bits are scaled by what the file says of
    their depth, and modes I and F if their values need it (0 to 255 are kept; floats of 0 to 1
    become 0 to 255). Colours of an ICC profile become those of sRGB. Beside the image that is given
    and the new one, little memory is taken.

    Args:
        image: image to read.
        source: its name in messages.
        is_ours: nobody else needs the pixels of `image`: its decoder may be let go.

    Raises:
        ImageError: if the pixels cannot be decoded, or their values are out of range.
    """
    try:
        if is_ours:
            image = let_go(image)
        image.load()
        return _flat(image, source, turn(image))
    except ImageError:
        raise
    except Exception as error:
        raise unreadable(source, error) from error


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


def _flat(image: Image.Image, source: str, upright: Image.Transpose | None) -> Image.Image:
    """Return a new RGB image, made strip by strip."""
    from PIL import Image
    from PIL.Image import Transpose

    width, height = image.size
    lies = upright in (
        Transpose.TRANSPOSE, Transpose.TRANSVERSE, Transpose.ROTATE_90, Transpose.ROTATE_270,
    )  # fmt: skip
    from_end = upright in (
        Transpose.FLIP_TOP_BOTTOM, Transpose.ROTATE_180, Transpose.TRANSVERSE, Transpose.ROTATE_270,
    )  # fmt: skip
    strip = _strip_of(image, source)
    rgb = Image.new("RGB", (height, width) if lies else (width, height))
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        part = strip(image.crop((0, top, width, bottom)))
        if upright is not None:
            part = part.transpose(upright)
        at = height - bottom if from_end else top
        rgb.paste(part, (at, 0) if lies else (0, at))
    return rgb


def _strip_of(image: Image.Image, source: str) -> Callable[[Image.Image], Image.Image]:
    """Return a converter of parts to RGB; Pillow alone clips 16 bits, and shows what is clear."""
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        scale, clear = _scale_of(image, source), image.info.get("transparency")

        def deep(part: Image.Image) -> Image.Image:
            import numpy as np

            values = np.asarray(part)
            grey = scale(values)
            if isinstance(clear, int):
                grey[values == clear] = 255
            return Image.fromarray(grey).convert("RGB")

        return deep
    in_srgb = _profiled(image)

    def flat(part: Image.Image) -> Image.Image:
        if part.mode == "La":
            part = part.convert("LA")
        if not part.has_transparency_data:
            return in_srgb(part)
        layer = part.convert("RGBA")
        white = Image.new("RGB", part.size, "white")
        white.paste(in_srgb(layer), mask=layer.getchannel("A"))
        return white

    return flat


def _profiled(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return a converter of parts to RGB, in sRGB colours if the file has a profile."""
    found = _transform(image)

    def in_srgb(part: Image.Image) -> Image.Image:
        if found is None:
            return part.convert("RGB")
        from PIL import ImageCms

        transform, mode = found
        made: Image.Image | None = ImageCms.applyTransform(part.convert(mode), transform)
        assert made is not None  # it would be if the part itself were changed
        return made

    return in_srgb


def has_profile(image: Image.Image) -> bool:
    """Tell whether a file's colours are not those of sRGB."""
    return _transform(image) is not None


def _transform(image: Image.Image) -> tuple[Any, str] | None:
    """Return the transform from the file's ICC profile to sRGB, and the mode that it takes."""
    content = image.info.get("icc_profile")
    if not content or image.mode not in _WITH_PROFILES:
        return None
    mode = image.mode if image.mode in ("L", "CMYK") else "RGB"
    try:
        from PIL import ImageCms

        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        if profile.profile.xcolor_space.strip() == "GRAY":
            mode = "L"
        found = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
        return None if mode == "RGB" and _changes_nothing(found) else (found, mode)
    except Exception:  # a broken profile, or one of other channels, says nothing about the pixels
        return None


def _changes_nothing(transform: Any) -> bool:
    """Tell whether a transform of RGB keeps colours, as one from sRGB does but for rounding."""
    from PIL import Image, ImageChops, ImageCms

    levels = range(0, 256, 51)
    colours = bytes(level for each in itertools.product(levels, repeat=3) for level in each)
    before = Image.frombytes("RGB", (len(colours) // 3, 1), colours)
    after = ImageCms.applyTransform(before, transform)
    assert after is not None
    extrema: Any = ImageChops.difference(before, after).getextrema()
    return bool(max(most for _, most in extrema) <= _ROUNDING)


def _scale_of(image: Image.Image, source: str) -> Scale:
    """Return a function that scales the values of an image of more than 8 bits to 8 bits."""
    import numpy as np

    white = largest_value(image) or 65535
    if image.mode.startswith("I;16"):
        return lambda values: np.rint(values.clip(0, white) * np.float32(255 / white)).astype(
            np.uint8
        )
    strips: Any = _strips(image)
    if image.mode == "F":  # 0 to 255 in Pillow's own conversions, 0 to 1 in scientific files
        top = 1 if max(float(strip.max()) for strip in _strips(image)) <= 1 else 255
        return scale_of_floats(strips, source, top=top)
    low, high = image.getextrema()
    # The range of a 16-bit file read as mode I.
    kind = np.dtype(np.uint16 if low >= 0 and high <= 65535 else np.int32)  # type: ignore[operator]
    return scale_of_integers(low, high, kind, source)  # type: ignore[arg-type]  # one band


def _strips(image: Image.Image) -> Any:
    import numpy as np

    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
