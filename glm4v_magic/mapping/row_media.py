"""The images and the video of a row whose item is a video, or a list with one among its images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.errors import OptionError
from glm4v_magic.images.messages import one_line
from glm4v_magic.images.video import is_video

if TYPE_CHECKING:
    from glm4v_magic.core.image import SourcedImage
    from glm4v_magic.core.video import SourcedVideo

__all__ = ["media_of"]


def media_of(
    item: Any,
    name: str,
    read: Callable[[object, str], tuple[SourcedImage, ...]],
    read_video: Callable[[object, str], SourcedVideo],
) -> tuple[tuple[SourcedImage, ...], SourcedVideo, int]:
    """Return the images of an item, its video, and the number of images before that.

    Args:
        item: a video, or a list of images with one.
        name: what the item is called.
        read: function that turns images into `SourcedImage`s.
        read_video: function that turns a video into a `SourcedVideo`.

    Raises:
        OptionError: if there are several videos.
        ImageError: if any of it cannot be read.
    """
    if is_video(item):
        return (), read_video(item, name), 0
    places = [place for place, each in enumerate(item) if is_video(each)]
    if len(places) > 1:
        raise OptionError(
            f"{one_line(name)} has {len(places)} videos; a question has one.",
            "Put each into a row of its own.",
        )
    (place,) = places
    before = read(item[:place], name) if place else ()
    rest = item[place + 1 :]
    after = read(rest, f"{name}[{place + 1}:]") if rest else ()
    return before + after, read_video(item[place], f"{name}[{place}]"), len(before)
