"""Values of options that are more than a number or a word: read from text, and checked."""

from __future__ import annotations

import ast
import math
import os
import re
import warnings
from collections.abc import Sequence
from typing import Any

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.option import has_type
from glm4v_magic.core.option_forms import (
    integer_in,
    number_in,
    pins_of,
    size_in,
    sizes_by_device,
    sizes_of,
)
from glm4v_magic.core.wording import narrowed, split_at_commas

__all__ = [
    "is_choices",
    "is_name",
    "is_pins",
    "is_replicas",
    "is_sizes",
    "is_unicode",
    "python_literal",
    "read_choices",
    "read_pins",
    "read_replicas",
    "read_sizes",
    "read_time",
]


_LIST = re.compile(r"[\[(]\s*['\"]")
_HELD = re.compile(r"\s*[\[({]")
"""How a dict or a list begins, as Python writes it."""


def is_choices(value: object) -> bool:
    """Return whether a value is at least two different texts without whitespace around them."""
    if not isinstance(value, list | tuple) or len(value) < 2:
        return False
    texts = [each for each in value if isinstance(each, str) and each and each == each.strip()]
    is_whole = all(each.isascii() or is_unicode(each) for each in texts)
    return len(set(texts)) == len(value) and is_whole


def python_literal(text: str) -> object:
    """Return the value of a literal of Python; ``None`` if a text is none."""
    try:
        with warnings.catch_warnings():  # a path may look like odd Python
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None


def read_choices(text: str) -> tuple[str, ...]:
    """Read ``yes,no``, also with the commas of Chinese keyboards, or a list as Python writes it."""
    if _LIST.match(text):
        value = python_literal(text)
        if value is None:
            raise OptionError(
                f"{text!r} is not a list of texts; a variable may hold what Python makes of it"
            )
        parts = value if isinstance(value, list | tuple) else (value,)
        if all(isinstance(part, str) for part in parts):
            return tuple(parts)
    return tuple(split_at_commas(text))


def is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates."""
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def read_time(text: str) -> float:
    """Read seconds, ``80`` or ``1:20`` or ``1:00:00``."""
    parts = text.split(":")
    try:
        numbers = [*map(integer_in, parts[:-1]), number_in(parts[-1])]
    except ValueError:
        raise OptionError(f"{text!r} is not a time, such as 80 or 1:20") from None
    if len(parts) > 3 or not all(0 <= number < math.inf for number in numbers):
        raise OptionError(f"{text!r} is not a time, such as 80 or 1:20")
    if any(number >= 60 for number in numbers[1:]):
        raise OptionError(f"{text!r} is not a time: behind a colon, minutes and seconds end at 59")
    seconds = 0.0
    for number in numbers:
        seconds = seconds * 60 + number
    return seconds


def is_name(value: object) -> bool:
    """Return whether a value names a file or folder."""
    return isinstance(value, str | os.PathLike) and bool(os.fspath(value).strip())


def is_sizes(value: object) -> bool:
    """Return whether a value is a size in GiB, one for each GPU, or sizes by device."""
    sizes: Sequence[Any] = value if isinstance(value, list | tuple) else (value,)
    if sizes and all(isinstance(each, tuple) and len(each) == 2 for each in sizes):
        is_twice = len({str(device) for device, _ in sizes}) < len(sizes)
        return not is_twice and all(
            (device == "cpu" or (has_type(device, "int") and device >= 0))
            and has_type(size, "float")
            and size >= 0
            for device, size in sizes
        )
    return bool(sizes) and all(has_type(size, "float") and size > 0 for size in sizes)


def read_sizes(text: str) -> object:
    """Read ``20``, ``20,20,10``, ``10GiB`` or ``0=10GiB,cpu=30GiB``, or accelerate's dict."""
    if _HELD.match(text) and (held := python_literal(text)) is not None:
        return sizes_of(held)
    parts = [part.strip() for part in narrowed(text).split(",")]
    if all("=" in part for part in parts):
        named = [part.partition("=") for part in parts]
        return sizes_by_device((device.strip(), size.strip()) for device, _, size in named)
    try:
        sizes = [number_in(part) if size_in(part) is None else sizes_of(part) for part in parts]
    except ValueError:
        raise OptionError(f"{text!r} is not a size in GiB, or sizes such as 20,20,10") from None
    return sizes[0] if len(sizes) == 1 else tuple(sizes)


def is_pins(value: object) -> bool:
    """Return whether a value is pairs of a unit and the index of its GPU."""
    return isinstance(value, tuple) and all(map(_is_pin, value))


def _is_pin(pair: object) -> bool:
    if not isinstance(pair, tuple) or len(pair) != 2:
        return False
    unit, gpu = pair
    return isinstance(unit, str) and bool(unit.strip()) and has_type(gpu, "int") and gpu >= 0


def read_pins(text: str) -> object:
    """Read ``vision=0,layer.7=1``, or a dict as Python writes it."""
    if _HELD.match(text) and (held := python_literal(text)) is not None:
        return pins_of(held)
    pins = []
    for part in text.split(","):
        unit, _, index = part.partition("=")
        index = index.strip().removeprefix("cuda:")
        if not unit.strip() or not (index.isascii() and index.isdigit()):
            raise OptionError(f"{part!r} is not a unit and its GPU, such as vision=0")
        pins.append((unit.strip(), int(index)))
    return pins_of(pins)


def is_replicas(value: object) -> bool:
    """Return whether a value is a number of replicas, or max."""
    return value == "max" or (has_type(value, "int") and int(str(value)) >= 1)


def read_replicas(text: str) -> int | str:
    """Read ``2`` or ``max``."""
    return int(text) if text.isascii() and text.isdigit() else text
