"""The search behind `planning.plan`: the best split of units over GPUs for a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import attrgetter

from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.core.options import Objective
from glm4v_magic.planning.costs import Unit, merge, price
from glm4v_magic.planning.partition import (
    Budget,
    Item,
    Partition,
    fewest,
    fits,
    needed,
    partition,
)
from glm4v_magic.planning.quickest import quickest
from glm4v_magic.planning.speed import HOP_SECONDS, Bus, bus_of, unit_seconds, work_of

__all__ = [
    "DEFAULT_RESERVE",
    "HEADROOM",
    "NOTICEABLE",
    "Split",
    "Task",
    "best_split",
    "bus_of_offloaded",
    "can_fit",
    "fullest",
    "item_of",
    "offloadable",
    "offloaded_split",
    "reserved",
    "whole_tower",
]


DEFAULT_RESERVE = Fraction(3, 100)
"""Fraction of a GPU that is kept free: in tests modules take at most 3 % more than priced."""


HEADROOM = Fraction(4, 5)
"""Fullness up to which a GPU counts as having room to spare, for the objective ``headroom``.

What a plan does not count (a longer prompt than planned, kept prompts, fragmentation) goes there.
"""

_FEMTO = 10**15  # times become whole numbers, which add up exactly
_STEP, _PREFILL = 96, 16  # bits at which they begin in a cost; below is the number of stages

NOTICEABLE = Fraction(19, 20)
"""A split is noticeably emptier if its fullest GPU is below this fraction of the other's."""


@dataclass(frozen=True, slots=True)
class Task:
    """Checked arguments of `plan`, by the same names.

    Attributes:
        host_bytes: bytes of host memory for weights; ``None`` for no limit.
    """

    shape: ModelShape
    gpus: tuple[GPU, ...]
    workload: Workload
    objective: Objective
    reserve: int | None
    overhead: int | None
    pin: Mapping[str, int]
    any_order: bool
    split_vision: bool | None
    host_bytes: int | None = None

    @property
    def budgets(self) -> list[Budget]:
        """Budgets in the order of `gpus`."""
        return [
            Budget(max(gpu.usable_bytes - reserved(gpu, self.reserve), 0), self._overhead(gpu))
            for gpu in self.gpus
        ]

    def _overhead(self, gpu: GPU) -> int:
        return gpu.overhead_bytes if self.overhead is None else self.overhead

    def item(self, unit: Unit, offloaded: bool = False) -> Item:
        """Return the cost of `unit`; if offloaded, its weights are transient."""
        return item_of(unit, self._place(unit), offloaded)

    def _place(self, unit: Unit) -> int | None:
        """Return the place in `gpus` of the GPU that a unit is pinned to, if any."""
        stem = unit.name.partition(".")[0]
        index = self.pin.get(unit.name, self.pin.get(stem))
        return next((at for at, gpu in enumerate(self.gpus) if gpu.index == index), None)


def reserved(gpu: GPU, reserve: int | None) -> int:
    """Return the bytes of a GPU that a plan leaves free; by default a part of its size."""
    return int(gpu.total_bytes * DEFAULT_RESERVE) if reserve is None else reserve


def item_of(unit: Unit, pinned: int | None = None, offloaded: bool = False) -> Item:
    """Return the cost of `unit`; if offloaded, its weights are transient.

    A tower without images does not run, so that its offloaded weights stay where they are.
    """
    away = unit.weight_bytes if offloaded else 0
    visiting = 0 if unit.in_tower and not unit.transient_bytes else away
    transient = unit.transient_bytes + visiting
    return Item(
        unit.resident_bytes - unit.kv_bytes - away,
        0 if unit.in_tower else transient,
        pinned,
        unit.tower_resident_bytes - away,
        transient if unit.in_tower else 0,
        0 if unit.in_tower else unit.shared_bytes,
        unit.kv_bytes,
        0 if unit.in_tower else unit.step_bytes + visiting,
        unit.shared_bytes if unit.in_tower else 0,
        max(0, unit.early_bytes - away),
        0 if offloaded else unit.arrival_bytes,
    )


