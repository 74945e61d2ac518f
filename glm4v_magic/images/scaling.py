"""Pixel values of any type -> uint8 of 0 to 255."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from glm4v_magic.core.errors import ImageError
from glm4v_magic.images.messages import one_line

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Scale", "eight_bits", "scale_of_floats", "scale_of_integers"]

Scale: TypeAlias = "Callable[[np.ndarray], np.ndarray]"
"""Makes uint8 of 0 to 255 out of some of the values."""

_AT_ONCE = 2**22  # values; what scaling them takes is then small
_DEPTHS = (8, 10, 12, 14, 16)
"""Bits of the values of cameras and scanners, which are kept in 16."""


def eight_bits(array: np.ndarray, source: str) -> tuple[np.ndarray, str]:
    """Return the values of any array as uint8 of 0 to 255, and how they were read if in doubt.

    Raises:
        ImageError: if they are out of range, or not numbers.
    """
    import numpy as np

    if array.dtype == np.uint8:
        return array, ""
    scale, note = _scale_of(array, source)
    scaled = np.empty(array.shape, np.uint8)
    rows = _rows_at_once(array)
    for top in range(0, len(array), rows):
        scaled[top : top + rows] = scale(array[top : top + rows])
    return scaled, note


def _rows_at_once(array: np.ndarray) -> int:
    return max(1, _AT_ONCE * len(array) // array.size)


def _scale_of(array: np.ndarray, source: str) -> tuple[Scale, str]:
    import numpy as np

    match array.dtype.kind:
        case "b":
            return lambda values: values.astype(np.uint8) * np.uint8(255), ""
        case "u" | "i":
            return scale_of_integers(int(array.min()), int(array.max()), array.dtype, source)
        case "f":
            return scale_of_floats(_parts(array), source, top=1), ""
    raise ImageError(
        f"{one_line(source)} holds values of type {array.dtype}.",
        "Images are uint8 of 0 to 255 or floats of 0 to 1.",
    )


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
    rows = _rows_at_once(array)
    return (array[top : top + rows] for top in range(0, len(array), rows))


def _depth_of(high: int) -> int:
    """Return the least usual depth, in bits, of values whose largest is `high`, at most 65535."""
    return next(bits for bits in _DEPTHS if high < 2**bits)


def scale_of_integers(low: int, high: int, dtype: np.dtype, source: str) -> tuple[Scale, str]:
    """Return a function that keeps 0 to 255 and scales deeper values, and the depth if in doubt.

    Values of 16 bits are taken to have the least usual depth that holds them: read as 16 bits, an
    image of 12 would be near black.

    Raises:
        ImageError: if `low` or `high` is out of range.
    """
    import numpy as np

    is_16_bit = dtype.kind == "u" and dtype.itemsize == 2
    if low >= 0 and high <= 255 and not (is_16_bit and high):
        return lambda values: values.astype(np.uint8), ""
    if low >= 0 and is_16_bit:
        bits = _depth_of(high)
        step = np.float32((2**bits - 1) / 255)
        note = "" if bits == 16 else f"read as {bits}-bit"
        return lambda values: np.rint(values / step).astype(np.uint8), note
    raise ImageError(
        f"{one_line(source)} holds {dtype} values from {low} to {high}.",
        "Integers must be from 0 to 255, or uint16."
        + (f" Or scale their range to 0 to 1: {_to_one(low, high)}." if high > low else ""),
    )


def scale_of_floats(parts: Iterable[np.ndarray], source: str, *, top: int) -> Scale:
    """Return a function that scales from 0 to `top`; excess below half an 8-bit step is clipped.

    Args:
        parts: all values, which are looked through once.
        source: what the user calls them.
        top: the value that is white.

    Raises:
        ImageError: if a value is not finite, or out of range.
    """
    import numpy as np

    shown = one_line(source)
    low, high = np.inf, -np.inf
    for part in parts:
        if not np.isfinite(part).all():
            raise ImageError(
                f"{shown} holds NaN or infinite values.", "Replace them: np.nan_to_num."
            )
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    slack = top / 510
    if low < -slack or high > top + slack:
        hint = f"Scale it to 0 to {top}."
        if top == 1 and low >= 0 and 127 < high <= 255:
            hint = "Divide by 255."
        elif top == 1 and low >= 0 and high > low:  # a depth map, a heat map, labels
            hint = f"Scale its range to 0 to 1: {_to_one(low, high)}."
        elif -10 <= low < 0 and high <= 10:
            hint = "If it was normalised, undo that: values * std + mean."
        raise ImageError(
            f"{shown} holds floats from {low:.4g} to {high:.4g}, not from 0 to {top}.", hint
        )
    return lambda values: np.rint(
        values.astype(np.float32).clip(0, top) * np.float32(255 / top)
    ).astype(np.uint8)


def _to_one(low: float, high: float) -> str:
    """Return what scales values to 0 to 1, with as few digits as do."""
    size = high - low
    forms = (f"{low:.{digits}g}" for digits in (4, 6, 9, 12))
    least = next((form for form in forms if abs(float(form) - low) < size / 2000), repr(low))
    if isinstance(low, int) and least.lstrip("-").isdigit():
        least += ".0"  # of integers of few bits a difference may be too large
    return f"(values - {least}) / {size:.4g}"
