"""Boxes and points in an answer: numbers from 0 to 1000 -> pixels of the original image.

These forms are found, as GLM-4.1V, GLM-4.5V and GLM-4.6V write them:

1. JSON objects with ``bbox_2d`` (or ``bbox``) or ``point_2d`` (or ``point``), anywhere, with a
   ``label`` (or ``name``) and, if the model says so, the number of the image as ``image``.
2. Between ``<|begin_of_box|>`` and ``<|end_of_box|>``: lists of four numbers, each a box, and of
   two, each a point; four bare numbers are a box. Anything else is the final answer to a question.
3. Outside of the tags, in prose: lists of such lists, ``[[x0, y0, x1, y1], ...]``.

Where there are several images, a box is on the one that its JSON names, or that is named before it
on the same line ("Image 2: ...", "the second image", "图2", "第二张"), counted from 1 as in the
conversation; otherwise on the last.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from glm4v_magic.calls.tags import TAG
from glm4v_magic.core.boxes import BOX_TAGS, Box, Mark, Point
from glm4v_magic.core.conversation import Conversation
from glm4v_magic.core.wording import printable

__all__ = ["Marks", "marks", "marks_of"]

_SCALE = 1000.0
_MOST = 1000  # marks of an answer
_LONGEST = 200  # characters of a label

_NUMBER = r"[-+]?(?:\d{1,20}(?:\.\d{1,20})?(?:e[-+]?\d{1,4})?|nan|inf(?:inity)?)"
_COMMA = r"\s{0,20},\s{0,20}"
_FOUR = rf"\[\s{{0,20}}{_NUMBER}(?:{_COMMA}{_NUMBER}){{3}}\s{{0,20}}\]"
_LIST = re.compile(rf"\[\s{{0,20}}{_NUMBER}(?:{_COMMA}{_NUMBER}){{1,3}}\s{{0,20}}\]", re.IGNORECASE)
_NESTED = re.compile(
    rf"\[\s{{0,20}}{_FOUR}(?:{_COMMA}{_FOUR}){{0,{_MOST}}}\s{{0,20}}\]", re.IGNORECASE
)
_BARE = re.compile(rf"\s*{_NUMBER}(?:[\s,]{{1,20}}{_NUMBER}){{3}}\s*", re.IGNORECASE)
_NUMBERS = re.compile(_NUMBER, re.IGNORECASE)

# A JSON object without another in it; its strings may hold braces. Longer ones are not boxes.
_OBJECT = re.compile(r'\{(?:[^{}"]|"(?:[^"\\\n]|\\.){0,1000}+"){1,2000}+\}')
_BOX_KEYS, _POINT_KEYS = ("bbox_2d", "bbox"), ("point_2d", "point")
_LABEL_KEYS = ("label", "name")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_DIGITS = "一二三四五六七八九"
_NAMED = re.compile(
    r"\bimage\s{0,5}(?:no\.?\s?|#\s?)?(\d{1,4})\b"
    rf"|\b({'|'.join(_ORDINALS)})\s(?:image|photo|picture)\b"
    rf"|(?:图像?|图片|照片)\s?([{_DIGITS}]|\d{{1,4}})"
    rf"|第\s?([{_DIGITS}]|\d{{1,4}})\s?[张幅]",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Marks:
    """What an answer marks on its images.

    Attributes:
        boxes: boxes, in the order of the answer.
        points: points, in the order of the answer.
        fault: what was wrong with their numbers, in one sentence; empty if nothing was.
    """

    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    fault: str = ""

    @property
    def all(self) -> tuple[Mark, ...]:
        """All boxes, then all points."""
        return (*self.boxes, *self.points)


@dataclass(frozen=True, slots=True)
class _Found:
    """Numbers in an answer that may be a box or a point.

    Attributes:
        at: index of its first character.
        numbers: the four or two numbers.
        label: what the model calls it.
        image: number of the image that its JSON names, from 1.
    """

    at: int
    numbers: tuple[float, ...]
    label: str = ""
    image: object = None


def marks(
    written: str,
    sizes: Sequence[tuple[int, int]],
    *,
    lists: bool = True,
    with_video: bool = False,
) -> Marks:
    """Find the boxes and points in an answer.

    Edges in the wrong order are swapped, and boxes are clipped to their image. Boxes and points
    that are outside of it, empty or not finite are left out. `Marks.fault` counts all of these.

    Args:
        written: the answer as the model wrote it, with its tags.
        sizes: width and height in pixels of each image of the conversation; without images there
            are no boxes.
        with_video: whether the conversation has a video. Answers do not say which frame of it a box
            is on, so only boxes that name an image are taken.
        lists: whether lists of lists outside of the tags are boxes.
    """
    if not (sizes or with_video) or not ("[" in written or TAG.search(written)):
        return Marks()
    sorting = _Sorting(written, sizes, with_video)
    for found in sorted(_found(written, lists), key=lambda each: each.at):
        sorting.take(found)
    return sorting.marks()


def marks_of(conversation: Conversation, turn: int) -> Marks:
    """Find the boxes and points in an answer of a conversation.

    Args:
        conversation: the conversation.
        turn: index of the message.
    """
    message = conversation.messages[turn]
    if message.role != "assistant":
        return Marks()
    before = Conversation(conversation.messages[:turn])
    return marks(
        message.written or message.text,
        [each.original_size for each in before.images],
        with_video=bool(before.videos),
    )


def _found(written: str, lists: bool) -> Iterator[_Found]:
    """Yield candidates for boxes and points, one form after the other."""
    rest = list(written)
    for found in _OBJECT.finditer(written):
        told = list(_in_object(found[0], found.start()))
        if told:
            yield from told
            rest[found.start() : found.end()] = " " * len(found[0])
    text = "".join(rest)
    for start, end, is_tagged in _parts(text):
        if is_tagged:
            yield from _in_tags(text[start:end], start)
        elif lists:
            yield from _in_prose(text[start:end], start)


def _parts(text: str) -> Iterator[tuple[int, int, bool]]:
    """Yield start and end of each text around and between tags, and whether it is between them."""
    at, is_tagged = 0, False
    for tag in TAG.finditer(text):
        yield at, tag.start(), is_tagged
        at, is_tagged = tag.end(), tag[0] == BOX_TAGS[0]
    yield at, len(text), is_tagged


def _in_object(text: str, at: int) -> Iterator[_Found]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    label = next((value[key] for key in _LABEL_KEYS if key in value), "")
    for keys, count in ((_BOX_KEYS, 4), (_POINT_KEYS, 2)):
        given = next((value[key] for key in keys if key in value), None)
        for numbers in _rows(given, count):
            yield _Found(at, numbers, _label(label), value.get("image"))


def _rows(value: Any, count: int) -> Iterator[tuple[float, ...]]:
    """Yield the numbers of a box or a point, or of each in a list of them."""
    if not isinstance(value, list):
        return
    rows = value if value and isinstance(value[0], list) else [value]
    for row in rows:
        if isinstance(row, list) and len(row) == count and all(map(_is_number, row)):
            yield tuple(map(_float, row))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of 400 digits
        return math.inf


def _label(value: object) -> str:
    """Return a label on one line, with lone surrogates as U+FFFD."""
    text = value if isinstance(value, str) else json.dumps(value)
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    line = " ".join(printable(whole).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _in_tags(text: str, at: int) -> Iterator[_Found]:
    if _BARE.fullmatch(text):
        yield _Found(at, _numbers(text))
        return
    for found in _LIST.finditer(text):
        numbers = _numbers(found[0])
        if len(numbers) != 3:
            yield _Found(at + found.start(), numbers)


def _in_prose(text: str, at: int) -> Iterator[_Found]:
    for nested in _NESTED.finditer(text):
        rows = [(each.start(), _numbers(each[0])) for each in _LIST.finditer(nested[0])]
        # Other lists of lists, such as a matrix or a table, are not boxes.
        if all(_could_be_box(numbers) for _, numbers in rows):
            for start, numbers in rows:
                yield _Found(at + nested.start() + start, numbers)


def _number(word: str) -> int:
    """Return the number of an image from how it was written."""
    if word.lower() in _ORDINALS:
        return _ORDINALS.index(word.lower()) + 1
    return _DIGITS.index(word) + 1 if word in _DIGITS else int(word)


def _could_be_box(numbers: tuple[float, ...]) -> bool:
    x0, y0, x1, y1 = numbers
    return 0 <= x0 < x1 <= _SCALE and 0 <= y0 < y1 <= _SCALE


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(each) for each in _NUMBERS.findall(text))


@dataclass(slots=True)
class _Sorting:
    """Turns what was found into boxes and points, and counts what was wrong with them.

    Attributes:
        written: the answer.
        sizes: width and height of each image.
        with_video: as in `marks`.
    """

    written: str
    sizes: Sequence[tuple[int, int]]
    with_video: bool = False
    boxes: list[Box] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    turned: int = 0
    clipped: int = 0
    outside: int = 0
    beyond: int = 0
    of_video: int = 0

    def take(self, found: _Found) -> None:
        """Add the next candidate, or count what is wrong with it."""
        if len(self.boxes) + len(self.points) == _MOST:
            self.beyond += 1
            return
        if not all(map(math.isfinite, found.numbers)):
            self.outside += 1
            return
        image = self._image(found)
        if image is None:
            self.of_video += 1
            return
        if len(found.numbers) == 4:
            self._take_box(found, image)
        else:
            self._take_point(found, image)

    def marks(self) -> Marks:
        """Return the boxes and points, with a sentence about what was wrong."""
        faults = [
            f"{number:,} {what}"
            for number, what in (
                (self.turned, "turned round"),
                (self.clipped, "cut at the edge of the image"),
            )
            if number
        ]
        if self.outside:
            faults.append(f"{self.outside:,} outside of the image or empty left out")
        if self.of_video:
            faults.append(f"{self.of_video:,} in a video, of a frame that is not told, left out")
        if self.beyond:
            faults.append(f"{self.beyond:,} more than {_MOST:,} left out")
        fault = f"Boxes and points: {', '.join(faults)}." if faults else ""
        return Marks(tuple(self.boxes), tuple(self.points), fault)

    def _image(self, found: _Found) -> int | None:
        """Return the index of the image; ``None`` if it is a frame of a video, of whichever."""
        last = len(self.sizes) - 1
        line = self.written[self.written.rfind("\n", 0, found.at) + 1 : found.at]
        named = [_number(next(filter(None, each))) for each in _NAMED.findall(line[-_LONGEST:])]
        given = found.image
        if isinstance(given, int) and not isinstance(given, bool):
            named.append(given)
        if named and 1 <= named[-1] <= last + 1:
            return named[-1] - 1
        return None if self.with_video else last

    def _take_box(self, found: _Found, image: int) -> None:
        x0, y0, x1, y1 = found.numbers
        if x0 > x1 or y0 > y1:
            self.turned += 1
            x0, y0, x1, y1 = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
        edges = tuple(min(max(each, 0.0), _SCALE) for each in (x0, y0, x1, y1))
        width, height = self.sizes[image]
        left, right = (edge * width / _SCALE for edge in edges[::2])
        upper, lower = (edge * height / _SCALE for edge in edges[1::2])
        if left >= right or upper >= lower:
            self.outside += 1
            return
        self.clipped += edges != (x0, y0, x1, y1)
        self.boxes.append(Box(found.label, left, upper, right, lower, image))

    def _take_point(self, found: _Found, image: int) -> None:
        x, y = found.numbers
        if not (0 <= x <= _SCALE and 0 <= y <= _SCALE):
            self.outside += 1
            return
        width, height = self.sizes[image]
        self.points.append(Point(found.label, x * width / _SCALE, y * height / _SCALE, image))
