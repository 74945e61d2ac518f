"""Arrays and tensors -> images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glm4v_magic.core.errors import ImageError, reason
from glm4v_magic.core.image import Limits, SourcedImage
from glm4v_magic.images.decode import too_large, upright
from glm4v_magic.images.messages import one_line
from glm4v_magic.images.scaling import eight_bits

if TYPE_CHECKING:
    import numpy as np

__all__ = ["from_numpy", "from_torch"]


def from_torch(tensor: Any, source: str, limits: Limits) -> SourcedImage:
    """Read a tensor on any device; ambiguous shapes are taken as channels-first.

    Raises:
        ImageError: as `from_numpy`, or if its values cannot be read, as on ``meta``.
    """
    tensor = tensor.detach()
    try:
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        array = tensor.cpu().numpy()
    except Exception as error:
        raise ImageError(f"{one_line(source)} has no values to read: {reason(error)}") from error
    return from_numpy(array, source, limits, channels_first=True)


def from_numpy(
    array: np.ndarray, source: str, limits: Limits, *, channels_first: bool = False
) -> SourcedImage:
    """Read an array; ambiguous shapes are channels-last unless `channels_first`.

    Raises:
        ImageError: if its shape or its values are not those of an image, or it is too large.
    """
    import numpy as np
    from PIL import Image

    pixels = _channels_last(np.asarray(array), source, first_in_doubt=channels_first)
    if pixels.shape[0] * pixels.shape[1] > limits.megapixels * 1e6:
        raise too_large(source, pixels.shape[0] * pixels.shape[1], limits)
    scaled = np.ascontiguousarray(eight_bits(pixels, source))
    return upright(Image.fromarray(scaled), source, limits)


def _channels_last(array: np.ndarray, source: str, *, first_in_doubt: bool) -> np.ndarray:
    """Return the array as height x width, or height x width x 3 or 4."""
    shown = f"{one_line(source)} has shape {array.shape}"
    if 0 in array.shape:
        raise ImageError(f"{shown}: it has no pixels.")
    if array.ndim == 4:
        if array.shape[0] != 1:
            raise ImageError(f"{shown}: {array.shape[0]} images.", f"Choose one: {source}[0].")
        array = array[0]
    if array.ndim == 2:
        return array
    last, first = (array.ndim == 3 and array.shape[axis] in (1, 3, 4) for axis in (-1, 0))
    if not last and not first:
        raise ImageError(
            f"{shown}, which is not the shape of an image.",
            "Images are height x width, or that with 1, 3 or 4 channels last or first.",
        )
    if first and (first_in_doubt or not last):
        array = array.transpose(1, 2, 0)
    return array[:, :, 0] if array.shape[2] == 1 else array
