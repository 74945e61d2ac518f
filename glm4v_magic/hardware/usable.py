"""The GPUs that a model may be put on: those of this machine, or the virtual GPUs in use."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from glm4v_magic.core.errors import GPUDescriptionError, PlacementError
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.wording import counted
from glm4v_magic.hardware.gpus import FoundGPU, find_gpus, import_torch_if_needed, is_apple

if TYPE_CHECKING:
    from glm4v_magic.virtual_gpus import VirtualGPUs

__all__ = ["gpus_here", "usable_gpus"]

_GIB = 2**30
# A GPU reports less than its nominal size: 16 GB of a T4 are 14.6 GiB with error correction.
_NAMEPLATE = 1.15


def gpus_here() -> tuple[GPU, ...]:
    """Return the GPUs of this machine, or the virtual GPUs in use.

    Imports torch only where nothing else tells the GPUs; see `gpus.import_torch_if_needed`.
    """
    virtual = _virtual_gpus()
    if virtual:
        return virtual.gpus
    import_torch_if_needed()
    return tuple(found.gpu for found in find_gpus())


def usable_gpus(description: str | None, *, ask_torch: bool = True) -> tuple[GPU, ...]:
    """Return the GPUs that torch can use, with no more memory than is described.

    Args:
        description: GPUs to use, see `core.gpu_spec`; ``None`` for all.
        ask_torch: whether to leave out GPUs that the driver lists but torch cannot use; this
            imports torch if the driver lists any.

    Raises:
        GPUDescriptionError: if more GPUs are described than there are.
        PlacementError: if the memory of a GPU is neither reported nor described.
    """
    described = None if description is None else parse_gpus(description)
    if described == ():
        return ()
    virtual = _virtual_gpus()
    if virtual is not None:
        found: tuple[GPU | None, ...] = virtual.gpus
    else:
        if ask_torch:
            import_torch_if_needed()
        gpus = find_gpus()
        gpus = gpus[: _seen_by_torch()] if gpus and ask_torch else gpus
        if described is None:
            return tuple(gpu.gpu for gpu in gpus)
        found = tuple(_size_known(gpu) for gpu in gpus)
    if described is None:
        return tuple(gpu for gpu in found if gpu is not None)
    if len(described) > len(found):
        there = "none" if not found else f"only {len(found)}"
        raise GPUDescriptionError(
            f"{description!r} describes {counted(len(described), 'GPU')}, "
            f"but torch sees {there} here.",
            code="gpus_not_here",
        )
    return tuple(_both(one, gpu) for one, gpu in zip(described, found, strict=False))


def _virtual_gpus() -> VirtualGPUs | None:
    context = sys.modules.get("glm4v_magic.virtual_gpus.context")
    return None if context is None else context.active()


def _seen_by_torch() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else int(is_apple())


def _size_known(gpu: FoundGPU) -> GPU | None:
    try:
        return gpu.gpu
    except PlacementError:
        return None


def _both(described: GPU, found: GPU | None) -> GPU:
    """Return a GPU whose usable memory is at most that described and at most that found."""
    if found is None:
        return described
    if described.total_bytes > found.total_bytes * _NAMEPLATE:
        raise GPUDescriptionError(
            f"cuda:{found.index} ({found.name}) has {found.total_bytes / _GIB:.1f} GiB, not "
            f"{described.total_bytes / _GIB:.1f} GiB.",
            code="gpu_is_smaller",
        )
    return replace(
        found,
        free_bytes=min(described.total_bytes, found.usable_bytes),
        bandwidth=described.bandwidth or found.bandwidth,
    )
