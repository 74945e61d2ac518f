"""Which GPUs CUDA shows to a process, and under which index: ``CUDA_VISIBLE_DEVICES``.

The rules are those of the CUDA programming guide ("CUDA Environment Variables") and of
``torch.cuda._parse_visible_devices``: entries are ordinals, UUIDs or beginnings of UUIDs; the list
ends at the first entry that names nothing or more than one device; a device named twice leaves no
device at all; an empty value shows none. Of MIG instances a process sees one only (MIG user guide,
"CUDA Device Enumeration").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Device", "visible"]


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or an instance of a GPU that is cut up by MIG.

    Attributes:
        ordinal: of the GPU.
        uuid: of the GPU (``GPU-...``) or of the instance (``MIG-...``); empty if unknown.
        instance: the GPU's UUID with GPU and compute instance, ``GPU-.../7/0``, the older name of
            a MIG instance; empty for a whole GPU.
    """

    ordinal: int
    uuid: str
    instance: str = ""


def visible(devices: Sequence[Device], value: str | None) -> tuple[Device, ...]:
    """Return the devices that CUDA numbers 0, 1, ... when the variable has `value`.

    Args:
        devices: all of them; a GPU cut up by MIG is represented by its instances.
        value: of ``CUDA_VISIBLE_DEVICES``; ``None`` if it is not set.
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
    """Drop all MIG instances but the first."""
    shown: list[Device] = []
    for device in devices:
        if device is None or (device.instance and any(other.instance for other in shown)):
            continue
        shown.append(device)
    return tuple(shown)
