"""torch's device for a GPU of a plan: CUDA's (and ROCm's, which torch calls the same), or Apple's.

Plans number GPUs. Apple's GPU is the only one of its machine, and torch calls it ``mps``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm4v_magic.core.placement import DeviceMap, Place
from glm4v_magic.hardware.gpus import is_apple

if TYPE_CHECKING:
    import torch

__all__ = ["device_of", "for_torch", "name_of"]


def device_of(place: Place) -> torch.device:
    """Return torch's device of a GPU's index, or of ``cpu``."""
    import torch

    if not isinstance(place, int):
        return torch.device(place)
    return torch.device("mps" if _is_apple() else "cuda", place)


def name_of(place: Place) -> str:
    """Return torch's name for a place: ``cuda:0``, ``mps:0``, ``cpu``."""
    return f"{'mps' if _is_apple() else 'cuda'}:{place}" if isinstance(place, int) else place


def for_torch(device_map: DeviceMap) -> dict[str, int | str]:
    """Return a device map for transformers, which takes a number for a GPU of CUDA."""
    if not _is_apple():
        return dict(device_map)
    return {name: name_of(place) for name, place in device_map.items()}


def _is_apple() -> bool:
    from glm4v_magic.virtual_gpus import active

    return active() is None and is_apple()
