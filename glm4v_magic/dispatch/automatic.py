"""The device map that transformers would choose, to compare with a plan."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.placement import DeviceMap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["automatic"]

_UNLIMITED = 1 << 60


def automatic(model: PreTrainedModel, gpus: Sequence[GPU]) -> DeviceMap:
    """Return the map that ``from_pretrained(device_map="auto")`` chooses; queries no GPU.

    Args:
        model: the model; may be on ``meta``.
        gpus: the GPUs; host memory is assumed to be unlimited.

    Raises:
        DeviceMapError: if there is no GPU.
    """
    if not gpus:
        raise DeviceMapError("An automatic device map needs at least one GPU.")
    from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

    classes = model._no_split_modules
    # Without limits, as for "auto", transformers leaves a tenth of a single GPU free.
    usable = 0.9 if len(gpus) == 1 else 1
    capacities: dict[int | str, int] = {
        index: int(gpu.usable_bytes * usable) for index, gpu in enumerate(gpus)
    } | {"cpu": _UNLIMITED}
    with _seen_by_libraries(gpus):
        memory = get_balanced_memory(model, capacities, no_split_module_classes=classes)
        found = infer_auto_device_map(model, memory, no_split_module_classes=classes)
    return {
        name: gpus[place].index if isinstance(place, int) else place
        for name, place in found.items()
    }


def _seen_by_libraries(gpus: Sequence[GPU]) -> AbstractContextManager[Any]:
    """Make torch show the GPUs: accelerate warns of capacities for GPUs that it does not see."""
    if torch.cuda.device_count() >= len(gpus):
        return nullcontext()
    from glm4v_magic.virtual_gpus import VirtualGPUs

    return VirtualGPUs(gpus, values="none")
