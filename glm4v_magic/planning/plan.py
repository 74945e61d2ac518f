"""`plan`: decides which GPU runs which units of a model.

A model is a sequence of units (`planning.costs`); a plan gives each GPU consecutive ones so that
the fullest GPU, relative to its capacity, is as empty as possible (`planning.partition` proves it).
`planning.search` says how many GPUs it takes for which objective, and when the tower is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from glm4v_magic.core.errors import DeviceMapError, OptionError, did_you_mean
from glm4v_magic.core.gpu_spec import GPU, gpus_of
from glm4v_magic.core.model_shape import ModelShape, Workload, require_shape
from glm4v_magic.core.options import OBJECTIVES, Objective, check
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.remarks import Remark, remark
from glm4v_magic.core.speed import SpeedLimit
from glm4v_magic.core.stage import Stage
from glm4v_magic.core.wording import sized
from glm4v_magic.planning.choice import choice_note, tower_note
from glm4v_magic.planning.costs import Unit, cache_entries, price
from glm4v_magic.planning.partition import needed
from glm4v_magic.planning.precision import require_quantizable, require_whole_blocks
from glm4v_magic.planning.search import (
    DEFAULT_RESERVE,
    NOTICEABLE,
    Split,
    Task,
    best_split,
    bus_of_offloaded,
    item_of,
    offloaded_split,
    whole_tower,
)
from glm4v_magic.planning.seen import image_size_of
from glm4v_magic.planning.shortfall import does_not_fit
from glm4v_magic.planning.speed import speed_limit

__all__ = ["DEFAULT_RESERVE", "Plan", "Stage", "plan", "require_workload", "task_of"]

_FEW_KINDS = 4  # of GPUs, for which a faster split is looked for unasked


def plan(
    shape: ModelShape,
    gpus: str | Sequence[GPU],
    workload: Workload | None = None,
    *,
    objective: Objective = OBJECTIVES[0],
    reserve: int | None = None,
    overhead: int | None = None,
    pin: Mapping[str, int] | None = None,
    order: Literal["auto", "given"] | Sequence[int] = "auto",
    split_vision: bool | None = None,
    offload: bool = False,
    host_bytes: int | None = None,
) -> Plan:
    """Decide which GPU each unit of a model lives on.

    Args:
        shape: sizes of the model.
        gpus: the GPUs, or their description, such as ``"8x16GiB"``; without any the plan is for the
            CPU, whose memory is not checked.
        workload: context, images, batch, dtype and quantisation to plan for.
        objective: ``headroom`` for as few GPUs as leave a fifth of each free, ``fewest`` for as
            few as fit (and so the fewest hops), ``balance`` for all that make the fullest emptier,
            ``fastest`` for the split that fits with the least time per token at the end of the
            planned context (then for the prefill), which fills the fast GPUs first. Those that are
            used are balanced among themselves.
        reserve: bytes of each GPU to leave free; `DEFAULT_RESERVE` of its size by default.
        overhead: bytes that a GPU in use takes on top of the model; by default what its kind does
            (`core.overhead`).
        pin: unit -> GPU index; ``vision`` and ``layer`` mean all units of that name.
        order: order in which the model runs through the GPUs: the best one, the given one, or GPU
            indices (other GPUs stay idle). Beyond `partition.MAX_SETS` sets of different GPUs only
            three orders are tried, and a note says so.
        split_vision: whether the vision tower is cut between its layers whenever that balances
            better; ``False`` keeps it whole if it fits. By default ``headroom`` cuts it where that
            makes the fullest GPU noticeably emptier, and the others wherever it does.
        offload: if no split fits, keep some units in host memory; their weights are copied to the
            GPU whenever they run. Vision layers go first (once per image), then decoder layers
            (once per token) unless they are quantised, then the embedding.
        host_bytes: bytes of host memory for these, of which the ways out of a model that does not
            fit take account; by default there is no limit.

    Raises:
        DoesNotFitError: if no split fits.
        GPUDescriptionError: if `gpus` cannot be read.
        DeviceMapError: if `pin` or `order` name an unknown unit or GPU, or contradict each other.
        OptionError: if the workload does not suit the model, or `shape` is not a `ModelShape`.
    """
    require_shape(shape)
    asked = workload or Workload()
    task = task_of(
        shape,
        gpus_of(gpus),
        asked,
        objective=objective,
        reserve=reserve,
        overhead=overhead,
        pin=pin,
        order=order,
        split_vision=split_vision,
        host_bytes=host_bytes,
    )
    if not task.gpus:
        require_whole_blocks(shape, asked.quantize, ("cpu",))
        return _on_cpu(shape, task.workload, objective)
    split = best_split(task)
    if split is not None and not split.fits and offload:
        split = offloaded_split(task) or split
    if split is None or not split.fits:
        error = does_not_fit(task, split, offload, asked.image_size)
        error.plan = None if split is None else _described(task, split)
        raise error
    return _described(task, split)


def task_of(
    shape: ModelShape,
    gpus: Sequence[GPU],
    workload: Workload,
    *,
    objective: Objective = OBJECTIVES[0],
    reserve: int | None = None,
    overhead: int | None = None,
    pin: Mapping[str, int] | None = None,
    order: Literal["auto", "given"] | Sequence[int] = "auto",
    split_vision: bool | None = None,
    host_bytes: int | None = None,
) -> Task:
    """Return the checked arguments of `plan`, the workload filled in; errors as there."""
    require_workload(shape, workload)
    work = replace(
        workload,
        context=shape.max_context if workload.context is None else workload.context,
        dtype=workload.dtype or shape.dtype,
        image_size=image_size_of(shape, workload),
    )
    check("objective", objective)
    if reserve is not None and reserve < 0:
        raise OptionError(f"The reserve is {reserve} bytes, but cannot be negative.")
    pins = dict(pin or {})
    _check_units(shape, pins)
    task = Task(
        shape,
        _ordered(gpus, order) if gpus else (),
        work,
        objective,
        reserve,
        overhead,
        pins,
        order == "auto",
        True if any(name.startswith("vision.") for name in pins) else split_vision,
        host_bytes,
    )
    if gpus:
        _check_pins(task)
    return task


def require_workload(shape: ModelShape, workload: Workload) -> None:
    """Raise OptionError if a workload does not suit a model, however large the GPUs are."""
    cache_entries(shape, workload)
    if workload.quantize is not None:
        require_quantizable(shape, workload.quantize)


def _ordered(gpus: Sequence[GPU], order: str | Sequence[int]) -> tuple[GPU, ...]:
    if isinstance(order, str):
        if order not in ("auto", "given"):
            raise OptionError(f"Unknown order {order!r}; there are auto, given, or GPU indices.")
        return tuple(gpus)
    by_index = {gpu.index: gpu for gpu in gpus}
    for index in order:
        if index not in by_index:
            raise DeviceMapError(
                f"The order names cuda:{index}, which is not there.", "Name those that are there."
            )
    if len(set(order)) < len(order):
        raise DeviceMapError("The order names a GPU twice.")
    named = tuple(by_index[index] for index in order)
    if not named:
        raise DeviceMapError("The order names no GPU.")
    return named


def _check_units(shape: ModelShape, pins: Iterable[str]) -> None:
    names = ["vision", *(unit.name for unit in shape.units)]
    known = dict.fromkeys([*names, *(name.partition(".")[0] for name in names)])
    for name in pins:
        if name not in known:
            numbered = "." in name
            hint = did_you_mean(name, (unit for unit in known if ("." in unit) == numbered))
            raise DeviceMapError(f"{shape.name} has no unit {name!r:.60} to pin.", hint)


def _check_pins(task: Task) -> None:
    present = {gpu.index for gpu in task.gpus}
    for name, index in task.pin.items():
        if index not in present:
            raise DeviceMapError(
                f"{name!r} is pinned to cuda:{index}, which is not there.",
                "Pin it to one that is there.",
            )


def _on_cpu(shape: ModelShape, workload: Workload, objective: Objective) -> Plan:
    units = whole_tower(shape, price(shape, workload))
    weights = sum(unit.weight_bytes for unit in units)
    cache = sum(unit.kv_bytes for unit in units)
    stage = Stage(
        None,
        "CPU",
        None,
        tuple(unit.name for unit in units),
        tuple(module for unit in units for module in unit.modules),
        (),
        weights,
        cache,
        max(0, needed([item_of(unit) for unit in units]) - weights - cache),
    )
    return Plan(shape.name, workload, objective, (stage,), made_of=shape.made_of)


def _described(task: Task, split: Split) -> Plan:
    stages = _stages(task, split)
    speed = speed_limit(task.shape, stages, task.gpus, task.workload)
    notes = (*_notes(task, split), *_notes_on_speed(task, split, speed))
    return Plan(
        task.shape.name,
        task.workload,
        task.objective,
        stages,
        notes,
        speed=speed,
        made_of=task.shape.made_of,
    )


def _stages(task: Task, split: Split) -> tuple[Stage, ...]:
    units = split.stages
    idle = [place for place in range(len(task.gpus)) if place not in units]
    return tuple(_stage(task, split, place, units.get(place, ())) for place in [*units, *idle])


def _stage(task: Task, split: Split, place: int, units: tuple[Unit, ...]) -> Stage:
    gpu, budget = task.gpus[place], task.budgets[place]
    if not units:
        return Stage(gpu.index, gpu.name, budget.capacity)
    away = [unit for unit in units if unit.name in split.offloaded]
    if not away and _tower(units) == _tower(split.units):
        units = whole_tower(task.shape, units)
    items = [task.item(unit, unit in away) for unit in units]
    weights = sum(unit.weight_bytes for unit in units) - sum(unit.weight_bytes for unit in away)
    cache = sum(unit.kv_bytes for unit in units)
    return Stage(
        gpu.index,
        gpu.name,
        budget.capacity,
        tuple(unit.name for unit in units),
        tuple(module for unit in units for module in unit.modules),
        tuple(module for unit in away for module in unit.modules),
        weights,
        cache,
        max(0, needed(items) - weights - cache),
        budget.base,
    )


def _tower(units: Sequence[Unit]) -> int:
    """Count the units of the vision tower."""
    return sum(unit.in_tower for unit in units)


def _notes(task: Task, split: Split) -> Iterator[Remark]:
    if split.fits:
        yield from choice_note(task, split)
        yield from tower_note(task, split)
    away = split.away
    of_tower = [unit.weight_bytes for unit in away if unit.in_tower]
    of_text = [unit.weight_bytes for unit in away if unit.kind == "text_layer"]
    embedding = sum(unit.weight_bytes for unit in away if unit.kind == "embedding")
    if away:
        bus = bus_of_offloaded(task, split)
        if of_tower:
            yield remark(
                "tower_offloaded",
                count=len(of_tower),
                size=sized(sum(of_tower)),
                seconds=bus.seconds(sum(of_tower)),
                bus=bus.name,
            )
        if of_text:
            yield remark(
                "layers_offloaded",
                count=len(of_text),
                size=sized(sum(of_text)),
                seconds=bus.seconds(sum(of_text)),
                bus=bus.name,
            )
        if embedding:
            yield remark(
                "embedding_offloaded",
                size=sized(embedding),
                seconds=bus.seconds(embedding),
                bus=bus.name,
            )
    if not split.partition.exact:
        yield remark("orders_not_all_tried")


def _notes_on_speed(task: Task, split: Split, speed: SpeedLimit) -> Iterator[Remark]:
    """Yield a note if another split is faster, and one if the fastest was chosen by guesses."""
    unknown = dict.fromkeys(gpu.name for gpu in task.gpus if gpu.bandwidth is None)
    if task.objective == "fastest":
        if unknown and len(task.gpus) > 1:
            yield remark("speeds_unknown", gpus=", ".join(unknown))
        return
    kinds = {(gpu.bandwidth, gpu.usable_bytes) for gpu in task.gpus}
    if not split.fits or unknown or not 1 < len(kinds) <= _FEW_KINDS:
        return
    fast = replace(task, objective="fastest")
    other = best_split(fast, split.offloaded)
    if other is None or not other.fits:
        return
    best = speed_limit(task.shape, _stages(fast, other), task.gpus, task.workload)
    now, most = speed.tokens_per_second, best.tokens_per_second
    if now and most and now < most * NOTICEABLE:
        yield remark("faster_split", most=f"{most:.0f}", now=f"{now:.0f}")
