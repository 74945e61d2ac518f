"""Strip of the frames that a model sees of a video, each with its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glm4v_magic.core.wording import clock, counted, pixels, printable
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.image import data_uri
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.core.video import Frame, SourcedVideo

__all__ = ["MOST_SHOWN", "video_bundle"]

MOST_SHOWN = 32
"""Maximum number of frames in a strip; of more, this many are shown, evenly spaced."""

_SIDE = 96  # longest side of a small frame in pixels


@dataclass(frozen=True, slots=True)
class _SmallFrame:
    time: str
    data_uri: str
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Strip:
    name: str
    caption: str
    frames: tuple[_SmallFrame, ...]


def video_bundle(videos: Sequence[SourcedVideo]) -> MimeBundle:
    """Return the frames of each video, with their times; as text, two lines each."""
    strips = [_strip(video) for video in videos]
    lines = [
        line
        for strip in strips
        for line in (strip.caption, f"  at {', '.join(frame.time for frame in strip.frames)}")
    ]
    return {"text/plain": "\n".join(lines), "text/html": fill("video_strip", videos=strips)}


def _strip(video: SourcedVideo) -> _Strip:
    seen = video.seen
    name = printable(video.source)
    facts = [f"{name}, {pixels(video.size)}"]
    if seen:
        size = pixels(seen[0].image.image.size)
        facts.append(f"the model sees {counted(len(seen), 'frame')} of {size}")
        facts.append(f"from {clock(seen[0].time)} to {clock(seen[-1].time)}")
    if len(seen) > MOST_SHOWN:
        facts.append(f"{MOST_SHOWN} of them are shown")
    return _Strip(name, " · ".join(facts), tuple(map(_small, _evenly(seen))))


def _evenly(frames: Sequence[Frame]) -> Sequence[Frame]:
    if len(frames) <= MOST_SHOWN:
        return frames
    last = len(frames) - 1
    return [frames[round(i * last / (MOST_SHOWN - 1))] for i in range(MOST_SHOWN)]


def _small(frame: Frame) -> _SmallFrame:
    image = frame.image.image.copy()
    image.thumbnail((_SIDE, _SIDE))
    return _SmallFrame(clock(frame.time), data_uri(image), image.size)
