"""Boxes and points in an answer: numbers from 0 to 1000 -> pixels of the original image.

Some models write fractions from 0 to 1 instead, all of an answer's numbers alike; `Marks.fault`
says that these were taken for such.

These forms are found, as GLM-4.1V, GLM-4.5V and GLM-4.6V write them:

1. JSON objects with ``bbox_2d`` (or ``bbox``) or ``point_2d`` (or ``point``), anywhere, with a
   ``label`` (or ``name``) and, if the model says so, the number of the image as ``image``.
2. Between ``<|begin_of_box|>`` and ``<|end_of_box|>``: lists of four numbers, each a box, and of
   two, each a point; four bare numbers are a box. Anything else is the final answer to a question.
3. Outside of the tags, in prose: lists of such lists, ``[[x0, y0, x1, y1], ...]``.

Where there are several images, a box is on the one that its JSON names, or that is named before it
on the same line ("Image 2: ...", "the second image", "图2", "第二张"), counted from 1 as in the
conversation; otherwise on the last.

Of a video, a box is on the frame that its JSON names: by ``frame``, counted from 0 among those that
the model saw, by a ``time`` in seconds, or as the key of a list, ``{"0": [...], "1": [...]}``; or
on the frame nearest to a time that is named before it on the same line ("0.5 seconds: ...").
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from glm4v_magic.calls.tags import TAG
from glm4v_magic.core.boxes import BOX_TAGS, Box, Mark, Point
from glm4v_magic.core.conversation import Conversation
from glm4v_magic.core.video import Frame, SourcedVideo
from glm4v_magic.core.wording import printable

__all__ = ["Frames", "Marks", "frames_of", "marks", "marks_of"]

_SCALE = 1000.0
_MOST = 1000  # marks of an answer
_LONGEST = 200  # characters of a label
_KEY_WITHIN = 4000  # characters between the key of a list and a box in it

_NUMBER = r"[-+]?(?:\d++(?:\.\d++)?(?:e[-+]?\d++)?|nan|inf(?:inity)?)"
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
_SECONDS = re.compile(r"(?<![\d.])(\d{1,5}(?:\.\d{1,5})?)\s?(?:s|sec|seconds?)\b", re.IGNORECASE)
_KEYED = re.compile(r'"(\d{1,5})"\s{0,20}:\s{0,20}\[[\s,]{0,2000}\Z')
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
        frame: number of the frame that its JSON names, from 0.
        time: seconds from the beginning of the clip that its JSON names.
    """

    at: int
    numbers: tuple[float, ...]
    label: str = ""
    image: int | None = None
    frame: int | None = None
    time: float | None = None


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of a video that a model saw.

    Attributes:
        times: seconds from the beginning of the clip to each.
        size: width and height of the clip in pixels.
    """

    times: tuple[float, ...]
    size: tuple[int, int]

    @classmethod
    def of(cls, videos: Sequence[SourcedVideo]) -> Frames | None:
        """Return a conversation's frames; no frames if it has several videos, ``None`` if none."""
        if not videos:
            return None
        times = frames_of(videos)
        return cls(tuple(each.time for each in times), videos[0].size)


def frames_of(videos: Sequence[SourcedVideo]) -> tuple[Frame, ...]:
    """Return the frames that boxes can be on: those of the only video."""
    return videos[0].seen if len(videos) == 1 else ()


def marks(
    written: str,
    sizes: Sequence[tuple[int, int]],
    *,
    lists: bool = True,
    frames: Frames | None = None,
) -> Marks:
    """Find the boxes and points in an answer.

    Edges in the wrong order are swapped, and boxes are clipped to their image. Boxes and points
    that are outside of it, empty or not finite are left out. `Marks.fault` counts all of these.

    Args:
        written: the answer as the model wrote it, with its tags.
        sizes: width and height in pixels of each image of the conversation; without images there
            are no boxes.
        frames: those of the conversation's video, if it has one; boxes that name neither an image
            nor a frame are then left out.
        lists: whether lists of lists outside of the tags are boxes.
    """
    if not (sizes or frames) or not ("[" in written or TAG.search(written)):
        return Marks()
    told = sorted(_found(written, lists), key=lambda each: each.at)
    sorting = _Sorting(written, sizes, frames)
    if _are_fractions([number for each in told for number in each.numbers]):
        sorting.fractions = min(len(told), _MOST)
        told = [
            replace(each, numbers=tuple(_SCALE * number for number in each.numbers))
            for each in told
        ]
    for found in told:
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
        frames=Frames.of(before.videos),
    )


def _found(written: str, lists: bool) -> Iterator[_Found]:
    """Yield candidates for boxes and points, one form after the other."""
    rest = list(written)
    for found in _OBJECT.finditer(written):
        told = list(_in_object(found[0], found.start()))
        if told:
            key = _KEYED.search("".join(rest[max(0, found.start() - _KEY_WITHIN) : found.start()]))
            yield from (
                replace(each, frame=int(key[1])) if key and each.frame is None else each
                for each in told
            )
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
    from glm4v_magic.calls.boxes_json import read_object  # imports pydantic

    told = read_object(text)
    if told is not None:
        for numbers in told.marks:
            yield _Found(at, numbers, _label(told.name), told.image, told.frame, told.time)


