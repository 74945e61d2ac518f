"""`SourcedImage`, the form that every image takes, and the limits on what is accepted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from glm4v_magic.core.options import MOST_IMAGES, OPTIONS

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DEFAULT_LIMITS", "Limits", "SeenImage", "SourcedImage"]


@dataclass(frozen=True, slots=True)
class SourcedImage:
    """An image and where it came from.

    Attributes:
        image: RGB, upright (EXIF orientation applied), pixels in memory, no metadata.
        source: what the user wrote: a path, a URL, an expression, or ``data: URI``.
        original_size: width and height in pixels, after the EXIF orientation.
        encoded: the image as a JPEG or PNG file without metadata, if it came from one that can be
            sent as it is; empty otherwise.
    """

    image: Image.Image
    source: str
    original_size: tuple[int, int]
    encoded: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SeenImage:
    """What a model sees of an image.

    Attributes:
        image_size: width and height in pixels that it is resized to; ``None`` if unknown.
        visual_tokens: visual tokens of the image; ``None`` if unknown.
    """

    image_size: tuple[int, int] | None
    visual_tokens: int | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on images, so that a wrong one costs an error message and not the whole process.

    Attributes:
        megapixels: largest image in millions of pixels, checked before decoding. The default
            admits phones of 108 and cameras of 102 megapixels, costs at most 384 MB as RGB and four
            times that while a file is read, and stays below the 179 megapixels that Pillow itself
            refuses. JPEG 2000 in one tile, of more than one channel, is read at half its resolution
            or less from 26 megapixels on, or where the library that decodes areas cannot be
            reached; if then a file has no smaller resolution, it may have 6/13 of the limit, and
            2/3 AVIF whose transparency cannot be told from its colours.
        images: maximum number of images in a question.
        total_megapixels: limit for all images of a question together, which are in memory at once;
            the default is 3 GB as RGB.
        download_bytes: size of the largest download.
        download_seconds: longest download, redirects included, and longest pause within it.
        allow_private: whether URLs may point to this computer or its private network. If they
            could, someone else's notebook could read what only this computer can reach.
    """

    megapixels: float = OPTIONS["megapixels"].default
    images: int = MOST_IMAGES
    total_megapixels: float = 1000.0
    download_bytes: int = 50_000_000
    download_seconds: float = OPTIONS["download_seconds"].default
    allow_private: bool = OPTIONS["allow_private"].default


DEFAULT_LIMITS = Limits()
