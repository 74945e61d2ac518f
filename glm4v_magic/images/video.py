"""Clips, lists of frames and arrays -> `SourcedVideo`. Clips need PyAV."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from glm4v_magic.core.errors import ImageError, OptionError, reason
from glm4v_magic.core.image import DEFAULT_LIMITS, Limits
from glm4v_magic.core.video import SourcedVideo
from glm4v_magic.core.wording import clock
from glm4v_magic.images.decode import too_large
from glm4v_magic.images.files import (
    current_folder,
    exists,
    matches,
    path_of,
    refuse_no_file,
    suffixes_in,
)
from glm4v_magic.images.formats import CLIP_FORMATS, CLIPS, HEAD, ClipFormat, clip_format
from glm4v_magic.images.holders import content_of, file_in, head_of_file_in
from glm4v_magic.images.messages import one_line
from glm4v_magic.images.missing import missing
from glm4v_magic.images.uris import data_of, is_uri
from glm4v_magic.images.values import to_image
from glm4v_magic.outside import is_folder, is_shut

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "from_data",
    "has_video",
    "is_clip",
    "is_video",
    "may_be_frames",
    "to_video",
]

_Part: TypeAlias = tuple[float | None, float | None, float | None]
"""Frames per second, and the seconds to begin and to end at."""
_ALL: _Part = (None, None, None)

_URI = "data:video/"
_KINDS = f"Clips are {', '.join(name for each in CLIP_FORMATS for name in each.media_types)}."

MISSING = "Reading a clip needs the package av, which is not installed."
INSTALL = "Install it with: pip install av"
_MOST_FRAMES = 2000  # of a list or an array
_SEEK_SECONDS = 10  # what is further ahead is not decoded on the way


def is_clip(word: str) -> bool:
    """Tell whether a word is the name of a clip."""
    return word.lower().endswith(CLIPS)


def is_video(value: object) -> bool:
    """Tell whether a value is the path or the content of a clip, several frames, or a video."""
    if isinstance(value, str | os.PathLike):
        name = os.fsdecode(value)
        return is_clip(name) or name[: len(_URI)].lower() == _URI
    return isinstance(value, SourcedVideo) or _has_frames(value) or _begins_like_a_clip(value)


def _begins_like_a_clip(value: Any) -> bool:
    """Tell it of bytes, of an array or tensor that holds those of a file, and of open files."""
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            head = bytes(value[:HEAD])
        except ValueError:  # of a view that was released
            head = b""
    elif isinstance(value, io.BytesIO):
        head = b"" if value.closed else value.getvalue()[:HEAD]  # not a copy, unlike its buffer
    elif isinstance(value, io.IOBase):
        name = getattr(value, "name", None)
        return isinstance(name, str | bytes) and is_clip(os.fsdecode(name))
    else:
        head = head_of_file_in(value)
    return clip_format(head) is not None


def has_video(value: object) -> bool:
    """Tell whether a value is a video, or a list that has one."""
    parts = value if isinstance(value, list | tuple) else [value]
    return any(map(is_video, parts))


def _has_frames(value: Any) -> bool:
    """Tell whether a value is an array or tensor of several frames."""
    return _is_array(value) and len(value) > 1


def may_be_frames(value: Any) -> bool:
    """Tell whether a value is a video where one is meant: a list of several images, or of none."""
    is_list = isinstance(value, list | tuple)
    return (is_list or _is_array(value)) and len(value) != 1


def to_video(
    value: object,
    source: str,
    *,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    base: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> SourcedVideo:
    """Return `value` as a video; of a clip one frame is decoded, which tells how it is rotated.

    Args:
        value: path of a clip, or a pattern that one clip matches; the bytes of its file, as they
            are, in a ``data:`` URI or in an array or tensor of uint8 with one axis; a binary file
            object; a part of a message to a chat model; or frames: a list of anything that is an
            image, or an array or tensor of frames x height x width with 1, 3 or 4 channels last.
        source: what the user calls the value. A path is its own source.
        fps: frames per second to look at; by default the model's own choice. Frames that are given
            are all looked at, and were taken at this rate: 1 by default.
        start: seconds of a clip to begin at.
        end: seconds to end at.
        base: folder that relative paths start from; the current one by default.
        limits: limits on the size of a frame.

    Raises:
        ImageError: if it is not a video, is damaged, has no frames, or ends before `start`.
        OptionError: if `end` is not after `start`, or either is given for frames.
    """
    if isinstance(value, SourcedVideo):
        return value
    if start is not None and end is not None and end <= start:
        raise OptionError(
            f"The video is to be seen from {clock(start)} to {clock(end)}, which is no time at all."
        )
    part, value = (fps, start, end), _in_part(value)
    if isinstance(value, str | os.PathLike):
        path = os.fsdecode(value)
        if path[:5].lower() == "data:":
            return from_data(path, source, limits, part)
        if is_uri(path):
            raise ImageError(
                f"{one_line(path)} is an address, and clips are not downloaded.",
                "Download it, and give the path of the file.",
            )
        return _clip(path, current_folder() if base is None else base, part, limits)
    content = _content(value, source)
    if content is not None:
        return _of_bytes(content, source, part, limits)
    if start is not None or end is not None:
        raise OptionError("Only a clip has a beginning and an end; of frames, give those you mean.")
    return _of_frames(value, source, fps or 1.0, limits)


def _in_part(value: object) -> object:
    """Return the clip of a part of a message to a chat model; any other value as it is.

    OpenAI's servers take its URL in ``video_url``, in a mapping of its own or not; transformers
    takes a path or frames.
    """
    if not isinstance(value, Mapping) or value.get("type") not in ("video", "video_url"):
        return value
    found = [value[key] for key in ("video_url", "video", "url", "path") if key in value]
    if len(found) != 1:
        return value
    (where,) = found
    return where.get("url", where) if isinstance(where, Mapping) else where


def _content(value: object, source: str) -> bytes | None:
    """Return the bytes of a file that a value holds; ``None`` of any other value."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    content = content_of(value, source)
    return file_in(value) if content is None else content


