"""GPUs that CUDA shows to a process, and their indices: ``CUDA_VISIBLE_DEVICES``.

The rules are those of the CUDA programming guide ("CUDA Environment Variables") and of
``torch.cuda._parse_visible_devices``: entries are ordinals, UUIDs or prefixes of UUIDs; the list
ends at the first entry that names no device or more than one; naming a device twice hides all
devices; so does an empty value. A process sees only one MIG instance (MIG user guide,
"CUDA Device Enumeration").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Device", "visible"]


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU or a MIG instance.

    Attributes:
        ordinal: NVML's number of the GPU.
        uuid: UUID of the GPU (``GPU-...``) or the instance (``MIG-...``); empty if unknown.
        instance: older name of a MIG instance: the GPU's UUID with GPU and compute instance,
            ``GPU-.../7/0``; empty for a whole GPU.
    """

    ordinal: int
    uuid: str
    instance: str = ""


def visible(devices: Sequence[Device], value: str | None) -> tuple[Device, ...]:
    """Return the devices that CUDA numbers 0, 1, ... if the variable has this value.

    Args:
        devices: all devices; a GPU divided by MIG is represented by its instances.
        value: value of ``CUDA_VISIBLE_DEVICES``; ``None`` if it is not set.
    """
    if value is None:
        ordinals = sorted({device.ordinal for device in devices})
        return _one_instance([_by_ordinal(devices, ordinal) for ordinal in ordinals])
    chosen: list[Device] = []
    for entry in value.split(","):
        device = _named(devices, entry.strip())
        if device is None:
            break
        if device in chosen:
            return ()
        chosen.append(device)
    return _one_instance(chosen)


def _named(devices: Sequence[Device], entry: str) -> Device | None:
    if entry.startswith("MIG-GPU-"):
        matches = [device for device in devices if device.instance == entry.removeprefix("MIG-")]
    elif entry.startswith(("GPU-", "MIG-")):
        matches = [device for device in devices if device.uuid.startswith(entry)]
    elif digits := re.match(r"\+?[0-9]+", entry):  # strtoul: "1gpu" is 1
        return _by_ordinal(devices, int(digits[0]))
    else:
        return None
    return matches[0] if len(matches) == 1 else None


def _by_ordinal(devices: Iterable[Device], ordinal: int) -> Device | None:
    return next((device for device in devices if device.ordinal == ordinal), None)


def _one_instance(devices: Iterable[Device | None]) -> tuple[Device, ...]:
    """Drop all MIG instances except the first."""
    shown: list[Device] = []
    for device in devices:
        if device is None or (device.instance and any(other.instance for other in shown)):
            continue
        shown.append(device)
    return tuple(shown)