@dataclass(frozen=True, slots=True)
class Split:
    """A partition, the units that it splits, and the names of the offloaded ones."""

    units: tuple[Unit, ...]
    offloaded: frozenset[str]
    partition: Partition

    @property
    def fits(self) -> bool:
        """Whether every GPU can hold its units."""
        return self.partition.fullness <= 1

    @property
    def stages(self) -> dict[int, tuple[Unit, ...]]:
        """Units of each GPU in use, by its place among the task's, in execution order."""
        borders = zip(self.partition.order, self.partition.borders, strict=True)
        return {place: self.units[first:end] for place, (first, end) in borders if first < end}

    @property
    def is_whole(self) -> bool:
        """Whether no two GPUs share the vision tower."""
        return sum(any(unit.in_tower for unit in units) for units in self.stages.values()) <= 1

    @property
    def away(self) -> tuple[Unit, ...]:
        """Units that are offloaded."""
        return tuple(unit for unit in self.units if unit.name in self.offloaded)

    @property
    def percent(self) -> str:
        """Fullness of the fullest GPU: ``71%``."""
        return f"{float(self.partition.fullness):.0%}"


def fullest(task: Task, split: Split) -> tuple[GPU, int, int]:
    """Return the fullest GPU of a split, and the bytes that it needs and may use."""
    loads = []
    for place, units in split.stages.items():
        budget = task.budgets[place]
        items = [task.item(unit, unit.name in split.offloaded) for unit in units]
        loads.append((task.gpus[place], budget.base + needed(items), budget.capacity))
    return max(loads, key=lambda load: Fraction(load[1], load[2]))


def bus_of_offloaded(task: Task, split: Split) -> Bus:
    """Return the fastest bus that offloaded units cross."""
    gpus = [
        task.gpus[place]
        for place, units in split.stages.items()
        if any(unit.name in split.offloaded for unit in units)
    ]
    return max(map(bus_of, gpus), key=attrgetter("rate"))


def best_split(task: Task, offloaded: frozenset[str] = frozenset()) -> Split | None:
    """Return the best split for the task's objective; ``None`` if no GPU is usable.

    How many GPUs it uses follows from the units with a cut tower, of which a whole tower is one
    case; then the tower is whole if that is as good (`_is_good_whole`). Unless that is forbidden
    or asked for: `Task.split_vision`.

    Raises:
        DeviceMapError: if the pins contradict each other.
    """
    if not any(budget.capacity > 0 for budget in task.budgets):
        return None
    fine = price(task.shape, task.workload)
    whole = whole_tower(task.shape, fine)
    if task.split_vision is False and not offloaded and _fits(task, whole):
        return Split(whole, offloaded, _required(_partition(task, whole, _most_gpus(task, whole))))
    most = _most_gpus(task, fine, offloaded)
    cut = _required(_partition(task, fine, most, offloaded))
    if task.split_vision is not True and not offloaded:
        kept = _partition(task, whole, most)
        if kept is not None and _is_good_whole(task, kept, cut):
            return Split(whole, offloaded, kept)
    return Split(fine, offloaded, cut)


def _required(found: Partition | None) -> Partition:
    if found is None:
        raise DeviceMapError("The pins contradict each other: no contiguous split follows them.")
    return found


def _partition(
    task: Task,
    units: Sequence[Unit],
    most: int | None,
    offloaded: frozenset[str] = frozenset(),
) -> Partition | None:
    items = [task.item(unit, unit.name in offloaded) for unit in units]
    if task.objective == "fastest":
        times = _times(task, units, offloaded)
        entries = [1 if unit.in_tower else (_femto(HOP_SECONDS) << _STEP) + 1 for unit in units]
        found = quickest(items, task.budgets, times, entries, any_order=task.any_order)
        if found is not None:
            return found
    return partition(items, task.budgets, any_order=task.any_order, max_gpus=most)


