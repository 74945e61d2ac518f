"""What a number that the user sets must be: options, settings and arguments alike."""

from __future__ import annotations

import math
from collections.abc import Callable

from glm4v_magic.core.errors import OptionError

__all__ = ["RANGES", "require_in_range"]

_LARGEST_SEED = 2**63 - 1
_MOST_MEGAPIXELS = 178  # Pillow refuses more by itself

RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "max_tokens": ("a whole number of at least 1", lambda value: value >= 1),
    "temperature": ("a number of at least 0 (0 is greedy)", lambda value: value >= 0),
    "top_p": ("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "top_k": ("a whole number of at least 1", lambda value: value >= 1),
    "repetition_penalty": ("a number above 0", lambda value: value > 0),
    "batch_size": ("a whole number of at least 1", lambda value: value >= 1),
    "seed": ("a whole number from 0 to 2**63 - 1", lambda value: 0 <= value <= _LARGEST_SEED),
    "megapixels": (
        f"a number above 0 and at most {_MOST_MEGAPIXELS}",
        lambda value: 0 < value <= _MOST_MEGAPIXELS,
    ),
    "timeout": ("a number of seconds above 0", lambda value: value > 0),
    "download_seconds": ("a number above 0", lambda value: value > 0),
}
"""By name: what it must be, in words, and whether a number is that."""


def require_in_range(name: str, value: object, label: str | None = None) -> None:
    """Refuse what `RANGES` does not allow for `name`.

    Args:
        name: a key of `RANGES`.
        value: what was given.
        label: what the user calls it, where that is not `name`.

    Raises:
        OptionError: if it is no number, not whole where it must be, or out of range.
    """
    demand, holds = RANGES[name]
    kinds = (int,) if "whole" in demand else (int, float)
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if not (good and math.isfinite(value) and holds(value)):  # type: ignore[arg-type]  # a number
        raise OptionError(f"{label or name} is {value!r}, but must be {demand}.")
