"""A plan that was made elsewhere, or earlier, as it is followed on the GPUs that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil

from glm4v_magic.core.gpu_models import capability_of, gpu_model
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.model_shape import ModelShape
from glm4v_magic.core.overhead import context_within
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.stage import Stage
from glm4v_magic.planning.precision import FP8_FROM
from glm4v_magic.planning.search import DEFAULT_RESERVE, reserved
from glm4v_magic.planning.speed import speed_limit

__all__ = ["capacities", "followed", "planned_gpus"]

_GIB = 2**30


def followed(made: Plan, shape: ModelShape, gpus: Sequence[GPU]) -> Plan:
    """Return a plan with the names, overheads, memory and speed of the GPUs that it is followed on.

    Of each GPU it takes no more than was planned, apart from a larger overhead, and no more than
    the GPU has: other programs may have taken some since.
    """
    sizes = capacities(made, gpus)
    here = {gpu.index: gpu for gpu in gpus}
    stages = tuple(_on(stage, here, sizes) for stage in made.stages)
    speed = speed_limit(shape, stages, gpus, made.workload)
    known = speed.tokens_per_second is not None
    # it was not here when the plan was made
    notes = tuple(note for note in made.notes if note.code != "revision_unseen")
    return replace(made, stages=stages, notes=notes, speed=speed if known else made.speed)


def capacities(made: Plan, gpus: Sequence[GPU]) -> dict[int, int]:
    """Return the bytes that a plan may use of each GPU: as if it were made for them.

    Where it needs what a new plan would leave free there, it is all that the GPU has.
    """
    planned = sorted(stage.gpu for stage in made.stages if stage.gpu is not None)
    most = dict(zip(planned, _limits(made, planned), strict=False))
    stages = {stage.gpu: stage for stage in made.stages}
    found = {}
    for gpu in gpus:
        stage = stages.get(gpu.index)
        if stage is not None:
            usable = min(gpu.usable_bytes, most.get(gpu.index, gpu.usable_bytes))
            with_room = usable - reserved(gpu, _bytes(made.limits.reserve))
            needed = stage.total_bytes + _grown(stage, gpu)
            found[gpu.index] = max(with_room, 0) if needed <= with_room else usable
    return found


def planned_gpus(made: Plan) -> tuple[GPU, ...]:
    """Return the GPUs that a plan was made for, as far as it tells."""
    stages = sorted(made.stages, key=lambda stage: stage.gpu or 0)
    return tuple(
        _planned(stage, stage.gpu, made.limits.reserve, is_fp8=made.workload.fp8)
        for stage in stages
        if stage.gpu is not None
    )


def _planned(stage: Stage, index: int, reserve: float | None, *, is_fp8: bool) -> GPU:
    size = _size(stage.capacity_bytes or 0, reserve)
    model = gpu_model(stage.name, size)
    capability = FP8_FROM if is_fp8 else capability_of(stage.name)
    return GPU(
        index,
        stage.name,
        size,
        capability=capability,
        multiprocessors=None if model is None else model.multiprocessors,
        # a limit hides the size of the GPU, which tells the overhead
        context_bytes=context_within(stage.overhead_bytes, capability) if stage.units else None,
    )


def _size(capacity: int, reserve: float | None) -> int:
    """Return the size of a GPU of which a plan may use `capacity`."""
    if reserve is not None:
        return capacity + (_bytes(reserve) or 0)
    return ceil(capacity / (1 - DEFAULT_RESERVE))


def _on(stage: Stage, gpus: Mapping[int, GPU], sizes: Mapping[int, int]) -> Stage:
    gpu = None if stage.gpu is None else gpus.get(stage.gpu)
    if gpu is None or stage.capacity_bytes is None:
        return stage
    return replace(
        stage,
        name=gpu.name,
        capacity_bytes=min(stage.capacity_bytes + max(0, _grown(stage, gpu)), sizes[gpu.index]),
        overhead_bytes=stage.overhead_bytes + _grown(stage, gpu),
    )


def _grown(stage: Stage, gpu: GPU) -> int:
    """Return the bytes by which the overhead of a GPU exceeds what was planned."""
    return gpu.overhead_bytes - stage.overhead_bytes if stage.units else 0


def _limits(made: Plan, planned: Sequence[int]) -> tuple[int, ...]:
    sizes = PlacementOptions(max_memory=made.limits.max_memory).memory_of(planned)
    return tuple(size for each in sizes if (size := _bytes(each)) is not None)


def _bytes(gibibytes: float | None) -> int | None:
    """Return GiB in bytes; they may be infinite."""
    return None if gibibytes is None else int(min(gibibytes, 2**40) * _GIB)
