"""Images and videos of a prompt, in the order in which the model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from glm4v_magic.core.image import SeenImage, SourcedImage
from glm4v_magic.core.video import SourcedVideo
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.image import Thumbnail, make_thumbnail, strip_bundle
from glm4v_magic.notebook.render.answers.video import video_bundle

if TYPE_CHECKING:
    from glm4v_magic.core.video import Media

__all__ = ["media_bundles"]


def media_bundles(
    media: Sequence[Media], seen: Sequence[SeenImage]
) -> tuple[list[MimeBundle], list[Thumbnail]]:
    """Return a strip for each run of images or videos; images at the end are returned apart.

    Args:
        media: images and videos, in order.
        seen: what the model sees of each image.
    """
    bundles: list[MimeBundle] = []
    following, latest = iter(seen), list[Thumbnail]()
    for is_video, run in groupby(media, lambda each: isinstance(each, SourcedVideo)):
        if latest:
            bundles.append(strip_bundle(latest))
            latest = []
        if is_video:
            bundles.append(video_bundle([each for each in run if isinstance(each, SourcedVideo)]))
        else:
            images = [each for each in run if isinstance(each, SourcedImage)]
            latest = [make_thumbnail(image, next(following)) for image in images]
    return bundles, latest
