"""The form of a device map that is given in Python or in a file.

Whether it suits a model and the GPUs is up to `planning.device_map.check`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, RootModel

from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.placement import DeviceMap, Place
from glm4v_magic.outside import checked
from glm4v_magic.planning.device_map import EXAMPLE

__all__ = ["device_map_of"]

_MOST_GPUS = 2**16
_CUDA = re.compile("cuda(?::([0-9]{1,5}))?", re.IGNORECASE)
_DEVICE = 'A device is a number such as 0, "cuda:0" or "cpu"'


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{name!r:.60} is not the name of a module")  # noqa: TRY004  for pydantic
    return name


def _device(value: object) -> Place:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST_GPUS:
        return value
    # `str` of a torch.device is the same, and this room does without torch.
    text = str(value)
    if text.lower() == "cpu":
        return "cpu"
    if text.lower().partition(":")[0] == "disk":
        raise ValueError("disk is not supported; use cpu")
    match = _CUDA.fullmatch(text)
    if match is None or isinstance(value, bytes):
        raise ValueError(f"{value!r:.60} is no device. {_DEVICE}")
    return int(match[1] or 0)


class _DeviceMap(
    RootModel[
        dict[Annotated[str, BeforeValidator(_name)], Annotated[Place, BeforeValidator(_device)]]
    ]
):
    """A device map as `device_map_of` takes it."""


def device_map_of(content: Mapping[Any, Any], what: str = "The device map") -> DeviceMap:
    """Check the form of a device map, and return it with devices as `Place`.

    Args:
        content: name of a module or parameter -> GPU index, ``"cuda:<index>"``, a
            `torch.device`, or ``"cpu"``.
        what: what it is called in messages.

    Raises:
        DeviceMapError: if a name is not a string, or a device is none of these.
    """
    return checked(_DeviceMap, dict(content), what, DeviceMapError, EXAMPLE).root
