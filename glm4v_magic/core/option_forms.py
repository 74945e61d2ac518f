"""Options in the forms that people know from torch and accelerate, and their form here.

A form that is unknown is returned as it is: the option's own check says what it must be.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

from glm4v_magic.core.errors import OptionError

__all__ = [
    "dtype_of",
    "integer_in",
    "number_in",
    "pins_of",
    "size_in",
    "sizes_by_device",
    "sizes_of",
    "sizes_text",
]

_GIB = 2**30
_LEAST = 2**20  # bytes; no smaller size of a GPU is meant
_MOST = 2**60
_DTYPES = {
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
}
_DEVICE = re.compile(r"(?:cuda:)?([0-9]{1,5})", re.ASCII)
_APPLE = ("mps", "mps:0")  # the only GPU of its machine, as accelerate names it


def dtype_of(value: object) -> object:
    """Return the name of a dtype: of ``torch.float16``, ``"torch.float16"``, ``"fp16"``.

    ``"auto"`` is the published dtype, as ``None`` is.
    """
    if not isinstance(value, str) and type(value).__module__ != "torch":
        return value
    name = str(value).removeprefix("torch.")
    return None if name == "auto" else _DTYPES.get(name, name)


def integer_in(text: str) -> int:
    """Return the whole number that a text is, in the digits 0 to 9 alone.

    Raises:
        ValueError: if it is none.
    """
    return int(_of_plain_digits(text))


def number_in(text: str) -> float:
    """Return the number that a text is; digits as for `integer_in`.

    Raises:
        ValueError: if it is none.
    """
    return float(_of_plain_digits(text))


def _of_plain_digits(text: str) -> str:
    # Python takes full-width digits, and 8_192, which nothing else here does.
    if not text.isascii() or "_" in text:
        raise ValueError(f"{text!r} is not a number")
    return text


def sizes_of(value: object) -> object:
    """Return sizes in GiB: a number, a tuple for all GPUs, or a tuple of (GPU or ``cpu``, size).

    Args:
        value: a number of GiB, ``"10GiB"``, a list of these, or accelerate's dict, whose whole
            numbers are bytes.

    Raises:
        OptionError: if a key of a dict is neither a GPU nor ``cpu``, or its value is not a size;
            or if two keys are the same device.
    """
    if isinstance(value, Mapping):
        return sizes_by_device(value.items())
    if isinstance(value, list | tuple):
        return tuple(_size(each) for each in value)
    return _size(value)


def sizes_by_device(pairs: Iterable[tuple[object, object]]) -> tuple[tuple[int | str, Any], ...]:
    """Return the pairs of accelerate's dict as those of `sizes_of`, which raises the same."""
    found: dict[int | str, Any] = {}
    for key, size in pairs:
        device = _device(key)
        if device in found:
            named = device if device == "cpu" else f"GPU {device}"
            raise OptionError(
                f"max_memory names a device twice: {named}.",
                "Give each device one size.",
                option="max_memory",
            )
        found[device] = _of_dict(key, size)
    return tuple(found.items())


def sizes_text(sizes: float | tuple[Any, ...]) -> str:
    """Return what `sizes_of` returns as it is typed: ``20``, ``20,10``, ``0=10GiB,cpu=30GiB``."""
    if not isinstance(sizes, tuple):
        return _number(sizes)
    return ",".join(
        f"{each[0]}={_number(each[1])}GiB" if isinstance(each, tuple) else _number(each)
        for each in sizes
    )


def _number(size: float) -> str:
    short = f"{size:g}"
    return short if float(short) == size else repr(size)


def pins_of(value: object) -> object:
    """Return pins as a tuple of (unit, GPU index), from a dict or such pairs.

    Raises:
        OptionError: if a unit is pinned twice.
    """
    if value is None:
        return ()
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        return value
    units = [unit for unit, _ in pairs]
    for unit in units:
        if units.count(unit) > 1:
            raise OptionError(f"{unit!r:.60} is pinned twice.", "Pin each unit to one GPU.")
    return tuple((unit, _whole(gpu)) for unit, gpu in pairs)


def _device(key: object) -> int | str:
    found = _whole(key)
    if isinstance(found, int) and found >= 0 and not isinstance(key, bool):
        return found
    if str(key) == "disk":
        raise OptionError(
            "max_memory names disk, which is not supported.", "Use cpu.", option="max_memory"
        )
    if str(key) in _APPLE:
        return 0
    if str(key) != "cpu":
        raise OptionError(
            f"max_memory names {key!r:.60}, which is not a device.",
            'Name GPUs by number, and "cpu": {0: "10GiB", "cpu": "30GiB"}.',
            option="max_memory",
        )
    return "cpu"


def size_in(text: str) -> int | None:
    """Return the bytes of a size such as ``10GiB``; ``None`` if it is not a size."""
    # Not above: the table of GPU models would be imported with the magics.
    from glm4v_magic.core.gpu_spec import bytes_of

    return bytes_of(text)


def _of_dict(key: object, size: object) -> object:
    if isinstance(size, str) and size.isascii() and size.isdigit():
        size = int(size)  # as it is typed, or read from JSON
    count = size_in(size) if isinstance(size, str) else _whole(size)
    fault = ""
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        count, fault = 0, "which is not a size"
    elif isinstance(size, str) and 0 < count < _LEAST:
        fault = "which is less than any model needs"
    if fault:
        raise OptionError(
            f"max_memory has {size!r:.60} for {key!r:.60}, {fault}.",
            'A size is a text such as "10GiB", or a whole number of bytes.',
            option="max_memory",
        )
    if 0 < count < _LEAST:
        raise OptionError(
            f"max_memory has {size!r:.60} for {key!r:.60}: bytes, as in accelerate.",
            f'Write "{count}GiB" for as many GiB.',
            option="max_memory",
        )
    return min(count, _MOST) / _GIB


def _size(value: Any) -> Any:
    if isinstance(value, str):
        size = size_in(value)
        return value if size is None else size / _GIB
    return _whole(value)


def _whole(value: Any) -> Any:
    """Return a whole number, numpy's included, or that of ``"cuda:1"``; others as they are."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) or type(value).__module__ == "torch":
        match = _DEVICE.fullmatch(str(value))
        return value if match is None else int(match[1])
    try:
        return operator.index(value)
    except TypeError:
        return value
