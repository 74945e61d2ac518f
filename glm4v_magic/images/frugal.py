"""Files whose decoders take more than they need: how they are read within four times the pixels.

Pillow keeps the decoder of WebP and AVIF, with canvases of its own, beside the frame that it gives
and the image made of that; OpenJPEG decodes to integers of 32 bits, a tile at a time. Pixels of DDS
are taken apart in Python, a second for each megapixel, though most lie there as Pillow can copy
them.
"""

from __future__ import annotations

import struct
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ENOUGH", "bytes_of", "copy_plain", "let_go", "reduce"]

_MOST = 12
"""Bytes a pixel that reading takes at most: four times those of 8-bit RGB."""
ENOUGH = 6_500_000
"""Pixels that are not reduced further: more than any model looks at."""

_PLAIN = {
    (24, (0xFF0000, 0xFF00, 0xFF)): "BGR",
    (24, (0xFF, 0xFF00, 0xFF0000)): "RGB",
    (32, (0xFF0000, 0xFF00, 0xFF)): "BGRX",
    (32, (0xFF, 0xFF00, 0xFF0000)): "RGBX",
    (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)): "BGRA",
    (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)): "RGBA",
}
"""Bits of a pixel of DDS and where its channels lie -> Pillow's name of that."""

_SIZ, _COD = b"\xff\x51", b"\xff\x52"  # ISO/IEC 15444-1, A.5.1 and A.6.1
_HEADERS = 2**16  # bytes of a JPEG 2000 file within which both are looked for


def copy_plain(image: Image.Image) -> None:
    """Have pixels of DDS copied that need not be taken apart."""
    tiles: Any = getattr(image, "tile", ())
    if image.format == "DDS" and len(tiles) == 1 and tiles[0][0] == "dds_rgb":
        _, extents, offset, how = tiles[0]
        if mode := _PLAIN.get(how):
            image.tile = [("raw", extents, offset, (mode, 0, 1))]  # type: ignore[attr-defined]


def let_go(image: Image.Image) -> Image.Image:
    """Return the frame of an opened WebP or AVIF file without its decoder; others as they are.

    The opened image has its size and metadata afterwards, but no pixels.
    """
    decoder: Any = getattr(image, "_decoder", None)
    if image.format == "WEBP" and hasattr(decoder, "get_next"):
        pixels = _frame_of_webp(decoder, image.tell())
    elif image.format == "AVIF" and hasattr(decoder, "get_frame"):
        pixels = decoder.get_frame(image.tell())[0]
    else:  # another format, or a Pillow that works in another way
        return image
    mode = getattr(image, "rawmode", image.mode)
    del decoder, image._decoder  # type: ignore[attr-defined]
    return _of(pixels, mode, image)


def _frame_of_webp(decoder: Any, frame: int) -> bytes:
    decoder.reset()
    for _ in range(frame):
        decoder.get_next()
    found = decoder.get_next()
    if found is None:
        raise EOFError("failed to decode a frame")
    pixels: bytes = found[0]
    return pixels


def _of(pixels: bytes, mode: str, opened: Image.Image) -> Image.Image:
    """Return an image around pixels; those of three bytes are copied, for Pillow has four."""
    from PIL import Image

    frame = Image.frombuffer(mode, opened.size, pixels, "raw", mode, 0, 1)
    frame.info = opened.info
    return frame


def reduce(image: Image.Image, stream: IO[bytes], enough: int = ENOUGH) -> int:
    """Have a large JPEG 2000 file read at 1/2, 1/4, ... of its resolution; return 2, 4, ...

    Only if its tiles take more than four times its pixels, and only as far as there remain `enough`
    pixels. Returns 1 for all others.
    """
    pixels = image.width * image.height
    if image.format != "JPEG2000" or bytes_of(image, stream) <= _MOST * pixels:
        return 1
    levels = _levels(_header(stream))
    steps = 0
    while steps < levels and pixels >> (2 * steps + 2) >= enough:
        steps += 1
    image.reduce = steps  # type: ignore[method-assign, assignment]  # a setting in this format
    return 1 << steps


def bytes_of(image: Image.Image, stream: IO[bytes]) -> int:
    """Return how many bytes reading an opened file takes at most, at its full resolution."""
    pixels, bands = image.width * image.height, len(image.getbands())
    if image.format == "AVIF" and bands == 4:
        # At most four planes of 16 bits, and two frames made of them. Their depth is not asked for.
        return 18 * pixels
    if image.format != "JPEG2000" or bands == 1:
        return _MOST * pixels
    # The image and its RGB, and of each tile 32 bits a value beside at most 16 to hand over.
    return 8 * pixels + 6 * bands * min(pixels, _pixels_of_a_tile(_header(stream), pixels))


def _header(stream: IO[bytes]) -> bytes:
    stood = stream.tell()
    stream.seek(0)
    content = stream.read(_HEADERS)
    stream.seek(stood)
    return content[max(0, content.find(b"\xff\x4f" + _SIZ)) :]


def _pixels_of_a_tile(header: bytes, otherwise: int) -> int:
    if len(header) < 32:
        return otherwise
    width, height = struct.unpack_from(">II", header, 24)
    return int(width * height)


def _levels(header: bytes) -> int:
    """Return how many times the resolution can be halved."""
    at = 2
    while header[at : at + 2] != _COD:
        if len(header) < at + 4:
            return 0
        at += 2 + int.from_bytes(header[at + 2 : at + 4])
    return header[at + 9] if len(header) > at + 9 else 0
