"""What a model sees of the images that a workload is planned for.

Models that keep the proportions of images see each with as many visual tokens as its size calls
for, up to a limit of the checkpoint's own. ``image_size`` lowers the limit, and so does a context
that could not hold the images otherwise: a load caps what is seen in the same place, so that no
image takes more than was planned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.model_shape import ModelShape, Workload

__all__ = ["SHARE", "PlannedImage", "image_size_of", "planned_image"]

SHARE = Fraction(3, 4)
"""Of a context, for its images; the rest is for text and answer."""


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """The largest image of a workload; counts as in `ModelShape`."""

    patches: int
    visual_tokens: int
    positions: int


def planned_image(shape: ModelShape, workload: Workload) -> PlannedImage:
    """Return the largest image that the model sees under `workload`.

    Raises:
        OptionError: if the image size does not suit the model.
    """
    size = image_size_of(shape, workload)
    if size is None or shape.token_side is None:
        return PlannedImage(shape.patches, shape.visual_tokens, shape.image_positions)
    fewer = max(0, shape.image_tokens - size**2 // shape.token_side**2)
    return PlannedImage(
        shape.patches - fewer * shape.patches_per_token,
        shape.visual_tokens - fewer,
        shape.image_positions - fewer,
    )


def image_size_of(shape: ModelShape, workload: Workload) -> int | None:
    """Return the side in pixels of the largest square image that is seen.

    ``None`` for a model that resizes all images to one size. What is returned may be the
    `Workload.image_size` of a plan: it is returned again, whatever the context.

    Raises:
        OptionError: as in `planned_image`.
    """
    asked, side = workload.image_size, shape.token_side
    if side is None:
        if asked is not None:
            raise OptionError(
                f"image_size has no meaning for {shape.name}, which sees every image in the same "
                "size.",
                "Leave it out.",
                option="image_size",
            )
        return None
    least = _side(shape.least_image_tokens, side)
    if asked is not None and asked < least:
        raise OptionError(
            f"image_size is {asked}, but {shape.name} sees no image smaller than {least} x {least} "
            "pixels.",
            "Give a larger one.",
            option="image_size",
        )
    return asked or max(least, min(_side(shape.image_tokens, side), _of_context(shape, workload)))


def _side(tokens: int, token_side: int) -> int:
    """Return the shortest side, in pixels, of a square with room for so many visual tokens."""
    return math.isqrt(tokens * token_side**2 - 1) + 1


def _of_context(shape: ModelShape, workload: Workload) -> int:
    """Return the longest side, in pixels, of images that leave room for text in the context."""
    context = shape.max_context if workload.context is None else workload.context
    beside = shape.image_positions - shape.image_tokens
    tokens = int(context * SHARE) // max(workload.images, 1) - beside
    return math.isqrt(max(tokens, 0) * (shape.token_side or 1) ** 2)
