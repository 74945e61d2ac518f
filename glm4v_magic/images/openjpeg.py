"""A JPEG 2000 file, an area at a time.

Pillow has OpenJPEG decode a whole tile to integers of 32 bits, which is nine times the pixels of a
file in one tile. OpenJPEG itself can decode any area of it, exactly as within the whole; glymur,
which asks it to, does not bring the library. So the one that Pillow has loaded is asked, through
its C interface: that of `libopenjp2.so.7`, since 2014.
"""

from __future__ import annotations

import contextlib
import ctypes as c
import functools
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, features

from glm4v_magic.images.bundled import library

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ByArea", "by_area", "opj", "upper_bits"]

_OLDEST = (2, 5)
"""The first whose strict mode refuses what is cut short."""
_J2K, _JP2 = 0, 2  # OPJ_CODEC_FORMAT
_UNKNOWN, _UNSPECIFIED, _SRGB, _GREY, _SYCC, _CMYK = -1, 0, 1, 2, 3, 5  # OPJ_COLOR_SPACE
_SPACES = {
    "LA": (_UNKNOWN, _UNSPECIFIED, _GREY),
    "RGB": (_UNKNOWN, _UNSPECIFIED, _SRGB, _SYCC),
    "RGBA": (_UNKNOWN, _UNSPECIFIED, _SRGB),
    "CMYK": (_CMYK,),
}
_PARAMETERS = 2**15  # bytes; opj_dparameters_t has 8,252
_DEEPEST = 16
_SIDE = 128
"""Code blocks have 64 x 64 coefficients, most of them of every other row and column."""
_PARTS = 16
"""Of an image in so many parts, one and what is kept between them fit beside its RGB."""


class _Component(c.Structure):
    """Values of a channel: opj_image_comp_t."""

    _fields_ = (
        ("dx", c.c_uint32),
        ("dy", c.c_uint32),
        ("w", c.c_uint32),
        ("h", c.c_uint32),
        ("x0", c.c_uint32),
        ("y0", c.c_uint32),
        ("prec", c.c_uint32),
        ("bpp", c.c_uint32),
        ("sgnd", c.c_uint32),
        ("resno_decoded", c.c_uint32),
        ("factor", c.c_uint32),
        ("data", c.POINTER(c.c_int32)),
        ("alpha", c.c_uint16),
    )


class _Image(c.Structure):
    """An image, or the area of it that was decoded last: opj_image_t."""

    _fields_ = (
        ("x0", c.c_uint32),
        ("y0", c.c_uint32),
        ("x1", c.c_uint32),
        ("y1", c.c_uint32),
        ("numcomps", c.c_uint32),
        ("color_space", c.c_int),
        ("comps", c.POINTER(_Component)),
        ("icc_profile_buf", c.c_void_p),
        ("icc_profile_len", c.c_uint32),
    )


_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    # name -> what it returns, then what it takes
    "opj_version": (c.c_char_p,),
    "opj_create_decompress": (c.c_void_p, c.c_int),
    "opj_destroy_codec": (None, c.c_void_p),
    "opj_set_default_decoder_parameters": (None, c.c_void_p),
    "opj_setup_decoder": (c.c_int, c.c_void_p, c.c_void_p),
    "opj_stream_create_default_file_stream": (c.c_void_p, c.c_char_p, c.c_int),
    "opj_stream_destroy": (None, c.c_void_p),
    "opj_read_header": (c.c_int, c.c_void_p, c.c_void_p, c.POINTER(c.POINTER(_Image))),
    "opj_set_decode_area": (c.c_int, c.c_void_p, c.POINTER(_Image), *[c.c_int32] * 4),
    "opj_decode": (c.c_int, c.c_void_p, c.c_void_p, c.POINTER(_Image)),
    "opj_image_destroy": (None, c.POINTER(_Image)),
    "opj_image_data_free": (None, c.c_void_p),
}


@functools.cache
def opj() -> Any:
    """Return OpenJPEG, or ``None`` if it cannot be reached."""
    if not Path("/dev/fd").exists():  # by which it is given files
        return None
    return library("openjp2", _FUNCTIONS, _is_of_pillow)


def _is_of_pillow(found: Any) -> bool:
    version = found.opj_version().decode()
    is_new = tuple(int(part) for part in version.split(".")[:2]) >= _OLDEST
    return is_new and version == features.version_codec("jpg_2000")


def by_area(opened: Image.Image, stream: IO[bytes], *, in_one_tile: bool) -> ByArea | None:
    """Return an image whose areas are decoded when they are cropped.

    ``None`` if the library cannot be reached, or does not have the file as Pillow has it: with a
    palette, more than 16 bits, or channels of different sizes.

    Args:
        opened: the image as Pillow opened it.
        stream: the file.
        in_one_tile: whether the file is known to have a single tile.
    """
    if opj() is None or opened.mode not in _SPACES:
        return None
    try:
        image = ByArea(opened, stream, in_one_tile=in_one_tile)
    except OSError:  # Pillow says what is wrong with it
        return None
    if image.is_as_opened():
        return image
    image.close()
    return None