def _times(task: Task, units: Sequence[Unit], offloaded: frozenset[str]) -> list[list[int]]:
    """Return for each GPU the times of each unit: of a decode step, and of the prefill after it.

    A GPU of unknown speed counts as the slowest of the others.
    """
    slowest = min((gpu.bandwidth for gpu in task.gpus if gpu.bandwidth), default=10**9)
    works = {work.name: work for work in work_of(task.shape, task.workload)}
    tower = [name for name, work in works.items() if work.in_tower]

    def time(name: str, gpu: GPU) -> int:
        _, step, prefill = unit_seconds(works[name], gpu, name in offloaded)
        return (_femto(step) << _STEP) + (_femto(prefill) << _PREFILL)

    return [
        [
            sum(time(name, gpu) for name in (tower if unit.name == "vision" else [unit.name]))
            for unit in units
        ]
        for gpu in (replace(each, bandwidth=each.bandwidth or slowest) for each in task.gpus)
    ]


def _femto(seconds: float) -> int:
    return round(seconds * _FEMTO)


def _most_gpus(
    task: Task, units: Sequence[Unit], offloaded: frozenset[str] = frozenset()
) -> int | None:
    """Return the number of GPUs that the objective allows; ``None`` for all of them."""
    if task.objective in ("balance", "fastest"):
        return None
    items = [task.item(unit, unit.name in offloaded) for unit in units]

    def within(bound: Fraction) -> int | None:
        return fewest(items, task.budgets, bound, any_order=task.any_order)

    if task.objective == "fewest":
        return within(Fraction(1))
    enough = within(HEADROOM)
    if enough is None:  # then as few as do not make the fullest GPU fuller than it has to be
        least = _partition(task, units, None, offloaded)
        enough = None if least is None else within(least.fullness)
    return enough


def _is_good_whole(task: Task, whole: Partition, cut: Partition) -> bool:
    """Tell whether a whole tower is as good as a cut one.

    By the time per token, or by the fullness of the fullest GPU.
    """
    if task.objective == "fastest" and cut.fullness <= 1:
        return whole.fullness <= 1 and whole.cost >> _PREFILL <= cut.cost >> _PREFILL
    if whole.fullness <= cut.fullness:
        return True
    return (
        task.objective == "headroom"
        and whole.fullness <= HEADROOM
        and cut.fullness > whole.fullness * NOTICEABLE
    )


def can_fit(task: Task, offloaded: frozenset[str] = frozenset()) -> bool:
    """Tell whether `best_split` fits, in a fraction of its time.

    A whole vision tower is one of the ways to split it, at the same cost, so only the fine units
    are tried.
    """
    return _fits(task, price(task.shape, task.workload), offloaded)


def _fits(task: Task, units: Sequence[Unit], offloaded: frozenset[str] = frozenset()) -> bool:
    items = [task.item(unit, unit.name in offloaded) for unit in units]
    return fits(items, task.budgets, any_order=task.any_order)


def whole_tower(shape: ModelShape, units: Sequence[Unit]) -> tuple[Unit, ...]:
    """Return `units` with those of the vision tower merged into one."""
    tower = [unit for unit in units if unit.in_tower]
    rest = [unit for unit in units if not unit.in_tower]
    if not tower:
        return tuple(rest)
    return merge(tower, "vision", shape.vision_modules, "vision"), *rest


def offloadable(task: Task) -> list[str]:
    """Return the units that may be offloaded, in the order in which they are.

    What crosses the bus once per image goes first, and the embedding, larger than a decoder layer
    and needed for as many tokens, last. Quantised layers stay on their GPUs: their weights are not
    made of one tensor that a hook could bring.
    """
    kinds = ["vision_layer", "text_layer", "embedding"]
    if task.workload.quantize:
        kinds.remove("text_layer")
    units = [unit for unit in task.shape.units if not unit.packed_values]
    return [unit.name for kind in kinds for unit in units if unit.kind == kind]


def offloaded_split(task: Task) -> Split | None:
    """Return the split that fits with the fewest offloaded layers; ``None`` if none fits.

    Offloading one more unit never makes a GPU fuller (resident weights become a transient that is
    at most as much larger), so the number is found by bisection.
    """
    names = offloadable(task)

    def enough(count: int) -> bool:
        return can_fit(task, frozenset(names[:count]))

    low, high = 0, len(names)
    if not enough(high):
        return None
    while low + 1 < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return best_split(task, frozenset(names[:high]))
