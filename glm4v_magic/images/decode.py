"""Bytes of an image file -> image."""

from __future__ import annotations

import contextlib
import re
import warnings
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from glm4v_magic.core.errors import ImageError
from glm4v_magic.core.image import Limits, SourcedImage
from glm4v_magic.images.encoded import own_bytes
from glm4v_magic.images.fits import is_misread
from glm4v_magic.images.formats import HEAD, not_an_image
from glm4v_magic.images.frugal import LITTLE, MOST, areas_of, bytes_of, copy_plain, reduce
from glm4v_magic.images.messages import one_line, require_page, unreadable
from glm4v_magic.images.pdf import draw, is_pdf
from glm4v_magic.images.rgb import has_profile, rgb_as_read, turn
from glm4v_magic.images.tiff import is_preview, kind_of_tiff, raw_image

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["decode", "too_large", "upright"]

# Pillow runs Ghostscript on the first and the system's own renderer on the second; of the others it
# knows the name alone.
_NOT_READ = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5"})


def decode(stream: IO[bytes], source: str, limits: Limits, page: int | None = None) -> SourcedImage:
    """Read a page of an image file or of a PDF document, by default the first.

    Args:
        stream: the file, at its beginning.
        source: name of the file in messages.
        limits: largest image.
        page: page to read, from 1.

    Raises:
        ImageError: if it is neither, or has no such page.
    """
    head = stream.read(HEAD)
    stream.seek(0)
    if is_pdf(head):
        return draw(stream, source, limits, page)
    # Pillow warns of odd metadata, which does not harm the pixels, and of large images, which our
    # own limit covers.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = _opened(stream, source, limits)
        if is_preview(opened):
            raise raw_image(source)
        _require_size(opened, source, limits)
        copy_plain(opened)
        parts, areas = 1, areas_of(opened, stream)
        if areas is None:
            parts = reduce(opened, stream)
            if parts == 1:
                _require_memory(opened, stream, source, limits)
        with contextlib.closing(areas) if areas else contextlib.nullcontext(opened) as image:
            read = upright(image, source, limits, page, is_ours=True)
        if parts > 1:
            how = f"at 1/{parts} of its resolution (saved as PNG, all of it is read)"
            read = replace(read, source=f"{read.source}, {how}")
        if turn(opened) is None and not has_profile(opened):
            read = replace(read, encoded=own_bytes(opened, stream))
        return read


def upright(
    image: Image.Image,
    source: str,
    limits: Limits,
    page: int | None = None,
    *,
    is_ours: bool = False,
) -> SourcedImage:
    """Read the pixels of an opened image, upright and as 8-bit RGB.

    Args:
        image: opened image; its current page is restored.
        source: name of the image in messages.
        limits: largest image.
        page: page to read, from 1; by default the current one.
        is_ours: nobody else needs the pixels of `image`, which takes less memory.

    Raises:
        ImageError: if it is empty, too large or damaged, or has no such page.
    """
    _require_size(image, source, limits)
    if page is None:
        rgb, note = rgb_as_read(image, source, is_ours=is_ours)
    else:
        stood = image.tell()
        _turn_to(image, page, source)
        try:
            _require_size(image, source, limits)  # the pages of a TIFF have sizes of their own
            rgb, note = rgb_as_read(image, source, is_ours=is_ours)
        finally:
            image.seek(stood)
        source = f"{source}, page {page}"
    return SourcedImage(rgb, f"{source}, {note}" if note else source, rgb.size)


def _turn_to(image: Image.Image, page: int, source: str) -> None:
    try:
        pages = int(getattr(image, "n_frames", 1))
    except Exception as error:
        raise unreadable(source, error) from error
    require_page(page, pages, source)
    try:
        image.seek(page - 1)
    except Exception as error:
        raise unreadable(f"{source}, page {page},", error) from error


def _require_size(image: Image.Image, source: str, limits: Limits) -> None:
    width, height = image.size
    if not width or not height:
        raise ImageError(f"{one_line(source)} is {width} x {height}: it has no pixels.")
    if width * height > limits.megapixels * 1e6:
        raise too_large(source, width * height, limits)


def _require_memory(image: Image.Image, stream: IO[bytes], source: str, limits: Limits) -> None:
    """Refuse what takes more memory to decode than the largest image of any other format."""
    pixels, taken = image.width * image.height, bytes_of(image, stream)
    if taken > max(MOST * 1e6 * limits.megapixels, LITTLE):
        name = {"JPEG2000": "JPEG 2000"}.get(image.format or "", image.format)
        largest = limits.megapixels * MOST * pixels / taken
        raise ImageError(
            f"{one_line(source)} has {pixels / 1e6:,.3g} megapixels; of such files of {name}, "
            f"whose decoder takes more memory, at most {largest:,.3g} are read.",
            "Make it smaller first, or save it as JPEG or PNG.",
        )


def too_large(source: str, pixels: int | None, limits: Limits) -> ImageError:
    """Return the error for an image with too many pixels; ``None`` if the number is unknown."""
    size = "too many"
    if pixels is not None:
        size = f"{pixels / 1e6:,.0f}" if pixels >= 10e6 else f"{pixels / 1e6:.2g}"
    return ImageError(
        f"{one_line(source)} has {size} megapixels; at most {limits.megapixels:g} are read.",
        "Make it smaller first: a model sees little more than one megapixel.",
    )


def _opened(stream: IO[bytes], source: str, limits: Limits) -> Image.Image:
    """Read the header of an image file."""
    from PIL import Image, UnidentifiedImageError

    try:
        try:
            return _identified(stream)
        except UnidentifiedImageError:
            # The plugins of rare formats take as long to import as a small image to read.
            Image.init()
            stream.seek(0)
            return _identified(stream)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise too_large(source, int(pixels[0]) if pixels else None, limits) from None
    except UnidentifiedImageError:
        stream.seek(0)
        head = stream.read(HEAD)
        raise kind_of_tiff(source, stream) or not_an_image(source, head) from None
    except Exception as error:
        raise unreadable(source, error) from error


def _identified(stream: IO[bytes]) -> Image.Image:
    """Read the header with the plugins that are imported; the common ones always are."""
    from PIL import Image, UnidentifiedImageError

    if is_misread(stream):
        raise UnidentifiedImageError
    Image.preinit()
    return Image.open(stream, formats=[name for name in Image.ID if name not in _NOT_READ])
