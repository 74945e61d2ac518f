"""The bytes of a JPEG or PNG file as they can be sent: the same pixels, without any metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["own_bytes"]

_PNG = b"\x89PNG\r\n\x1a\n"
_OF_PIXELS = (b"IHDR", b"IDAT", b"IEND")
_IN_A_SCAN = re.compile(rb"\xff(?![\x00\xd0-\xd7\xff])")  # a marker that ends it
_END, _SCAN = 0xD9, 0xDA
_TABLES = (0xC4, 0xDB, 0xDD)  # DHT, DQT, DRI
_JFIF, _ADOBE = 0xE0, 0xEE  # the latter says how colours are coded


def own_bytes(image: Image.Image, stream: IO[bytes]) -> bytes:
    """Return the file of an opened image without its metadata; empty if it cannot be sent as it is.

    It can if all decoders agree on what it shows: an upright JPEG or PNG file of one page, 8 bits,
    without transparency. Pixels are not encoded again.

    Args:
        image: image that was opened from the file.
        stream: the file.
    """
    write = {"JPEG": _jpeg, "PNG": _png}.get(image.format or "")
    is_plain = image.mode in ("RGB", "L") and not image.has_transparency_data
    # Of other formats, even the number of pages may be damaged.
    if write is None or not is_plain or getattr(image, "n_frames", 1) > 1:
        return b""
    stream.seek(0)
    content = stream.read()
    try:
        return b"".join(write(content))
    except (IndexError, ValueError):  # cut short or odd, though Pillow has read it
        return b""


def _jpeg(content: bytes) -> Iterator[bytes]:
    """Yield the segments that pixels are made of, ITU-T T.81, annex B."""
    if content[:2] != b"\xff\xd8":
        raise ValueError
    yield content[:2]
    at = 2
    while True:
        if content[at] != 0xFF:
            raise ValueError
        kind = content[at + 1]
        if kind == 0xFF:  # a fill byte
            at += 1
            continue
        if kind == _END:
            yield content[at : at + 2]
            return  # what follows is not an image: phones put a clip there
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        if kind == _SCAN:
            found = _IN_A_SCAN.search(content, end)
            if found is None:
                raise ValueError
            end = found.start()
        is_frame = 0xC0 <= kind <= 0xCF
        if is_frame or kind in (*_TABLES, _SCAN, _JFIF, _ADOBE):
            yield content[at:end]
        at = end


def _png(content: bytes) -> Iterator[bytes]:
    """Yield the chunks that pixels are made of, ISO/IEC 15948, clause 5."""
    if content[:8] != _PNG or content[24] != 8:
        raise ValueError
    yield _PNG
    at = 8
    while True:
        kind = content[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(content[at : at + 4])
        if end > len(content):
            raise ValueError
        if kind in _OF_PIXELS:
            yield content[at:end]
        if kind == b"IEND":
            return
        at = end
