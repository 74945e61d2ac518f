"""Split a sequence of units into contiguous stages that fit, at the least total cost.

Here is only arithmetic, as in `partition`: a unit costs a whole number on each GPU, and a stage
costs another that depends on its last unit. `planning.search` makes both of times.

Among the splits in which no GPU is fuller than its capacity, the one with the least sum is found
exactly, and of those with the same sum one whose fullest GPU is emptiest. A state is a set of used
GPUs (a count per kind of GPU) and a number of units placed; costs add up, and the fullest of a
longer split is the fuller of what was there and the new stage, so the best way to a state begins
with the best way to an earlier one.

A GPU that takes over at unit ``i`` and ends before ``j`` adds ``sums[j] - sums[i]``: of the units
that it may begin with, those with the least cost so far less ``sums[i]`` are best whatever ``j``
is. These begins form a window that only moves on, for a GPU that begins later reaches further.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from math import inf, prod
from typing import NamedTuple

from glm4v_magic.planning.partition import (
    Budget,
    Item,
    Partition,
    Tables,
    fullness_of,
    kinds_of,
    limit_of,
    spread,
)

__all__ = ["MOST_SETS", "quickest"]


MOST_SETS = 1024
"""Number of sets of GPUs up to which every order is considered; see `partition.MAX_SETS`.

Of ten different GPUs there are as many, and these take some seconds.
"""


class _Way(NamedTuple):
    """The best way to place some units, with the stages that do it, the last first."""

    cost: int
    fullness: Fraction
    stages: tuple[int, int, int, object] | None  # group, first, one past the last, before


_Ways = list[_Way | None]  # by number of units placed

_ROUNDED = 1e-9  # far above the rounding errors of floats


class _Begin(NamedTuple):
    """Where a stage may begin.

    Attributes:
        key: cost so far less that of all units so far.
        first: its first unit.
        way: the way up to it.
        rough: about how many bytes of the GPU are as full as the way is.
        costs: bytes of the units from the first on, by their number less one.
    """

    key: int
    first: int
    way: _Way
    rough: float
    costs: Sequence[int]


def quickest(
    items: Sequence[Item],
    budgets: Sequence[Budget],
    costs: Sequence[Sequence[int]],
    entries: Sequence[int],
    *,
    any_order: bool = True,
) -> Partition | None:
    """Return the split of least cost that fits, with the fullest GPU as empty as that allows.

    The cost is the sum of the units' and the stages'.

    Args:
        items: units in execution order.
        budgets: GPUs; those with a capacity of 0 or less are never used.
        costs: for each of `budgets` the cost of each of `items`.
        entries: for each of `items`, the cost of a stage that ends with it.
        any_order: whether GPUs may be used in another order than given.

    Returns:
        The split; ``None`` if none fits.
    """
    usable = [index for index, budget in enumerate(budgets) if budget.capacity > 0]
    if not items or not usable:
        return None
    tables = Tables(items)
    sums = [list(accumulate(each, initial=0)) for each in costs]
    alike = [tuple(each) for each in costs]
    groups = kinds_of(tables, budgets, usable, alike) if any_order else []
    exact = prod(len(group) + 1 for group in groups) <= MOST_SETS
    stages = _Stages(tables, budgets, sums, entries)
    ways: list[tuple[_Way, Sequence[Sequence[int]]]] = []
    if any_order and exact:
        ways = [(way, groups) for way in stages.in_any_order(groups)]
    else:
        orders = [usable]
        if not exact:
            fast_first = sorted(usable, key=lambda index: (sums[index][-1], index))
            large_first = sorted(usable, key=lambda index: -budgets[index].capacity)
            orders += [fast_first, fast_first[::-1], large_first]
        singles = [[index] for index in range(len(budgets))]
        ways = [(way, singles) for order in orders for way in stages.in_order(order)]
    if not ways:
        return None
    best, named = min(ways, key=lambda each: each[0][:2])
    order = tuple(_gpus(best, named))
    idle = tuple(index for index in usable if index not in order)
    found = Partition(order, (), best.fullness, exact, best.cost)
    borders = spread(found, tables, budgets, sums, entries)
    return replace(found, order=order + idle, borders=borders + ((len(items),) * 2,) * len(idle))


def _gpus(way: _Way, groups: Sequence[Sequence[int]]) -> Iterator[int]:
    """Yield the GPUs of a way's stages; equal ones in the given order."""
    backwards = []
    stages = way.stages
    while stages is not None:
        backwards.append(stages[0])
        stages = stages[3]  # type: ignore[assignment]
    left = {group: iter(groups[group]) for group in backwards}
    return (next(left[group]) for group in reversed(backwards))


