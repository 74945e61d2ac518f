"""A WebP file that does not move, decoded without the canvases of those that do.

Pillow reads all with the decoder of moving images, which keeps two canvases beside the frame: that
is four times the pixels of 8-bit RGB, and the file. The function asked here has been in the library
since its first version.
"""

from __future__ import annotations

import ctypes as c
import functools
from typing import Any

from PIL import features

from glm4v_magic.images.bundled import library

__all__ = ["HEAD", "is_still", "rgba_of"]

HEAD = 21
"""Bytes that tell whether a file moves."""

_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "WebPGetDecoderVersion": (c.c_int,),
    "WebPDecodeRGBAInto": (c.c_void_p, c.c_char_p, c.c_size_t, c.c_void_p, c.c_size_t, c.c_int),
}
_MOVES = 0x02  # a flag of the chunk VP8X


def is_still(head: bytes) -> bool:
    """Tell from the first bytes of a WebP file whether `rgba_of` decodes it."""
    moves = head[12:16] == b"VP8X" and bool(head[20] & _MOVES)
    return _library() is not None and not moves


def rgba_of(content: bytes, size: tuple[int, int]) -> bytearray:
    """Return the pixels of a WebP file that does not move, 4 bytes each.

    Raises:
        OSError: if it is cut short or damaged.
    """
    width, height = size
    pixels = bytearray(4 * width * height)
    to = (c.c_char * len(pixels)).from_buffer(pixels)
    if not _library().WebPDecodeRGBAInto(content, len(content), to, len(pixels), 4 * width):
        raise OSError("failed to decode the pixels of a WebP file")
    return pixels


@functools.cache
def _library() -> Any:
    # Asked for its version, Pillow loads it with what it needs, which ctypes does not find.
    if features.version_module("webp") is None:
        return None
    return library("webp", _FUNCTIONS, _is_of_pillow)


def _is_of_pillow(found: Any) -> bool:
    version = found.WebPGetDecoderVersion()
    numbers = (version >> 16, version >> 8 & 0xFF, version & 0xFF)
    return ".".join(map(str, numbers)) == features.version_module("webp")
