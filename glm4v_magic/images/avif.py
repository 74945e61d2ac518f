"""The colours of an AVIF file and its transparency, as two files.

Decoded together they take more than four times the pixels of 8-bit RGB. Each is an image of its own
in the file, or a track; the second says that it belongs to the first, in ISO/IEC 14496-12's boxes
`iref` and `tref`, which is all that makes one image of them. A few bytes are written over: nothing
moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

from PIL import Image, ImageChops

__all__ = ["Layered", "Layers", "layers", "overwritten"]

Changes = tuple[tuple[int, bytes], ...]
_MOST = 2**24  # bytes of a box that is looked into
_NOTHING = b"free"  # a type of boxes that every reader passes over


class Layers(NamedTuple):
    """What to write over, and where, to have the colours alone, and the transparency alone."""

    colours: Changes
    transparency: Changes
    is_multiplied: bool  # the colours, by the transparency


class _Box(NamedTuple):
    name: bytes
    content: bytes
    offset: int  # of the content in the file


class Layered(Image.Image):
    """Colours and their transparency, which are put together where they are cropped."""

    format = "AVIF"

    def __init__(self, colours: Image.Image, alpha: Image.Image, *, is_multiplied: bool) -> None:
        super().__init__()
        self.info = colours.info
        self._colours, self._alpha, self._is_multiplied = colours, alpha, is_multiplied

    @property
    def mode(self) -> str:
        """``"RGBA"``, or ``"RGB"`` where the transparency is in the colours already."""
        return "RGB" if self._is_multiplied else "RGBA"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self._colours.size

    def load(self) -> None:
        """Do nothing: both are in memory."""

    def crop(self, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        """Return an area: with its transparency, or on white if it is in the colours already."""
        area, alpha = self._colours.crop(box), self._alpha.crop(box)
        if not self._is_multiplied:
            area.putalpha(alpha)
            return area
        white = Image.merge("RGB", [ImageChops.invert(alpha)] * 3)
        return ImageChops.add(area, white)


def layers(stream: IO[bytes]) -> Layers | None:
    """Return how to take an AVIF file with transparency apart.

    ``None`` if it cannot be, as with more than one image that belongs to another.
    """
    stood = stream.tell()
    try:
        boxes = dict(_outer_boxes(stream))
    finally:
        stream.seek(stood)
    found = [_of_items(boxes[b"meta"])] if b"meta" in boxes else []
    if b"moov" in boxes:
        found.append(_of_tracks(boxes[b"moov"]))
    both = [each for each in found if each is not None]
    if not both or len(both) < len(found) or len({each.is_multiplied for each in both}) > 1:
        return None
    return Layers(
        sum((each.colours for each in both), ()),
        sum((each.transparency for each in both), ()),
        both[0].is_multiplied,
    )


def overwritten(content: bytes, changes: Changes) -> bytes:
    """Return a copy of a file with some bytes written over."""
    copy = bytearray(content)
    for at, new in changes:
        copy[at : at + len(new)] = new
    return bytes(copy)


def _of_items(meta: _Box) -> Layers | None:
    """Of a still image: the item that is shown, and the one that belongs to it."""
    inner = {each.name: each for each in _boxes(meta, skipped=4)}
    first, references = inner.get(b"pitm"), inner.get(b"iref")
    if first is None or references is None or not references.content:
        return None
    width = 4 if references.content[0] else 2  # bytes of an item's number: by the box's version
    kinds = [each for each in _boxes(references, skipped=4) if each.name in (b"auxl", b"prem")]
    auxiliary = [each for each in kinds if each.name == b"auxl"]
    if len(auxiliary) != 1:
        return None
    number, shown = auxiliary[0].content[:width], first.content[4:]
    of = auxiliary[0].content[width + 2 :]
    if int.from_bytes(of) != int.from_bytes(shown) or len(number) > len(shown):
        return None
    off = _off(*kinds)
    other = (first.offset + 4, number.rjust(len(shown), b"\0"))
    return Layers(off, (*off, other), len(kinds) > 1)


def _of_tracks(moov: _Box) -> Layers | None:
    """Of a moving image: the track of the colours, and the one that belongs to it."""
    tracks = [each for each in _boxes(moov) if each.name == b"trak"]
    kinds = [
        (track, kind)
        for track in tracks
        for inner in _boxes(track)
        if inner.name == b"tref"
        for kind in _boxes(inner)
        if kind.name in (b"auxl", b"prem")
    ]
    owned = [track for track, kind in kinds if kind.name == b"auxl"]
    if len(tracks) != 2 or len(owned) != 1:
        return None
    off = _off(*(kind for _, kind in kinds))
    colours = _off(*(each for each in tracks if each is not owned[0]))
    return Layers(off, (*off, *colours), len(kinds) > 1)


def _off(*boxes: _Box) -> Changes:
    return tuple((each.offset - 4, _NOTHING) for each in boxes)


def _outer_boxes(stream: IO[bytes]) -> Iterator[tuple[bytes, _Box]]:
    at = 0
    while True:
        stream.seek(at)
        head = stream.read(16)
        if len(head) < 8:
            return
        size, name, before = int.from_bytes(head[:4]), head[4:8], 8
        if size == 1:
            size, before = int.from_bytes(head[8:]), 16
        if name in (b"meta", b"moov") and before <= size <= _MOST:
            stream.seek(at + before)
            content = stream.read(size - before)
            yield name, _Box(name, content, at + before)
        if size < before:  # of no size: to the end
            return
        at += size


def _boxes(outer: _Box, skipped: int = 0) -> Iterator[_Box]:
    at, content = skipped, outer.content
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4])
        if size < 8:  # nothing within these is long, or without a size
            return
        inner = content[at + 8 : at + size]
        yield _Box(content[at + 4 : at + 8], inner, outer.offset + at + 8)
        at += size
