"""Files whose decoders take more than they need: how they are read within four times the pixels.

Pillow keeps the decoder of WebP and AVIF, with canvases of its own, beside the frame that it gives
and the image made of that; OpenJPEG decodes to integers of 32 bits, a tile at a time if it is not
asked for areas. Pixels of DDS are taken apart in Python, a second for each megapixel, though most
lie there as Pillow can copy them.
"""

from __future__ import annotations

import io
import struct
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ENOUGH", "LITTLE", "MOST", "areas_of", "bytes_of", "copy_plain", "let_go", "reduce"]

MOST = 12
"""Bytes a pixel that reading takes at most: four times those of 8-bit RGB."""
LITTLE = 64 * 2**20
"""Bytes that reading an image may take, however small it is."""
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
    pixels: bytes | bytearray
    if image.format == "WEBP" and hasattr(decoder, "get_next"):
        if _is_still(image):
            del decoder, image._decoder  # type: ignore[attr-defined]
            return _still(image)
        pixels = _frame_of_webp(decoder, image.tell())
    elif image.format == "AVIF" and hasattr(decoder, "get_frame"):
        if apart := _apart(image):
            del decoder, image._decoder  # type: ignore[attr-defined]
            return apart
        pixels = decoder.get_frame(image.tell())[0]
    else:  # another format, or a Pillow that works in another way
        return image
    mode = getattr(image, "rawmode", image.mode)
    del decoder, image._decoder  # type: ignore[attr-defined]
    return _of(pixels, mode, image)


def _apart(image: Image.Image) -> Image.Image | None:
    """Return an AVIF image of which colours and transparency were decoded one after the other."""
    stream: Any = getattr(image, "fp", None)
    if image.mode != "RGBA" or stream is None:
        return None
    import PIL.Image

    from glm4v_magic.images.avif import Layered, layers, overwritten

    found = layers(stream)
    if found is None:
        return None
    stream.seek(0)
    content: bytes = stream.read()
    frames = []
    for changes, mode in ((found.colours, "RGB"), (found.transparency, "L")):
        opened = PIL.Image.open(io.BytesIO(overwritten(content, changes)), formats=["AVIF"])
        if (opened.size, opened.mode) not in ((image.size, mode), (image.size, "RGB")):
            return None
        opened.seek(image.tell())
        frame = let_go(opened)
        frames.append(frame.getchannel(0) if mode == "L" else frame)
    frames[0].info = image.info
    return Layered(*frames, is_multiplied=found.is_multiplied)


def _is_still(image: Image.Image) -> bool:
    stream: Any = getattr(image, "fp", None)
    if stream is None or getattr(image, "n_frames", 1) > 1:
        return False
    from glm4v_magic.images.libwebp import HEAD, is_still

    stream.seek(0)
    return is_still(stream.read(HEAD))


def _still(image: Image.Image) -> Image.Image:
    from glm4v_magic.images.libwebp import rgba_of

    stream: Any = image.fp  # type: ignore[attr-defined]
    stream.seek(0)
    mode = "RGBA" if image.mode == "RGBA" else "RGBX"
    return _of(rgba_of(stream.read(), image.size), mode, image)


def _frame_of_webp(decoder: Any, frame: int) -> bytes:
    decoder.reset()
    for _ in range(frame):
        decoder.get_next()
    found = decoder.get_next()
    if found is None:
        raise EOFError("failed to decode a frame")
    pixels: bytes = found[0]
    return pixels


def _of(pixels: bytes | bytearray, mode: str, opened: Image.Image) -> Image.Image:
    """Return an image around pixels; those of three bytes are copied, for Pillow has four."""
    from PIL import Image

    frame = Image.frombuffer(mode, opened.size, pixels, "raw", mode, 0, 1)
    frame.info = opened.info
    return frame


def _is_costly(image: Image.Image, stream: IO[bytes], little: int) -> bool:
    """Tell whether Pillow takes more memory for an opened JPEG 2000 file than reading may."""
    if image.format != "JPEG2000":
        return False
    return bytes_of(image, stream) > max(MOST * image.width * image.height, little)


def areas_of(
    image: Image.Image, stream: IO[bytes], enough: int = ENOUGH, little: int = LITTLE
) -> Image.Image | None:
    """Return a JPEG 2000 image of which no more is decoded at a time than what is cropped.

    ``None`` for files that take little memory, for those of which half the resolution leaves
    `enough` pixels, and where no library decodes areas.
    """
    if not _is_costly(image, stream, little):
        return None
    pixels = image.width * image.height
    header = _header(stream)
    if pixels >> 2 >= enough and _levels(header):  # all of it takes a second a megapixel
        return None
    from glm4v_magic.images.openjpeg import by_area

    return by_area(image, stream, in_one_tile=_tiles(header, image)[0] == 1)


def reduce(
    image: Image.Image, stream: IO[bytes], enough: int = ENOUGH, little: int = LITTLE
) -> int:
    """Have a costly JPEG 2000 file read at 1/2, 1/4, ... of its resolution; return 2, 4, ...

    At half of it, it costs little enough; at less only as far as there remain `enough` pixels.
    Returns 1 for all others.
    """
    if not _is_costly(image, stream, little):
        return 1
    pixels, levels = image.width * image.height, _levels(_header(stream))
    steps = min(1, levels)
    while steps < levels and pixels >> (2 * steps + 2) >= enough:
        steps += 1
    image.reduce = steps  # type: ignore[method-assign, assignment]  # a setting in this format
    return 1 << steps


def bytes_of(image: Image.Image, stream: IO[bytes]) -> int:
    """Return how many bytes reading an opened file takes at most, at its full resolution."""
    pixels, bands = image.width * image.height, len(image.getbands())
    if image.format == "AVIF" and bands == 4:
        from glm4v_magic.images.avif import layers

        # Together, at most four planes of 16 bits, and two frames made of them.
        return (MOST if layers(stream) else 18) * pixels
    if image.format != "JPEG2000" or bands == 1:
        return MOST * pixels
    # The image and its RGB, and of each tile 32 bits a value beside at most 16 to hand over.
    return 8 * pixels + 6 * bands * _tiles(_header(stream), image)[1]


def _header(stream: IO[bytes]) -> bytes:
    stood = stream.tell()
    stream.seek(0)
    content = stream.read(_HEADERS)
    stream.seek(stood)
    return content[max(0, content.find(b"\xff\x4f" + _SIZ)) :]


def _tiles(header: bytes, image: Image.Image) -> tuple[int, int]:
    """Return how many tiles there are, and how many pixels of the image one has at most."""
    if len(header) < 40:
        return 1, image.width * image.height
    right, bottom, _, _, width, height, x, y = struct.unpack_from(">8I", header, 8)
    if not width or not height:  # damaged, as the decoder says
        return 1, image.width * image.height
    number = -((x - right) // width) * -((y - bottom) // height)
    return number, min(width, image.width) * min(height, image.height)


def _levels(header: bytes) -> int:
    """Return how many times the resolution can be halved."""
    at = 2
    while header[at : at + 2] != _COD:
        if len(header) < at + 4:
            return 0
        at += 2 + int.from_bytes(header[at + 2 : at + 4])
    return header[at + 9] if len(header) > at + 9 else 0