def _label(text: str) -> str:
    """Return a label on one line, with lone surrogates as U+FFFD."""
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
    """Return an image's number, which may be written as digits or as an ordinal word."""
    if word.lower() in _ORDINALS:
        return _ORDINALS.index(word.lower()) + 1
    return _DIGITS.index(word) + 1 if word in _DIGITS else int(word)


def _could_be_box(numbers: tuple[float, ...]) -> bool:
    x0, y0, x1, y1 = numbers
    return 0 <= x0 < x1 <= _SCALE and 0 <= y0 < y1 <= _SCALE


def _are_fractions(numbers: Sequence[float]) -> bool:
    """Return whether numbers are from 0 to 1 and not whole: no box in thousandths is so small."""
    return all(0 <= each <= 1 for each in numbers) and not all(map(float.is_integer, numbers))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(each) for each in _NUMBERS.findall(text))


@dataclass(frozen=True, slots=True)
class _Place:
    """What a box is on: its size in pixels, and the index of the image or of the frame."""

    size: tuple[int, int]
    image: int = 0
    frame: int | None = None


@dataclass(slots=True)
class _Sorting:
    """Turns what was found into boxes and points, and counts what was wrong with them.

    Attributes:
        written: the answer.
        sizes: width and height of each image.
        frames: as in `marks`.
    """

    written: str
    sizes: Sequence[tuple[int, int]]
    frames: Frames | None = None
    boxes: list[Box] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    turned: int = 0
    clipped: int = 0
    outside: int = 0
    beyond: int = 0
    of_video: int = 0
    elsewhere: int = 0
    fractions: int = 0

    def take(self, found: _Found) -> None:
        """Add the next candidate, or count what is wrong with it."""
        if len(self.boxes) + len(self.points) == _MOST:
            self.beyond += 1
            return
        if not all(map(math.isfinite, found.numbers)):
            self.outside += 1
            return
        place = self._place(found)
        if place is None:
            self.of_video += 1
        elif len(found.numbers) == 4:
            self._take_box(found, place)
        else:
            self._take_point(found, place)

    def marks(self) -> Marks:
        """Return the boxes and points, with a sentence about what was wrong."""
        faults = [
            f"{number:,} {what}"
            for number, what in (
                (self.fractions, "taken for fractions from 0 to 1, not thousandths"),
                (self.turned, "turned round"),
                (self.clipped, "cut at the edge of the image"),
                (self.elsewhere, "of an image that is not there, and shown on the last"),
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

    def _place(self, found: _Found) -> _Place | None:
        """Return what it is on; ``None`` if that is a frame of which only the video is known."""
        line = self.written[self.written.rfind("\n", 0, found.at) + 1 : found.at][-_LONGEST:]
        image = self._image(found, line)
        if image is not None:
            return _Place(self.sizes[image], image)
        frame = self._frame(found, line)
        if self.frames is None or frame is None:
            return None
        return _Place(self.frames.size, frame=frame)

    def _frame(self, found: _Found, line: str) -> int | None:
        """Return the index of the frame that is named, or that is nearest to a time."""
        times = () if self.frames is None else self.frames.times
        if found.frame is not None:
            return found.frame if 0 <= found.frame < len(times) else None
        named = [float(each) for each in _SECONDS.findall(line)]
        time = found.time if found.time is not None or not named else named[-1]
        if time is None or not math.isfinite(time) or not times:
            return None
        return min(range(len(times)), key=lambda index: abs(times[index] - time))

    def _image(self, found: _Found, line: str) -> int | None:
        """Return the index of the image; ``None`` if it is a frame of a video."""
        last = len(self.sizes) - 1
        named = [_number(next(filter(None, each))) for each in _NAMED.findall(line)]
        if found.image is not None:
            named.append(found.image)
        if named and 1 <= named[-1] <= last + 1:
            return named[-1] - 1
        if self.frames is not None:
            return None
        self.elsewhere += bool(named)
        return last

    def _take_box(self, found: _Found, place: _Place) -> None:
        x0, y0, x1, y1 = found.numbers
        if x0 > x1 or y0 > y1:
            self.turned += 1
            x0, y0, x1, y1 = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
        edges = tuple(min(max(each, 0.0), _SCALE) for each in (x0, y0, x1, y1))
        width, height = place.size
        left, right = (edge * width / _SCALE for edge in edges[::2])
        upper, lower = (edge * height / _SCALE for edge in edges[1::2])
        if left >= right or upper >= lower:
            self.outside += 1
            return
        self.clipped += edges != (x0, y0, x1, y1)
        where = (place.image, place.frame)
        self.boxes.append(Box(found.label, left, upper, right, lower, *where))

    def _take_point(self, found: _Found, place: _Place) -> None:
        x, y = found.numbers
        if not (0 <= x <= _SCALE and 0 <= y <= _SCALE):
            self.outside += 1
            return
        width, height = place.size
        where = (place.image, place.frame)
        self.points.append(Point(found.label, x * width / _SCALE, y * height / _SCALE, *where))
