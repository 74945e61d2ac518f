"""Whether a model can be loaded while the previous one stays loaded."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glm4v_magic.checkpoints import Checkpoint
    from glm4v_magic.planning.decision import Placement

__all__ = ["fits_beside"]

_TIMES_FREE = 2
"""Free host memory, as a multiple of what a model takes: too little ends the process."""


def fits_beside(checkpoint: Checkpoint, placement: Placement) -> bool:
    """Tell whether the memory that is free now is enough for a model; false if unknown."""
    from glm4v_magic.hardware.gpus import gpu_reader
    from glm4v_magic.hardware.host import free_host_bytes
    from glm4v_magic.hardware.readings import HOST, take_readings

    needed = _needed(checkpoint, placement)
    if not needed:
        return False
    if _TIMES_FREE * needed.pop(HOST, 0) > free_host_bytes():
        return False
    if not needed:
        return True
    with gpu_reader() as read:
        memories = take_readings(read, {}).memories
    free = {memory.device: memory.free_bytes or 0 for memory in memories}
    return all(free.get(device, 0) >= size for device, size in needed.items())


def _needed(checkpoint: Checkpoint, placement: Placement) -> Counter[str]:
    """Return the bytes that a model takes on each device; empty if that is not known."""
    from glm4v_magic.core.errors import Glm4vError
    from glm4v_magic.core.model_shape import Workload
    from glm4v_magic.hardware.readings import HOST
    from glm4v_magic.planning.plan import plan

    made, needed = placement.plan, Counter[str]()
    if made is None:
        if set((placement.device_map or {"": "cpu"}).values()) != {"cpu"}:
            return needed  # a given map of GPUs
        asked = Workload(images=0, dtype=placement.dtype, quantize=placement.quantize)
        try:
            made = plan(checkpoint.architecture.shape(), (), asked)
        except Glm4vError:  # a model that can be loaded and not planned
            return needed
    for stage in made.stages:
        if stage.gpu is None:
            needed[HOST] += stage.weight_bytes
        elif stage.units:
            needed[stage.device] += stage.total_bytes
        if stage.offloaded:
            needed[HOST] += checkpoint.total_bytes  # at most
    return needed
