"""What is left of GPUs for a model, and whether the previous one can stay loaded beside it."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.errors import DoesNotFitError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.wording import gib

if TYPE_CHECKING:
    from glm4v_magic.checkpoints import Checkpoint
    from glm4v_magic.engines import Engine
    from glm4v_magic.planning.decision import Placement

__all__ = ["fits_beside", "left_by", "tell_who_stays"]

_TIMES_FREE = 2
"""Free host memory, as a multiple of what a model takes: too little ends the process."""

_NOTICEABLE = 100
"""The hundredth part of a GPU is worth a word."""


def left_by(gpus: Sequence[GPU], released: Engine | None) -> tuple[GPU, ...]:
    """Return GPUs without the memory of this process's tensors that stay: others' than a model's.

    To the driver all memory of this process is one; see `hardware.gpus.FoundGPU.gpu`.

    Args:
        gpus: the GPUs.
        released: engine whose model makes room.
    """
    mine: Counter[int] = Counter()
    for device, nbytes in _held_by(released):
        mine[device] += nbytes
    stays = {gpu.index: max(_allocated(gpu) - mine[gpu.index], 0) for gpu in gpus}
    if any(stays.values()) and gc.collect():
        stays = {gpu.index: max(_allocated(gpu) - mine[gpu.index], 0) for gpu in gpus}
    return tuple(
        replace(gpu, free_bytes=max(gpu.usable_bytes - stays[gpu.index], 0))
        if stays[gpu.index]
        else gpu
        for gpu in gpus
    )


def tell_who_stays(error: DoesNotFitError, there: Sequence[GPU], left: Sequence[GPU]) -> None:
    """Add to an error how much of the GPUs other tensors of this process hold.

    Args:
        error: the error.
        there: the GPUs.
        left: what `left_by` made of them.
    """
    held = [
        f"{gib(before.usable_bytes - after.usable_bytes)} GiB of {before.device}"
        for before, after in zip(there, left, strict=True)
        if before.usable_bytes - after.usable_bytes > before.total_bytes // _NOTICEABLE
    ]
    if held:
        more = f"Other tensors of this process hold {', '.join(held)}: delete them for more room."
        error.hint = f"{error.hint} {more}".strip()


def _allocated(gpu: GPU) -> int:
    """Return the bytes of this process's tensors on a GPU; 0 if torch has not used it."""
    torch = sys.modules.get("torch")
    virtual = sys.modules.get("glm4v_magic.virtual_gpus.context")
    is_virtual = virtual is not None and virtual.active() is not None
    if torch is None or not (is_virtual or _is_begun(torch.cuda)):
        return 0
    return int(torch.cuda.memory_allocated(gpu.index))


def _is_begun(cuda: Any) -> bool:
    return bool(cuda.is_available() and cuda.is_initialized())


def _held_by(engine: Engine | None) -> Iterator[tuple[int, int]]:
    """Yield GPUs and the bytes of each tensor that an engine of this process holds there."""
    from glm4v_magic.engines.local import LocalEngine

    if not isinstance(engine, LocalEngine):
        return
    for tensor in (*engine.model.parameters(), *engine.model.buffers()):
        for each in (tensor, *_beside(tensor)):
            if each.device.type == "cuda":
                yield each.device.index or 0, each.nbytes
    for device, nbytes in engine.kept.facts.devices:
        kind, _, index = device.partition(":")
        if kind == "cuda":
            yield int(index or 0), nbytes


def _beside(parameter: Any) -> Iterator[Any]:
    """Yield the scales of a weight that bitsandbytes has quantised."""
    if getattr(parameter, "SCB", None) is not None:
        yield parameter.SCB
    state = getattr(parameter, "quant_state", None)
    while state is not None:
        yield from (each for each in (state.absmax, state.code) if each is not None)
        state = getattr(state, "state2", None)


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
