"""The image that everything becomes, and what is refused on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from glm4v_magic.core.options import OPTIONS

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DEFAULT_LIMITS", "Limits", "SourcedImage"]


@dataclass(frozen=True, slots=True)
class SourcedImage:
    """An image and where it came from.

    Attributes:
        image: mode RGB, upright (the EXIF orientation is applied), pixels in memory, no metadata.
        source: what the user wrote: a path, a URL, an expression, or ``data: URI``.
        original_size: width and height in pixels, upright.
    """

    image: Image.Image
    source: str
    original_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused, so that a wrong image costs a line of text and not the kernel.

    Attributes:
        megapixels: largest image, in millions of pixels; checked before they are decoded. The
            default lets 108-megapixel phones and 102-megapixel cameras pass, costs at most 384 MB
            as RGB, and stays below the 179 megapixels from which Pillow refuses by itself.
        download_bytes: largest download.
        download_seconds: longest download, redirects included, and longest silence in it.
        allow_private: whether URLs may lead to this computer or its private network. A notebook
            from elsewhere could otherwise read what only this computer can reach.
    """

    megapixels: float = OPTIONS["megapixels"].default
    download_bytes: int = 50_000_000
    download_seconds: float = OPTIONS["download_seconds"].default
    allow_private: bool = OPTIONS["allow_private"].default


DEFAULT_LIMITS = Limits()
