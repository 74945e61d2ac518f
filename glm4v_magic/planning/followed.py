"""A plan that was made elsewhere, or earlier, as it is followed on the GPUs that there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil

from glm4v_magic.core.gpu_models import capability_of, gpu_model
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.core.overhead import context_within
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.remarks import Remark
from glm4v_magic.core.stage import Stage
from glm4v_magic.planning.costs import Unit, price
from glm4v_magic.planning.partition import needed
from glm4v_magic.planning.precision import FP8_FROM
from glm4v_magic.planning.search import DEFAULT_RESERVE, item_of, reserved, whole_tower
from glm4v_magic.planning.speed import speed_limit

__all__ = ["capacities", "followed", "planned_gpus", "priced_units"]

_GIB = 2**30


def followed(made: Plan, shape: ModelShape, gpus: Sequence[GPU]) -> Plan:
    """Return a plan with the names, overheads, memory and speed of the GPUs that it is followed on.

    Of each GPU it takes no more than was planned, apart from a larger overhead, and no more than
    the GPU has: other programs may have taken some since. What its stages need is priced anew:
    whoever has changed its workload or moved a unit has not done that.
    """
    made = _priced(made, shape)
    sizes = capacities(made, gpus)
    here = {gpu.index: gpu for gpu in gpus}
    stages = tuple(_on(stage, here, sizes) for stage in made.stages)
    speed = speed_limit(shape, stages, gpus, made.workload)
    known = speed.tokens_per_second is not None
    notes = tuple(_still_true(made))
    return replace(made, stages=stages, notes=notes, speed=speed if known else made.speed)


def _still_true(made: Plan) -> Iterator[Remark]:
    """Yield the notes of a plan without those that another context or another time make untrue."""
    for note in made.notes:
        is_of_another = (
            note.code == "context_shortened" and note.values.get("context") != made.workload.context
        )
        if note.code != "revision_unseen" and not is_of_another:
            yield note


def _priced(made: Plan, shape: ModelShape) -> Plan:
    """Return a plan whose stages need what their units do, whatever it says."""
    units = priced_units(shape, made.workload)
    return replace(made, stages=tuple(_stage_priced(stage, units) for stage in made.stages))


def _stage_priced(stage: Stage, units: Mapping[str, Unit]) -> Stage:
    mine = [unit for unit in units.values() if unit.name in stage.units]
    if not mine:
        return replace(stage, weight_bytes=0, kv_bytes=0, activation_bytes=0, overhead_bytes=0)
    away = {unit.name for unit in mine if {*unit.modules} & {*stage.offloaded}}
    weights = sum(unit.weight_bytes for unit in mine if unit.name not in away)
    cache = sum(unit.kv_bytes for unit in mine)
    all_of_it = needed([item_of(unit, offloaded=unit.name in away) for unit in mine])
    return replace(
        stage,
        weight_bytes=weights,
        kv_bytes=cache,
        activation_bytes=max(0, all_of_it - weights - cache),
    )


def priced_units(shape: ModelShape, work: Workload) -> dict[str, Unit]:
    """Return the units that a plan may name, with the whole tower beside its parts, by name."""
    priced = price(shape, work)
    found = {unit.name: unit for unit in whole_tower(shape, priced)}
    return found | {unit.name: unit for unit in priced}


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