def from_data(
    uri: str, source: str, limits: Limits = DEFAULT_LIMITS, part: _Part = _ALL
) -> SourcedVideo:
    """Return the clip in a ``data:`` URI, which stays in memory.

    It is read as what the URI says it is and nothing else: a playlist would name other files.

    Raises:
        ImageError: as `to_video`, or if the URI is malformed or not of a clip.
    """
    media_type, content = data_of(uri, "video/mp4")
    for each in CLIP_FORMATS:
        if media_type in each.media_types:
            return _in_memory(content, source, each, part, limits)
    raise ImageError(
        f"{one_line(source)} is {one_line(media_type) or 'of no media type'}, not a clip.",
        _KINDS,
    )


def _of_bytes(content: bytes, source: str, part: _Part, limits: Limits) -> SourcedVideo:
    """Return the clip in the bytes of a file, which tell by their beginning what they are.

    They are read as that and nothing else; see `from_data`.
    """
    found = clip_format(content)
    if found is None:
        raise ImageError(
            f"{one_line(source)} holds {len(content):,} bytes, but not those of a clip.", _KINDS
        )
    return _in_memory(content, source, found, part, limits)


def _in_memory(
    content: bytes, source: str, kind: ClipFormat, part: _Part, limits: Limits
) -> SourcedVideo:
    clip = _Clip(io.BytesIO(content), one_line(source), kind.name)
    state = f"{hashlib.sha256(content).hexdigest()} {len(content)}"
    return _of_clip(clip, source, state, part, limits)


def _of_frames(value: object, source: str, fps: float, limits: Limits) -> SourcedVideo:
    frames = _as_list(value, source)
    if len(frames) == 0:
        raise ImageError(f"{one_line(source)} holds no frames.")
    if len(frames) > _MOST_FRAMES:
        raise ImageError(
            f"{one_line(source)} has {len(frames):,} frames; at most {_MOST_FRAMES:,} are taken.",
            "Choose some of them.",
        )
    first = to_image(frames[0], f"{source}[0]", limits=limits).image

    def read(indices: Sequence[int], size: tuple[int, int]) -> Iterator[Image.Image]:
        for index in indices:
            yield _resized(to_image(frames[index], f"{source}[{index}]", limits=limits).image, size)

    return SourcedVideo(source, first.size, len(frames), fps, read, 0.0, None, True)


def _is_array(value: Any) -> bool:
    """Tell whether a value is an array or tensor of four axes; neither library is imported."""
    for module, name in (("numpy", "ndarray"), ("torch", "Tensor")):
        cls = getattr(sys.modules.get(module), name, None)
        if cls is not None and isinstance(value, cls):
            return len(value.shape) == 4
    return False


def _as_list(value: Any, source: str) -> Sequence[Any]:
    if isinstance(value, list | tuple):
        return value
    if _is_array(value):
        frames: Sequence[Any] = value
        return frames
    raise ImageError(
        f"{one_line(source)} is not a video.",
        "Give the path of a clip, a list of frames, or an array of frames x height x width x "
        "channels.",
    )


def _clip(name: str, base: Path, part: _Part, limits: Limits) -> SourcedVideo:
    name = name if exists(name, base) else _matching(name, base)
    path = path_of(name, base)
    if is_folder(path) and not is_shut(path):
        kinds = suffixes_in(path, CLIPS)
        if kinds:
            raise ImageError(f"{one_line(name)} is a folder. {kinds}", "Name one of them.")
        raise ImageError(f"{one_line(name)} is a folder. It holds no clips.")
    refuse_no_file(path, name, "a clip")
    clip = _Clip(os.fspath(path), one_line(name))
    return _of_clip(clip, name, _state(path), part, limits)


