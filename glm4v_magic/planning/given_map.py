"""The form of a device map that is given in Python or in a file.

Whether it suits a model and the GPUs is up to `planning.device_map.check`.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, RootModel

from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.placement import DeviceMap, Place
from glm4v_magic.outside import checked, is_there
from glm4v_magic.planning.device_map import EXAMPLE, MPS

__all__ = ["device_map_of", "whole"]

_MOST_GPUS = 2**16
_CUDA = re.compile("cuda(?::([0-9]{1,5}))?", re.IGNORECASE)
_LIKE_A_DEVICE = re.compile(r"(cuda|gpu|hip|hpu|meta|npu|xpu)(:\S*)?", re.IGNORECASE)
_DEVICE = 'A device is a number such as 0, "cuda:0", "mps" or "cpu"'


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{name!r:.60} is not the name of a module")  # noqa: TRY004  for pydantic
    return name


def _device(value: object) -> Place:
    index = _index(value)
    if index is not None and 0 <= index < _MOST_GPUS:
        return index
    # `str` of a torch.device is the same, and this room does without torch.
    text = str(value).strip()
    if text.lower() == "cpu":
        return "cpu"
    if text.lower() in ("mps", "mps:0"):
        return MPS
    if text.lower().partition(":")[0] == "disk":
        raise ValueError("disk is not supported; use cpu")
    match = _CUDA.fullmatch(text)
    if match is None or isinstance(value, bytes):
        raise ValueError(f"{value!r:.60} is not a device. {_DEVICE}")
    return int(match[1] or 0)


def _index(value: object) -> int | None:
    """Return the index in a whole number of any type, numpy's included, or in digits."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and len(value) < 6 else None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        return operator.index(value)
    except TypeError:  # an array of several numbers
        return None


def whole(given: object) -> DeviceMap | None:
    """Return the map that puts the whole model on a device, if `given` is one.

    Args:
        given: a GPU index, ``"cuda:<index>"``, ``"mps"``, ``"cpu"``, or a `torch.device`; a
            string that is none of these is the name of a file.

    Raises:
        DeviceMapError: if it is neither a device nor the name of a file.
    """
    text = str(given).strip()
    is_named = isinstance(given, str | os.PathLike) and text.lower() != "disk"
    is_file = is_named and (is_there(Path(text)) or not _LIKE_A_DEVICE.fullmatch(text))
    try:
        return {"": _device(given)}
    except ValueError as error:
        if is_file:
            return None
        raise DeviceMapError(f"The device map is wrong: {error}.", EXAMPLE) from None


class _DeviceMap(
    RootModel[
        dict[Annotated[str, BeforeValidator(_name)], Annotated[Place, BeforeValidator(_device)]]
    ]
):
    """A device map as `device_map_of` takes it."""


def device_map_of(content: Mapping[Any, Any], what: str = "The device map") -> DeviceMap:
    """Check the form of a device map, and return it with devices as `Place`.

    Args:
        content: name of a module or parameter -> GPU index, ``"cuda:<index>"``, ``"mps"``, a
            `torch.device`, or ``"cpu"``.
        what: what it is called in messages.

    Raises:
        DeviceMapError: if a name is not a string, or a device is none of these.
    """
    if "weight_map" in content:
        raise DeviceMapError(
            f"{what} is the index of a checkpoint, which tells the file of each weight.",
            "Give its weights devices instead of files.",
        )
    return checked(_DeviceMap, dict(content), what, DeviceMapError, EXAMPLE).root
