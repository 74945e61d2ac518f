"""The search behind `planning.plan`: the best split of units over GPUs for a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.core.options import Objective
from glm4v_magic.planning.costs import Unit, merge, price
from glm4v_magic.planning.partition import Budget, Item, Partition, fits, partition

__all__ = [
    "DEFAULT_RESERVE",
    "Split",
    "Task",
    "best_split",
    "can_fit",
    "item_of",
    "offloaded_split",
    "whole_tower",
]


DEFAULT_RESERVE = Fraction(3, 100)
"""Fraction of a GPU that is kept free: in tests modules take at most 3 % more than priced."""


@dataclass(frozen=True, slots=True)
class Task:
    """Checked arguments of `plan`, by the same names."""

    shape: ModelShape
    gpus: tuple[GPU, ...]
    workload: Workload
    objective: Objective
    reserve: int | None
    overhead: int
    pin: Mapping[str, int]
    any_order: bool
    split_vision: bool

    @property
    def budgets(self) -> list[Budget]:
        """Budgets in the order of `gpus`."""
        return [Budget(gpu.usable_bytes - self._reserved(gpu), self.overhead) for gpu in self.gpus]

    def _reserved(self, gpu: GPU) -> int:
        return int(gpu.total_bytes * DEFAULT_RESERVE) if self.reserve is None else self.reserve

    def item(self, unit: Unit, offloaded: bool = False) -> Item:
        """Return the cost of `unit`; if offloaded, its weights are transient."""
        return item_of(unit, self._place(unit), offloaded)

    def _place(self, unit: Unit) -> int | None:
        """Return the place in `gpus` of the GPU that a unit is pinned to, if any."""
        stem = unit.name.partition(".")[0]
        index = self.pin.get(unit.name, self.pin.get(stem))
        return next((at for at, gpu in enumerate(self.gpus) if gpu.index == index), None)


def item_of(unit: Unit, pinned: int | None = None, offloaded: bool = False) -> Item:
    """Return the cost of `unit`; if offloaded, its weights are transient."""
    away = unit.weight_bytes if offloaded else 0
    transient = unit.transient_bytes + away
    return Item(
        unit.resident_bytes - away,
        0 if unit.in_tower else transient,
        pinned,
        unit.tower_resident_bytes - away,
        transient if unit.in_tower else 0,
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


def best_split(task: Task, offloaded: frozenset[str] = frozenset()) -> Split | None:
    """Return the best split, the vision tower whole if that fits; ``None`` if no GPU is usable.

    Raises:
        DeviceMapError: if the pins contradict each other.
    """
    if not any(budget.capacity > 0 for budget in task.budgets):
        return None
    units = price(task.shape, task.workload)
    if not (task.split_vision or offloaded):
        whole = whole_tower(task.shape, units)
        if _fits(task, whole):
            units = whole
    result = partition(
        [task.item(unit, unit.name in offloaded) for unit in units],
        task.budgets,
        any_order=task.any_order,
        fewest=task.objective == "fewest",
    )
    if result is None:
        raise DeviceMapError("The pins contradict each other: no contiguous split follows them.")
    return Split(units, offloaded, result)


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


def offloaded_split(task: Task) -> Split | None:
    """Return the split that fits with the fewest offloaded layers; ``None`` if none fits.

    Offloading one more unit never makes a GPU fuller (resident weights become a transient that is
    at most as much larger), so the number is found by bisection.
    """
    units = price(task.shape, task.workload)
    kinds = ["vision_layer"] + ([] if task.workload.quantize else ["text_layer"])
    names = [unit.name for kind in kinds for unit in units if unit.kind == kind]

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
