"""FITS files whose pixels Pillow does not read, or takes for other values than they are.

It takes the first table for an image, and so the parts of an image that is compressed in one, which
is how observatories publish them. It reads values as they are stored, also where the header says
how they are meant: unsigned integers are stored as signed ones, with an offset.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import IO

__all__ = ["is_misread"]

_LINE, _BLOCK = 80, 2880
_BEGINNING = b"SIMPLE  ="
_MOST = 10_000
"""Lines that are looked at; a header of a thousand is long."""
_READ = {b"8", b"16", b"32", b"-32", b"-64"}
_PLAIN = {b"BZERO": 0.0, b"BSCALE": 1.0}

_Header = dict[bytes, bytes]


def is_misread(stream: IO[bytes]) -> bool:
    """Tell whether a file is a FITS file of a kind that Pillow does not read, or misreads."""
    stood = stream.tell()
    try:
        if stream.read(len(_BEGINNING)) != _BEGINNING:
            return False
        stream.seek(stood)
        first = next((each for each in _headers(stream) if each.get(b"NAXIS", b"0") != b"0"), {})
    finally:
        stream.seek(stood)
    is_table = first.get(b"XTENSION", b"").startswith((b"'BINTABLE", b"'TABLE"))
    if is_table and not first.get(b"ZCMPTYPE", b"").startswith(b"'GZIP_1"):
        return True
    return first.get(b"BITPIX", b"8") not in _READ or any(
        _number(first.get(name), plain) != plain for name, plain in _PLAIN.items()
    )


def _headers(stream: IO[bytes]) -> Iterator[_Header]:
    """Yield the header of each unit up to the first that has data."""
    header: _Header = {}
    for line in itertools.islice(iter(lambda: stream.read(_LINE), b""), _MOST):
        name = line[:8].strip()
        if name == b"END":
            yield header
            header = {}
            stream.seek(-(-stream.tell() // _BLOCK) * _BLOCK)
        elif line[8:9] == b"=":
            header[name] = line[9:].split(b"/")[0].strip()


def _number(text: bytes | None, default: float) -> float:
    try:
        return default if text is None else float(text.upper().replace(b"D", b"E"))
    except ValueError:
        return default
