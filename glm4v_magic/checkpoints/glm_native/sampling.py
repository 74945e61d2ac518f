"""Which frames of a video a model sees: transformers' rules without its need for torchvision.

Each rule is `sample_frames` of transformers' video processor of a model type. Frames per second
that the user asks for replace the rule's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from glm4v_magic.core.video import SourcedVideo

__all__ = ["RULES", "stamp"]

Rule = Callable[[SourcedVideo], list[int]]

_FRAMES = 2  # of a patch in time
_LONGEST = 300.0  # seconds that GLM-4.1V looks at with its full rate
_MOST_FRAMES = 640
_MOST_FRAMES_OF_GLM5 = 2048
_RATES = ((30, 3.0), (300, 1.0), (math.inf, 0.5))  # of GLM-4.6V, by seconds
_MOST_SECONDS = 2400.0


def _glm4v(video: SourcedVideo) -> list[int]:
    fps, last, duration = video.wanted_fps or 2.0, video.count - 1, video.duration
    if fps > video.fps:
        return list(range(video.count))
    if duration <= _LONGEST:
        number = max(math.floor(duration * fps), 1)
        return [min(last, math.ceil(i * video.fps / fps)) for i in range(number)]
    number = int(_LONGEST * fps)
    if number >= video.count:
        return list(range(video.count))
    step = duration / max(number - 1, 1)
    return [min(last, math.ceil(i * step * video.fps)) for i in range(number)]


def _glm46v(video: SourcedVideo) -> list[int]:
    seconds = min(video.duration, _MOST_SECONDS)
    rate = next(rate for longest, rate in _RATES if seconds <= longest) * _FRAMES
    rate = video.wanted_fps or rate
    number = min(int(seconds * rate), _MOST_FRAMES)
    if video.count < number:
        return _spaced(0, video.count - 1, number)
    found = _each(video, 1 / rate, int(video.duration))
    if len(found) < number:
        return _spaced(*((found[0], found[-1]) if found else (0, video.count - 1)), number)
    return _spaced(0, video.count - 1, number) if len(found) > number else found


def _glmga(video: SourcedVideo) -> list[int]:
    rate = video.wanted_fps or 2.0
    number = min(int(video.duration * rate), _MOST_FRAMES)
    if video.count < number:
        return [math.floor(i * video.count / number) for i in range(number)]
    found = _each(video, 1 / rate, video.duration - 1 / rate)
    if len(found) < number:
        return _spaced(*((found[0], found[-1]) if found else (0, video.count - 1)), number)
    return _spaced(0, video.count - 1, number) if len(found) > number else found


def _glm5_next(video: SourcedVideo) -> list[int]:
    rate = video.wanted_fps or 2.0
    number = min(int(video.duration * rate), _MOST_FRAMES_OF_GLM5)
    if video.count < number:
        return _spaced(0, video.count - 1, number)
    found = _each(video, 1 / rate, int(video.duration))
    if len(found) < number:
        return _spaced(*((found[0], found[-1]) if found else (0, video.count - 1)), number)
    return _spaced(0, video.count - 1, number) if len(found) > number else found


def _each(video: SourcedVideo, step: float, until: float) -> list[int]:
    """Return the first frame of each `step` seconds."""
    found, current = [], 0.0
    for index in range(video.count):
        if index * (1 / video.fps) >= current:
            current += step
            found.append(index)
            if current >= until:
                break
    return found


def _spaced(first: int, last: int, number: int) -> list[int]:
    import numpy as np

    return [int(each) for each in np.linspace(first, last, number, dtype=int)]


def _paired(indices: Sequence[int]) -> list[int]:
    """Return each index once, and the last one twice if their number would be odd."""
    once = list(dict.fromkeys(indices)) or [0]
    return once + once[-1:] if len(once) % _FRAMES else once


def _of(rule: Rule) -> Rule:
    def sampled(video: SourcedVideo) -> list[int]:
        return _paired(range(video.count) if video.is_sampled else rule(video))

    return sampled


RULES: dict[str, Rule] = {
    "glm4v": _of(_glm4v),
    "glm46v": _of(_glm46v),
    "glmga": _of(_glmga),
    "glm5_next": _of(_glm5_next),
}
"""Indices of the frames that a model sees, an even number of them, by the name of the rule."""


def stamp(rule: str, seconds: float) -> str:
    """Return the text that follows a frame in the prompt."""
    return str(int(seconds)) if rule == "glm4v" else f"{seconds:.1f} seconds"
