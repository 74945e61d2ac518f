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

__all__ = ["has_profile", "rgb_as_read", "to_rgb", "turn"]

_WITH_PROFILES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK")
_ROUNDING = 3
"""Largest change of a value by profiles that say sRGB in another way, as with fewer digits."""
_NEAR_BLACK = 16
"""What is white in 12 bits, if they are read as 16."""
_STRIP = 2**18  # pixels that are converted at a time: what that takes is then small


def to_rgb(image: Image.Image, source: str = "The image", *, is_ours: bool = False) -> Image.Image:
    """Return a new image: 8-bit RGB, upright by the EXIF orientation, without metadata.

    Transparent pixels become white. Values of 9 to 16 bits are scaled by what the file says of
    their depth, or else by the least usual depth that holds them, and modes I and F if their values
    need it (0 to 255 are kept; floats of 0 to 1 become 0 to 255). Colours of an ICC profile become
    those of sRGB. Beside the image that is given and the new one, little memory is taken.

    Args:
        image: image to read.
        source: its name in messages.
        is_ours: nobody else needs the pixels of `image`: its decoder may be let go.

    Raises:
        ImageError: if the pixels cannot be decoded, or their values are out of range.
    """
    return rgb_as_read(image, source, is_ours=is_ours)[0]


def rgb_as_read(
    image: Image.Image, source: str = "The image", *, is_ours: bool = False
) -> tuple[Image.Image, str]:
    """Return what `to_rgb` does, and a few words on how the values were read, if in doubt.

    Also where they were not in doubt, but leave nothing to see: an image near black.
    """
    try:
        is_cut = _is_cut_to_8_bits(image)
        if is_ours:
            image = let_go(image)
        image.load()
        rgb, note = _flat(image, source, turn(image))
        return rgb, note or _near_black(rgb, is_cut)
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


def _is_cut_to_8_bits(image: Image.Image) -> bool:
    """Tell whether a file has colours of 16 bits, of which Pillow reads the upper 8."""
    return image.mode in ("RGB", "RGBA") and any(
        ";16" in str(each[-1]) for each in getattr(image, "tile", ())
    )


def _near_black(rgb: Image.Image, is_cut: bool) -> str:
    """Return words for an image that is near black, but not black; empty for others."""
    from PIL import Image

    few = rgb.resize((min(rgb.width, 64), min(rgb.height, 64)), Image.Resampling.NEAREST)
    for looked_at in (few, rgb):  # most have bright pixels everywhere
        extrema: Any = looked_at.getextrema()
        high = max(most for _, most in extrema)
        if high >= _NEAR_BLACK:
            return ""
    if is_cut:
        return "near black: of the 16 bits of its colours the upper 8 are read"
    return f"near black: no value is above {high} of 255" if high else ""


def _flat(
    image: Image.Image, source: str, upright: Image.Transpose | None
) -> tuple[Image.Image, str]:
    """Return a new RGB image, made strip by strip, and how its values were read, if in doubt."""
    from PIL import Image
    from PIL.Image import Transpose

    width, height = image.size
    lies = upright in (
        Transpose.TRANSPOSE, Transpose.TRANSVERSE, Transpose.ROTATE_90, Transpose.ROTATE_270,
    )  # fmt: skip
    from_end = upright in (
        Transpose.FLIP_TOP_BOTTOM, Transpose.ROTATE_180, Transpose.TRANSVERSE, Transpose.ROTATE_270,
    )  # fmt: skip
    strip, note = _strip_of(image, source)
    rgb = Image.new("RGB", (height, width) if lies else (width, height))
    rows = getattr(image, "rows", max(1, _STRIP // width))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        part = strip(image.crop((0, top, width, bottom)))
        if upright is not None:
            part = part.transpose(upright)
        at = height - bottom if from_end else top
        rgb.paste(part, (at, 0) if lies else (0, at))
    return rgb, note


def _strip_of(image: Image.Image, source: str) -> tuple[Callable[[Image.Image], Image.Image], str]:
    """Return a converter of parts to RGB, and how it reads values, if in doubt.

    Pillow alone clips 16 bits, and shows what is clear.
    """
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        (scale, note), clear = _scale_of(image, source), image.info.get("transparency")

        def deep(part: Image.Image) -> Image.Image:
            import numpy as np

            values = np.asarray(part)
            grey = scale(values)
            if isinstance(clear, int):
                grey[values == clear] = 255
            return Image.fromarray(grey).convert("RGB")

        return deep, note
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

    return flat, ""


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


def _scale_of(image: Image.Image, source: str) -> tuple[Scale, str]:
    """Return a function that scales the values of an image of more than 8 bits to 8 bits.

    With it comes how they were read, if the file does not tell and their range leaves it in doubt.
    """
    import numpy as np

    if image.mode == "F":
        return _scale_of_floats(image, source)
    ranges = [(int(strip.min()), int(strip.max())) for strip in _strips(image)]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    white = largest_value(image) or 65535
    if image.mode.startswith("I;16") and white < 65535:
        return lambda values: np.rint(values.clip(0, white) * np.float32(255 / white)).astype(
            np.uint8
        ), ""
    # The range of a 16-bit file read as mode I.
    is_deep = image.mode != "I" or (low >= 0 and 255 < high <= 65535)
    kind = np.dtype(np.uint16 if is_deep else np.int32)
    return scale_of_integers(low, high, kind, source)


def _scale_of_floats(image: Image.Image, source: str) -> tuple[Scale, str]:
    """Return what scales floats: of 0 to 255 in Pillow's own conversions, of 0 to 1 in science.

    Raises:
        ImageError: if they have another range, such as one that would be near black.
    """
    high = max(float(strip.max()) for strip in _strips(image))
    top = 255 if high >= _NEAR_BLACK else 1
    note = "read as 0 to 255" if top == 255 and high <= 127 else ""
    return scale_of_floats(_strips(image), source, top=top), note


def _strips(image: Image.Image) -> Any:
    import numpy as np

    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
