"""Strip of thumbnails above an answer: the images, and the size in which the model sees them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from glm4v_magic.core.wording import counted, pixels, printable
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    import PIL.Image

    from glm4v_magic.images import SourcedImage

__all__ = ["Seen", "Thumbnail", "data_uri", "make_thumbnail", "strip_bundle"]

THUMBNAIL_SIDE = 160
"""Longest side of a thumbnail in pixels."""


class Seen(Protocol):
    """Image size and visual tokens: of a model (`EngineInfo`), or of an image (`SeenImage`)."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height in pixels that images are resized to; ``None`` if it differs."""

    @property
    def visual_tokens(self) -> int | None:
        """Visual tokens of an image; ``None`` if it depends on the image."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small copy of an image with its facts.

    Attributes:
        source: where the image came from: a path, URL or variable name.
        original_size: width and height in pixels, as found.
        seen_size: width and height that the model sees; ``None`` where it depends on the image.
        visual_tokens: visual tokens of the image; ``None`` if it depends on the image.
        data_uri: the small copy as a ``data:`` URI.
        size: its width and height in pixels.
    """

    source: str
    original_size: tuple[int, int]
    seen_size: tuple[int, int] | None
    visual_tokens: int | None
    data_uri: str
    size: tuple[int, int]

    @property
    def name(self) -> str:
        """Source and original size."""
        return f"{printable(self.source)}, {pixels(self.original_size)}"

    @property
    def caption(self) -> str:
        """One line: name, original size, what the model sees of it, visual tokens."""
        facts = [self.name]
        if self.seen_size is not None:
            facts.append(f"the model sees {pixels(self.seen_size)}")
        if self.visual_tokens is not None:
            facts.append(counted(self.visual_tokens, "visual token"))
        return " · ".join(facts)


def make_thumbnail(image: SourcedImage, seen: Seen) -> Thumbnail:
    """Return a thumbnail of `image`, with what the model will see of it."""
    small = image.image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return Thumbnail(
        source=image.source,
        original_size=image.original_size,
        seen_size=seen.image_size,
        visual_tokens=seen.visual_tokens,
        data_uri=data_uri(small.convert("RGB")),
        size=(small.width, small.height),
    )


def data_uri(image: PIL.Image.Image) -> str:
    """Encode as PNG or JPEG, whichever is smaller: drawings are PNG, photographs JPEG."""
    encoded = {}
    # A PNG of many colours is hardly smaller for being optimised, which takes longer than the rest.
    few_colours = image.getcolors(256) is not None
    for name, optimize in (("png", few_colours), ("jpeg", True)):
        buffer = io.BytesIO()
        image.save(buffer, format=name, optimize=optimize)
        encoded[name] = buffer.getvalue()
    name = min(encoded, key=lambda key: len(encoded[key]))
    return f"data:image/{name};base64,{base64.b64encode(encoded[name]).decode('ascii')}"


def strip_bundle(thumbnails: Sequence[Thumbnail]) -> MimeBundle:
    """Return all thumbnails in a row, in order; as text, one line each."""
    return {
        "text/plain": "\n".join(thumbnail.caption for thumbnail in thumbnails),
        "text/html": fill("image_strip", thumbnails=thumbnails),
    }