class _Stages:
    """Adds stages to ways."""

    def __init__(
        self,
        tables: Tables,
        budgets: Sequence[Budget],
        sums: Sequence[Sequence[int]],
        entries: Sequence[int],
    ) -> None:
        self._tables, self._budgets, self._sums, self._entries = tables, budgets, sums, entries
        self._reaches: dict[int, list[int]] = {}

    def in_order(self, order: Sequence[int]) -> Iterator[_Way]:
        """Yield the best way through GPUs in an order, some of them skipped, if there is one."""
        ways = self._nothing()
        for index in order:
            _merge(ways, self._extended(ways, index, index))
        yield from (way for way in ways[-1:] if way is not None)

    def in_any_order(self, groups: Sequence[Sequence[int]]) -> Iterator[_Way]:
        """Yield the best way with each set of GPUs that has one; one of each group is alike."""
        strides = [prod(len(group) + 1 for group in groups[:n]) for n in range(len(groups))]
        found = [self._nothing()]
        for number in range(1, prod(len(group) + 1 for group in groups)):
            ways: _Ways = [None] * (self._tables.count + 1)
            for place, (stride, group) in enumerate(zip(strides, groups, strict=True)):
                if number // stride % (len(group) + 1):
                    _merge(ways, self._extended(found[number - stride], group[0], place))
            found.append(ways)
            yield from (way for way in ways[-1:] if way is not None)

    def _nothing(self) -> _Ways:
        start: _Ways = [_Way(0, Fraction(0), None)]
        return start + [None] * self._tables.count

    def _reach(self, index: int) -> list[int]:
        """Return one past the last unit that a GPU can run, by the unit that it begins with."""
        if index not in self._reaches:
            limit = limit_of(self._budgets[index], Fraction(1), False)
            stops = self._tables.stops(index)
            firsts = range(self._tables.count)
            self._reaches[index] = [self._tables.reach(each, limit, stops) for each in firsts]
        return self._reaches[index]

    def _extended(self, before: _Ways, index: int, group: int) -> _Ways:
        """Return the best ways that end with a stage on a GPU."""
        sums, reach = self._sums[index], self._reach(index)
        after: _Ways = [None] * len(before)
        window: deque[_Begin] = deque()
        for end in range(1, len(before)):
            way = before[end - 1]
            if way is not None:
                key = way.cost - sums[end - 1]
                while window and window[-1].key > key:
                    window.pop()
                rough = float(way.fullness) * self._budgets[index].capacity
                window.append(_Begin(key, end - 1, way, rough, self._tables.costs(end - 1)))
            while window and reach[window[0].first] < end:
                window.popleft()
            if window:
                fullness, stages = self._emptiest(window, index, end, group)
                cost = window[0].key + sums[end] + self._entries[end - 1]
                after[end] = _Way(cost, fullness, stages)
        return after

    def _emptiest(
        self, window: deque[_Begin], index: int, end: int, group: int
    ) -> tuple[Fraction, tuple[int, int, int, object]]:
        """Return the least fullness of the begins that cost as little as the first, and stages."""
        budget = self._budgets[index]
        cheapest = window[0].key
        # Fractions are slow: floats leave few of the begins to them.
        rough: list[tuple[float, _Begin]] = []
        least = inf
        for begin in reversed(window):
            if begin.key != cheapest:
                continue
            cost = budget.base + begin.costs[end - begin.first - 1]
            if cost > least * (1 + _ROUNDED):  # a begin further ahead takes even more
                break
            rough.append((max(begin.rough, cost), begin))
            least = min(least, rough[-1][0])
        least *= 1 + _ROUNDED
        best = None
        for size, (_, first, way, _, costs) in reversed(rough):
            if size > least:
                continue
            fullness = max(way.fullness, fullness_of(budget, costs[end - first - 1]))
            if best is None or fullness < best[0]:
                best = fullness, (group, first, end, way.stages)
        assert best is not None
        return best


def _merge(ways: _Ways, others: _Ways) -> None:
    """Keep the better of two ways to each number of units."""
    for count, other in enumerate(others):
        way = ways[count]
        if other is not None and (way is None or other[:2] < way[:2]):
            ways[count] = other