class ByArea(Image.Image):
    """An image of which no pixels are in memory but those that are cropped."""

    format = "JPEG2000"

    def __init__(self, opened: Image.Image, stream: IO[bytes], *, in_one_tile: bool) -> None:
        super().__init__()
        self._as_opened = opened
        self.info = opened.info
        self._in_one_tile = in_one_tile
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as resources:
            self._file = _file_of(stream, resources)
            self._decoder = _Decoder(self._file)
            resources.callback(lambda: self._decoder.close())
            self._resources = resources.pop_all()
        # As many rows at a time as make a part of the image, if they are not too few.
        most = max(opened.width * opened.height // _PARTS, _SIDE * _SIDE)
        self._rows = max(_SIDE, most // opened.width // _SIDE * _SIDE)
        self._columns = max(_SIDE, most // self._rows // _SIDE * _SIDE)

    @property
    def mode(self) -> str:
        """Pillow's mode of the file."""
        return self._as_opened.mode

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self._as_opened.size

    @property
    def rows(self) -> int:
        """How many rows are decoded at a time."""
        return self._rows

    def is_as_opened(self) -> bool:
        """Tell whether the library has the channels that Pillow has."""
        image = self._decoder.image
        channels = image.comps[: image.numcomps]
        return (
            len(channels) == len(self.getbands())
            and image.color_space in _SPACES[self.mode]
            and (image.x1 - image.x0, image.y1 - image.y0) == self.size
            and all((each.dx, each.dy) == (1, 1) for each in channels)
            and all(each.prec <= _DEEPEST for each in channels)
        )

    def load(self) -> None:
        """Do nothing: pixels are read when they are cropped."""

    def close(self) -> None:
        """Let go of the file and of what was decoded of it."""
        self._resources.close()

    def crop(self, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        """Return an area of whole pixels within the image.

        Raises:
            OSError: if the file is cut short or damaged.
        """
        left, top, right, bottom = (int(each) for each in box or (0, 0, *self.size))
        area = Image.new(self.mode, (right - left, bottom - top))
        area.info = self.info
        for y in range(top, bottom, self._rows):
            for x in range(left, right, self._columns):
                to = (min(x + self._columns, right), min(y + self._rows, bottom))
                area.paste(self._decoded(x, y, *to), (x - left, y - top))
        return area

    def _decoded(self, left: int, top: int, right: int, bottom: int) -> Image.Image:
        if self._decoder.is_used and not self._in_one_tile:  # it has passed tiles that are needed
            self._decoder.close()
            self._decoder = _Decoder(self._file)
        is_ycc = self._decoder.image.color_space == _SYCC
        with self._decoder.decoded(left, top, right, bottom) as channels:
            bands = [Image.fromarray(_values_of(each)) for each in channels]
        if is_ycc:
            return Image.merge("YCbCr", bands).convert(self.mode)
        return Image.merge(self.mode, bands)


class _Decoder:
    """OpenJPEG's decoder of a file, with the header read."""

    def __init__(self, file: str) -> None:
        lib = opj()
        parameters = c.create_string_buffer(_PARAMETERS)
        self._image = c.POINTER(_Image)()
        self.is_used = False
        with contextlib.ExitStack() as owned:
            self._codec = lib.opj_create_decompress(_kind_of(file))
            owned.callback(lib.opj_destroy_codec, self._codec)
            lib.opj_set_default_decoder_parameters(parameters)
            self._stream = lib.opj_stream_create_default_file_stream(os.fsencode(file), 1)
            if not self._stream:
                raise OSError("the file cannot be opened again")
            owned.callback(lib.opj_stream_destroy, self._stream)
            if not lib.opj_setup_decoder(self._codec, parameters) or not lib.opj_read_header(
                self._stream, self._codec, c.byref(self._image)
            ):
                raise OSError("broken header of a JPEG 2000 file")
            owned.callback(lib.opj_image_destroy, self._image)
            self.close = owned.pop_all().close

    @property
    def image(self) -> Any:
        """The opj_image_t."""
        return self._image.contents

    @contextlib.contextmanager
    def decoded(self, left: int, top: int, right: int, bottom: int) -> Iterator[list[_Component]]:
        """Yield the channels of an area; their values are gone afterwards."""
        lib = opj()
        if not self.is_used:
            self._from = (self.image.x0, self.image.y0)
        self.is_used = True
        x, y = self._from
        area = (x + left, y + top, x + right, y + bottom)
        try:
            if not lib.opj_set_decode_area(self._codec, self._image, *area) or not lib.opj_decode(
                self._codec, self._stream, self._image
            ):
                raise OSError("broken data in a JPEG 2000 file")
            channels = list(self.image.comps[: self.image.numcomps])
            if not all(each.data for each in channels):
                raise OSError("values are missing in a JPEG 2000 file")
            yield channels
        finally:
            for each in self.image.comps[: self.image.numcomps]:
                lib.opj_image_data_free(each.data)
                each.data = c.POINTER(c.c_int32)()


def _file_of(stream: IO[bytes], resources: contextlib.ExitStack) -> str:
    """Return a name by which the library can open what is in a stream."""
    if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO):
        return f"/dev/fd/{stream.fileno()}"
    copy = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
    resources.callback(copy.close)
    stood = stream.tell()
    stream.seek(0)
    shutil.copyfileobj(stream, copy)
    stream.seek(stood)
    copy.flush()
    return f"/dev/fd/{copy.fileno()}"


def _kind_of(file: str) -> int:
    with Path(file).open("rb") as opened:
        opened.seek(0)  # where a file is opened by its number, it may stand elsewhere
        return _J2K if opened.read(2) == b"\xff\x4f" else _JP2


def _values_of(channel: _Component) -> np.ndarray:
    import numpy as np

    values = np.ctypeslib.as_array(channel.data, (channel.h, channel.w))
    return upper_bits(values, channel.prec, is_signed=bool(channel.sgnd))


def upper_bits(values: np.ndarray, depth: int, *, is_signed: bool) -> np.ndarray:
    """Return values of some bits as Pillow has them: the upper 8, rounded."""
    import numpy as np

    shift, offset = 8 - depth, 1 << (depth - 1) if is_signed else 0
    if shift < 0:
        values = (values + (offset + (1 << (-shift - 1)))) >> -shift
    elif shift or offset:
        values = (values + offset) << shift
    return values.clip(0, 255).astype(np.uint8)