def _matching(pattern: str, base: Path) -> str:
    """Return the one clip that matches a pattern."""
    found = matches(pattern, base)
    clips = [each for each in found if is_clip(each)] or found
    if not clips:
        raise missing(pattern, base, {})
    if len(clips) > 1:
        raise ImageError(
            f"{one_line(pattern)}: {len(clips):,} files match, of which {one_line(clips[0])} is "
            "the first; a question has one video.",
            "Name one of them.",
        )
    return clips[0]


@dataclass(frozen=True, slots=True)
class _Clip:
    """What a clip is read from, what it is called, and its container format if that is known."""

    file: str | io.BytesIO
    shown: str
    container: str | None = None


def _of_clip(
    clip: _Clip,
    name: str,
    state: str,
    part: _Part,
    limits: Limits,
) -> SourcedVideo:
    fps, start, end = part
    shown = clip.shown
    with _opened(clip) as (container, stream):
        size = (stream.codec_context.width, stream.codec_context.height)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        total = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
        if not stream.frames:  # counting went through all of it
            container.seek(0)
        if total and rate and all(size):
            size = _upright(size, _rotation(next(container.decode(stream), None)))
    if not (total and rate and all(size)):
        raise ImageError(f"{shown} has no frames.")
    if size[0] * size[1] > limits.megapixels * 1e6:
        raise too_large(name, size[0] * size[1], limits)
    first = math.ceil((start or 0.0) * rate)
    last = total if end is None else min(total, math.ceil(end * rate))
    if start is not None and start * rate >= total:
        raise ImageError(
            f"{shown} ends at {clock(total / rate)}, and is to be seen from {clock(start)} on."
        )
    first = min(first, total - 1)  # the last frame is seen until the clip ends

    def read(indices: Sequence[int], size: tuple[int, int]) -> Iterator[Image.Image]:
        return _decoded(clip, [first + index for index in indices], rate, size)

    return SourcedVideo(
        name, size, max(1, last - first), rate, read, first / rate, fps, state=state
    )


def _state(path: Path) -> str:
    found = path.stat()
    return f"{path.resolve()} {found.st_size} {found.st_mtime_ns}"


@contextmanager
def _opened(clip: _Clip) -> Iterator[tuple[Any, Any]]:
    """Open a clip; yields its container and its first stream of video.

    Raises:
        ImageError: if PyAV is missing, or the clip cannot be read.
    """
    if importlib.util.find_spec("av") is None:
        raise ImageError(MISSING, INSTALL)
    import av

    if isinstance(clip.file, io.BytesIO):
        clip.file.seek(0)
    try:
        with av.open(clip.file, format=clip.container) as container:
            if not container.streams.video:
                raise ImageError(f"{clip.shown} holds no video.")
            yield container, container.streams.video[0]
    except (av.error.FFmpegError, OSError) as error:
        why = getattr(error, "strerror", None) or reason(error)  # without its number and the path
        raise ImageError(
            f"{clip.shown} is damaged or no video: {one_line(why)}.", "Download or write it again."
        ) from error


def _decoded(
    clip: _Clip, indices: Sequence[int], rate: float, size: tuple[int, int]
) -> Iterator[Image.Image]:
    """Yield frames one by one; a clip that ends early shows its last frame."""
    with _opened(clip) as (container, stream):
        stream.thread_type = "AUTO"
        begin = stream.start_time or 0
        frames, frame, at = container.decode(stream), None, -1
        for index in indices:
            if index - at > _SEEK_SECONDS * rate:
                container.seek(begin + int(index / rate / stream.time_base), stream=stream)
                frames = container.decode(stream)
            while at < index:
                following = next(frames, None)
                if following is None:
                    break
                frame = following
                if frame.pts is None:
                    at += 1
                else:
                    at = round(float((frame.pts - begin) * stream.time_base) * rate)
            if frame is None:
                raise ImageError(f"{clip.shown} is damaged: no frame of it can be decoded.")
            yield _resized(_turned(frame.to_image(), _rotation(frame)), size)


def _rotation(frame: Any) -> int:
    """Return by how many quarters a frame is to be turned counterclockwise, from 0 to 3."""
    return 0 if frame is None else round(frame.rotation / 90) % 4


def _upright(size: tuple[int, int], quarters: int) -> tuple[int, int]:
    return (size[1], size[0]) if quarters % 2 else size


def _turned(image: Image.Image, quarters: int) -> Image.Image:
    from PIL import Image

    turn = Image.Transpose
    turns = {1: turn.ROTATE_90, 2: turn.ROTATE_180, 3: turn.ROTATE_270}
    return image.transpose(turns[quarters]) if quarters else image


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    from PIL import Image

    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
