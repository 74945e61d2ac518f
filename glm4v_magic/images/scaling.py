"""Pixel values of any type -> uint8 of 0 to 255."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm4v_magic.core.errors import ImageError
from glm4v_magic.images.messages import one_line

if TYPE_CHECKING:
    import numpy as np

__all__ = ["eight_bits", "eight_bits_of_floats", "eight_bits_of_integers"]


def eight_bits(array: np.ndarray, source: str) -> np.ndarray:
    """Return the values of any array as uint8 of 0 to 255."""
    import numpy as np

    match array.dtype.kind:
        case "b":
            return array.astype(np.uint8) * np.uint8(255)
        case "u" | "i":
            return eight_bits_of_integers(array, source)
        case "f":
            return eight_bits_of_floats(array, source, top=1)
    raise ImageError(
        f"{one_line(source)} holds values of type {array.dtype}.",
        "Images are uint8 of 0 to 255 or floats of 0 to 1.",
    )


def eight_bits_of_integers(array: np.ndarray, source: str) -> np.ndarray:
    """Keep 0 to 255; scale values that need 16 bits."""
    import numpy as np

    low, high = int(array.min()), int(array.max())
    if low >= 0 and high <= 255:
        return array.astype(np.uint8)
    if low >= 0 and array.dtype.kind == "u" and array.itemsize == 2:
        return np.rint(array / np.float32(257)).astype(np.uint8)
    raise ImageError(
        f"{one_line(source)} holds {array.dtype} values from {low} to {high}.",
        "Integers must be from 0 to 255, or uint16.",
    )


def eight_bits_of_floats(array: np.ndarray, source: str, *, top: int) -> np.ndarray:
    """Scale from 0 to `top`; excess below half an 8-bit step is rounding error and clipped."""
    import numpy as np

    shown = one_line(source)
    if not np.isfinite(array).all():
        raise ImageError(f"{shown} holds NaN or infinite values.", "Replace them: np.nan_to_num.")
    low, high = float(array.min()), float(array.max())
    slack = top / 510
    if low < -slack or high > top + slack:
        hint = f"Scale it to 0 to {top}."
        if top == 1 and low >= 0 and 127 < high <= 255:
            hint = "Divide by 255."
        elif top == 1 and low >= 0 and high > low:  # a depth map, a heat map, labels
            hint = f"Scale its range to 0 to 1: (values - {low:.4g}) / {high - low:.4g}."
        elif -10 <= low < 0 and high <= 10:
            hint = "If it was normalised, undo that: values * std + mean."
        raise ImageError(
            f"{shown} holds floats from {low:.4g} to {high:.4g}, not from 0 to {top}.", hint
        )
    values = array.astype(np.float32).clip(0, top)
    return np.rint(values * (255 / top)).astype(np.uint8)
