"""Arrays and tensors -> images."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.errors import ImageError
from glm4v_magic.core.image import Limits, SourcedImage
from glm4v_magic.images.decode import too_large, upright
from glm4v_magic.images.messages import one_line
from glm4v_magic.images.scaling import eight_bits

if TYPE_CHECKING:
    import numpy as np

__all__ = ["from_numpy", "from_torch", "has_shape_of_image"]


def from_torch(tensor: Any, source: str, limits: Limits) -> SourcedImage:
    """Read a tensor on any device; ambiguous shapes are taken as channels-first.

    Raises:
        ImageError: as `from_numpy`, or if it has no values that can be read, as on ``meta``.
    """
    tensor = _with_values(tensor, source).detach()
    try:
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        array = tensor.cpu().numpy()
    except Exception as error:  # of whatever traces or transforms it
        raise ImageError(
            f"{one_line(source)} is a tensor whose values cannot be read here.",
            "Give it as an array, as it is outside of what traces or transforms it.",
        ) from error
    return from_numpy(array, source, limits, channels_first=True)


def _with_values(tensor: Any, source: str) -> Any:
    """Return a tensor that NumPy can read, if it has values in one block.

    Raises:
        ImageError: if it has none, or they are stored in another way.
    """
    shown = one_line(source)
    if tensor.device.type == "meta":
        raise ImageError(
            f"{shown} is on the device meta, where tensors have no values.",
            "Make it on the CPU or a GPU.",
        )
    if tensor.is_nested:
        raise ImageError(
            f"{shown} is a nested tensor, of several.", f"Give its parts: {shown}.unbind()"
        )
    if not str(tensor.layout).endswith("strided"):  # dense, it may be far larger
        raise ImageError(
            f"{shown} is a sparse tensor.", f"Give all of its values: {shown}.to_dense()"
        )
    return tensor.dequantize() if tensor.is_quantized else tensor


def from_numpy(
    array: np.ndarray, source: str, limits: Limits, *, channels_first: bool = False
) -> SourcedImage:
    """Read an array; ambiguous shapes are channels-last unless `channels_first`.

    Raises:
        ImageError: if its shape or its values are not those of an image, or it is too large.
    """
    import numpy as np
    from PIL import Image

    if np.ma.is_masked(array):
        raise ImageError(
            f"{one_line(source)} has masked values, which are no pixels.",
            f"Say what they are: {one_line(source)}.filled(0).",
        )
    pixels = _channels_last(np.asarray(array), source, first_in_doubt=channels_first)
    if pixels.shape[0] * pixels.shape[1] > limits.megapixels * 1e6:
        raise too_large(source, pixels.shape[0] * pixels.shape[1], limits)
    scaled, note = eight_bits(pixels, source)
    read = upright(Image.fromarray(np.ascontiguousarray(scaled)), source, limits)
    return replace(read, source=f"{read.source}, {note}") if note else read


def has_shape_of_image(shape: tuple[int, ...]) -> bool:
    """Tell whether an array of this shape may be an image."""
    import numpy as np

    try:
        _channels_last(np.broadcast_to(np.zeros((), np.uint8), shape), "", first_in_doubt=False)
    except ImageError:
        return False
    return True


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
