"""`SourcedVideo`, the form that every video takes: frames that are decoded when a model asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from glm4v_magic.core.errors import ImageError
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.wording import clock

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Frame", "Media", "Read", "SourcedVideo"]

Read = Callable[[Sequence[int], tuple[int, int]], "Iterator[Image.Image]"]
"""Yields the frames at ascending indices, each resized to a width and height in pixels."""


def _left_behind(_indices: Sequence[int], _size: tuple[int, int]) -> Iterator[Image.Image]:
    raise ImageError("Other frames of a video that was pickled are not with it.", "Read it again.")


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that a model sees.

    Attributes:
        image: the frame, in the size that the model sees.
        time: seconds from the beginning of the clip.
    """

    image: SourcedImage
    time: float


@dataclass(frozen=True)
class SourcedVideo:
    """A part of a clip, or frames, and where they came from.

    Pickling keeps only the frames that a model was shown last.

    Attributes:
        source: what the user wrote: a path or the name of a variable.
        size: width and height of a frame in pixels.
        count: number of frames.
        fps: frames per second.
        read: decodes frames; nothing is decoded until it is called.
        start: seconds of the clip before the first frame.
        wanted_fps: frames per second to look at; ``None`` for the model's own choice.
        is_sampled: whether the frames are those to look at, chosen by whoever gave them.
        times: seconds from the beginning of the clip to each frame; ``None`` if they follow from
            `fps`.
        state: size and modification time of the clip's file, which identify it beside its name.
    """

    source: str
    size: tuple[int, int]
    count: int
    fps: float
    read: Read = field(repr=False, compare=False)
    start: float = 0.0
    wanted_fps: float | None = None
    is_sampled: bool = False
    times: tuple[float, ...] | None = None
    state: str = ""
    _kept: dict[tuple[tuple[int, ...], tuple[int, int]], tuple[Frame, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of_seen(
        cls, source: str, size: tuple[int, int], fps: float, frames: Sequence[Frame]
    ) -> SourcedVideo:
        """Return a video of which only the frames are left that a model saw.

        Args:
            source: as in the class.
            size: as in the class, of the clip.
            fps: as in the class.
            frames: at least one, none twice.
        """

        def read(indices: Sequence[int], seen_size: tuple[int, int]) -> Iterator[Image.Image]:
            for index in indices:
                image = frames[index].image.image
                yield image if image.size == seen_size else image.resize(seen_size)

        times = tuple(frame.time for frame in frames)
        video = cls(source, size, len(frames), fps, read, times[0], None, True, times)
        video._kept[tuple(range(len(frames))), frames[0].image.image.size] = tuple(frames)
        return video

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "read": _left_behind}

    def __copy__(self) -> SourcedVideo:
        return self

    def __deepcopy__(self, _: object) -> SourcedVideo:
        return self

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return self.count / self.fps

    @property
    def seen(self) -> tuple[Frame, ...]:
        """Frames that a model was shown last, each once; empty before.

        The last one may have been shown twice, to make a pair.
        """
        for (indices, _), frames in self._kept.items():  # there is one at most
            return tuple(dict(zip(indices, frames, strict=True)).values())
        return ()

    def time(self, index: int) -> float:
        """Return the seconds from the beginning of the clip to a frame."""
        return self.start + index / self.fps if self.times is None else self.times[index]

    def frames(self, indices: Sequence[int], size: tuple[int, int]) -> tuple[Frame, ...]:
        """Return frames, decoded one by one and kept in the size that a model sees.

        Args:
            indices: indices of the frames, in ascending order; one may repeat.
            size: width and height in pixels.

        Raises:
            ImageError: if the clip is damaged.
        """
        key = (tuple(indices), size)
        if key not in self._kept:
            once = sorted(set(indices))
            images = dict(zip(once, self.read(once, size), strict=True))
            found = tuple(self._frame(index, images[index]) for index in indices)
            self._kept.clear()
            self._kept[key] = found
        return self._kept[key]

    def _frame(self, index: int, image: Image.Image) -> Frame:
        time = self.time(index)
        return Frame(SourcedImage(image, f"{self.source} at {clock(time)}", self.size), time)


Media: TypeAlias = SourcedImage | SourcedVideo
"""What a prompt shows."""
