"""Split a sequence of units into contiguous stages so that the fullest GPU is least full.

Here is only arithmetic: a unit is its resident and its transient bytes, a GPU its capacity in
bytes. `planning.plan` knows what they stand for.

A GPU that runs the units ``i..j-1`` needs ::

    base + sum(resident[i:j]) + max(sum(cache[i:k+1]) + transient[k] for i <= k < j)

and nothing at all when ``i == j``, because resident bytes add up while transients exist for one
unit at a time, beside the KV cache of this one and those before it. In a decode step all of the
cache is there, and one unit's `Item.step`: the larger of the two counts. A transient may contain
what the unit before keeps resident, which on the same GPU is counted once (`Item.shared`). What is
resident while the vision tower runs is another sum, with other transients, and what is there while
the weights are loaded a third; a GPU needs the largest of them (`needed`). Its *fullness* is what
it needs over its capacity. `partition` minimises the fullness of the fullest GPU, exactly.

Why it is exact:

1. The cost of an interval never grows when units are taken away from either end (sums of and
   maxima over fewer non-negative numbers, and the larger of two such; what a first unit then no
   longer shares was resident in the one taken away). So for a bound ``f`` and a
   fixed order of GPUs, giving each GPU in turn as many units as ``f`` allows is optimal: by
   induction, whatever another split has placed after k GPUs, this one has placed at least as
   much, and the units that remain can be treated as the other split treats them.
2. For the same reason, if the order is free, only the furthest unit reached by a *set* of used
   GPUs matters, not how it was reached; a dynamic programme over sets replaces the orders.
   Equal GPUs are interchangeable, so a set is a count per kind of GPU.
3. A unit that is pinned to a GPU stops every other GPU. A split that is further along has passed
   the pinned units with the right GPUs, so 1 and 2 still hold.
4. The optimum is the fullness of some interval on some GPU. Bisection finds a split within one in a
   million of it; then "is there a split that is *strictly* less full?" is asked, in integers,
   until the answer is no. There are finitely many intervals, so it ends at the optimum.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from math import prod
from operator import add

__all__ = [
    "MAX_SETS",
    "Budget",
    "Item",
    "Partition",
    "Tables",
    "fewest",
    "fits",
    "fullness_of",
    "kinds_of",
    "limit_of",
    "needed",
    "partition",
    "spread",
]

MAX_SETS = 4096
"""Number of sets of GPUs up to which every order is considered.

Twelve different GPUs have that many; sixteen GPUs of two sizes have 81. Beyond it three orders are
tried: as given, largest GPU first, smallest GPU first.
"""

_PRECISION = Fraction(1, 2**20)
_WHOLE = Fraction(1)


@dataclass(frozen=True, slots=True)
class Item:
    """A unit. Sizes in bytes.

    Attributes:
        resident: bytes that stay on the GPU: weights, activations that stay.
        transient: bytes needed while the unit runs, freed afterwards.
        pinned: index of the GPU that it must be on, or ``None``.
        tower_resident: as `resident`, while the vision tower runs.
        tower_transient: as `transient`, while the vision tower runs; 0 except for units of the
            tower.
        shared: bytes of `transient` that are also in `resident` of the unit before.
        cache: bytes that stay once the unit has run: its KV cache.
        step: bytes needed while the unit runs in a decode step, freed afterwards.
        tower_shared: as `shared`, of `tower_transient` and `tower_resident`.
        early: as `resident`, while the weights of others are loaded.
        arrival: as `transient`, while those of the unit are loaded.
    """

    resident: int
    transient: int = 0
    pinned: int | None = None
    tower_resident: int = 0
    tower_transient: int = 0
    shared: int = 0
    cache: int = 0
    step: int = 0
    tower_shared: int = 0
    early: int = 0
    arrival: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """A GPU: its capacity in bytes, and the bytes that any use of it takes."""

    capacity: int
    base: int = 0


@dataclass(frozen=True, slots=True)
class Partition:
    """A split: which GPU runs which units.

    Attributes:
        order: indices of all usable GPUs, in execution order.
        borders: units of each GPU in `order`, as ``(first, one past the last)``; the two are equal
            for an idle GPU.
        fullness: fullness of the fullest GPU; above 1 the split does not fit.
        exact: whether every allowed order was considered.
        cost: cost that `quickest.quickest` has minimised; 0 if it did not make the split.
    """

    order: tuple[int, ...]
    borders: tuple[tuple[int, int], ...]
    fullness: Fraction
    exact: bool = True
    cost: int = 0


def partition(
    items: Sequence[Item],
    budgets: Sequence[Budget],
    *,
    any_order: bool = True,
    max_gpus: int | None = None,
) -> Partition | None:
    """Return the best split of `items` over `budgets`; it may be over-full (see `fullness`).

    Among equally good splits the given order of GPUs is preferred, and within an order the units
    are spread so that the sum of squared fullnesses is least.

    Args:
        items: units in execution order.
        budgets: GPUs; those with a capacity of 0 or less are never used.
        any_order: whether GPUs may be used in another order than given.
        max_gpus: maximum number of GPUs to use.

    Returns:
        The split; ``None`` if the pins contradict each other or the order, or no GPU is usable.
    """
    usable = [index for index, budget in enumerate(budgets) if budget.capacity > 0]
    if not items or not usable:
        return None
    tables = Tables(items)
    searches, exact = _searches(tables, budgets, usable, any_order)

    best: Partition | None = None
    for search, order in searches:
        found = _least(search, tables, budgets, max_gpus)
        if found is None or (best is not None and found[0] >= best.fullness):
            continue
        full, stages = found
        used = tuple(budget for budget, _, _ in stages)
        idle = tuple(index for index in usable if index not in used)
        through = used if max_gpus is not None else order or used + idle
        best = Partition(through, (), full, exact)
    return None if best is None else replace(best, borders=spread(best, tables, budgets))


def fewest(
    items: Sequence[Item],
    budgets: Sequence[Budget],
    bound: Fraction = _WHOLE,
    *,
    any_order: bool = True,
) -> int | None:
    """Return the least number of GPUs with which some split is no fuller than `bound`.

    Returns:
        The number; ``None`` if all of them are too few.
    """
    usable = [index for index, budget in enumerate(budgets) if budget.capacity > 0]
    if not items or not usable:
        return None
    searches, _ = _searches(Tables(items), budgets, usable, any_order)
    counts = range(1, len(usable) + 1)
    return next((n for n in counts if any(search(bound, False, n) for search, _ in searches)), None)


def fits(items: Sequence[Item], budgets: Sequence[Budget], *, any_order: bool = True) -> bool:
    """Tell whether `partition` would find a split that fits, without searching for the best."""
    usable = [index for index, budget in enumerate(budgets) if budget.capacity > 0]
    if not items or not usable:
        return False
    searches, _ = _searches(Tables(items), budgets, usable, any_order)
    return any(search(_WHOLE, False, None) is not None for search, _ in searches)


def needed(items: Sequence[Item]) -> int:
    """Return the bytes that a GPU with all of `items`, at least one, needs beside its base."""
    return Tables(items).costs(0)[-1]


class Tables:
    """Costs of intervals of units, and the units where pins stop a GPU."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.count = len(items)
        self._residents = [item.resident for item in items]
        self._transients = [item.transient for item in items]
        self._after_others = [item.transient - item.shared for item in items]
        self._tower_after_others = [item.tower_transient - item.tower_shared for item in items]
        self._caches = [item.cache for item in items]
        self._steps = [item.step for item in items]
        self._tower_residents = [item.tower_resident for item in items]
        self._tower_transients = [item.tower_transient for item in items]
        self._early = [item.early for item in items]
        self._arrivals = [item.arrival for item in items]
        self._costs: list[list[int] | None] = [None] * self.count
        self.pins = [item.pinned for item in items]
        self.pinned_gpus = {pin for pin in self.pins if pin is not None}
        self._stops: dict[int | None, list[int]] = {}

    def costs(self, first: int) -> list[int]:
        """Return costs of the intervals from `first` on, indexed by their length less one."""
        costs = self._costs[first]
        if costs is None:  # computed on demand: a search starts a GPU at few of the units
            costs = self._costs[first] = self._needed(first)
        return costs

    def _needed(self, first: int) -> list[int]:
        """Return the bytes needed by the unit `first`, by it and the next one, and so on."""
        sums = accumulate(self._residents[first:])
        # the unit before the first is on another GPU, or nowhere
        transients = [self._transients[first], *self._after_others[first + 1 :]]
        caches = [*accumulate(self._caches[first:])]
        peaks = accumulate(map(add, caches, transients), max)
        steps = map(add, caches, accumulate(self._steps[first:], max))
        tower_sums = accumulate(self._tower_residents[first:])
        in_tower = [self._tower_transients[first], *self._tower_after_others[first + 1 :]]
        tower_peaks = accumulate(in_tower, max)
        early = accumulate(self._early[first:])
        arrivals = accumulate(self._arrivals[first:], max)
        return list(
            map(
                max,
                map(add, sums, map(max, peaks, steps)),
                map(add, tower_sums, tower_peaks),
                map(add, early, arrivals),
            )
        )

    def stops(self, budget: int | None) -> list[int]:
        """Return for each unit the next one, itself included, that is pinned to another GPU."""
        if budget not in self._stops:
            stops = [self.count] * (self.count + 1)
            for unit in reversed(range(self.count)):
                foreign = self.pins[unit] is not None and self.pins[unit] != budget
                stops[unit] = unit if foreign else stops[unit + 1]
            self._stops[budget] = stops
        return self._stops[budget]

    def reach(self, first: int, limit: int, stops: Sequence[int]) -> int:
        """Return one past the last unit that a GPU with `limit` bytes can run from `first` on."""
        if first == self.count:
            return first
        return min(first + bisect_right(self.costs(first), limit), stops[first])


_Stages = list[tuple[int, int, int]]  # GPU, first unit, one past the last
_Search = Callable[[Fraction, bool, int | None], _Stages | None]  # bound, strictly below, max GPUs


def _searches(
    tables: Tables, budgets: Sequence[Budget], usable: Sequence[int], any_order: bool
) -> tuple[list[tuple[_Search, tuple[int, ...]]], bool]:
    """Return searches with their GPU orders (empty if free), and whether they cover all orders."""
    orders = [tuple(usable)]
    kinds = kinds_of(tables, budgets, usable) if any_order else []
    exact = prod(len(kind) + 1 for kind in kinds) <= MAX_SETS
    if not exact:
        largest_first = sorted(usable, key=lambda index: -budgets[index].capacity)
        orders += [tuple(largest_first), tuple(reversed(largest_first))]
    searches = [(_in_order(tables, budgets, order), order) for order in orders]
    if exact and len(kinds) > 1:
        searches.append((_any_order(tables, budgets, kinds), ()))
    return searches, exact


def limit_of(budget: Budget, bound: Fraction, strictly: bool) -> int:
    """Return the most bytes of units that keep the fullness at (or strictly below) `bound`."""
    product = bound.numerator * budget.capacity
    return (product - strictly) // bound.denominator - budget.base


def _in_order(tables: Tables, budgets: Sequence[Budget], order: Sequence[int]) -> _Search:
    """Return a search for a split that uses GPUs in `order`, skipping some where that helps."""
    stops = {index: tables.stops(index) for index in order}

    def search(bound: Fraction, strictly: bool, max_gpus: int | None) -> _Stages | None:
        most = len(order) if max_gpus is None else min(max_gpus, len(order))
        # furthest[k]: the unit reached with k GPUs, and the stages that reach it
        furthest: list[tuple[int, _Stages]] = [(0, []), *((-1, []) for _ in range(most))]
        for index in order:
            limit = limit_of(budgets[index], bound, strictly)
            for used in reversed(range(most)):
                first, stages = furthest[used]
                if first < 0:
                    continue
                end = tables.reach(first, limit, stops[index])
                if end > max(first, furthest[used + 1][0]):
                    furthest[used + 1] = end, [*stages, (index, first, end)]
        return next((stages for end, stages in furthest if end == tables.count), None)

    return search


def kinds_of(
    tables: Tables,
    budgets: Sequence[Budget],
    usable: Sequence[int],
    also: Sequence[Hashable] | None = None,
) -> list[list[int]]:
    """Group GPUs that are interchangeable: same size, and no unit pinned to them.

    Args:
        tables: the units.
        budgets: the GPUs.
        usable: indices of those that may be used.
        also: what else must be equal, for each of `budgets`.
    """
    groups: dict[Hashable, list[int]] = {}
    for index in usable:
        own = index if index in tables.pinned_gpus else None
        other = None if also is None else also[index]
        groups.setdefault((budgets[index], own, other), []).append(index)
    return list(groups.values())


def _any_order(tables: Tables, budgets: Sequence[Budget], groups: list[list[int]]) -> _Search:
    """Return a search in any order: a dynamic programme over sets of used GPUs."""
    # A set is a number whose digit per group counts the used GPUs of that group.
    strides = [prod(len(group) + 1 for group in groups[:place]) for place in range(len(groups))]
    sets = prod(len(group) + 1 for group in groups)
    digits = [
        [number // stride % (len(group) + 1) for stride, group in zip(strides, groups, strict=True)]
        for number in range(sets)
    ]
    stops = [tables.stops(group[0]) for group in groups]

    def search(bound: Fraction, strictly: bool, max_gpus: int | None) -> _Stages | None:
        limits = [limit_of(budgets[group[0]], bound, strictly) for group in groups]
        furthest = [0] + [-1] * (sets - 1)
        came_by = [-1] * sets
        for number in range(1, sets):
            if max_gpus is not None and sum(digits[number]) > max_gpus:
                continue
            for place, used in enumerate(digits[number]):
                if used == 0:
                    continue
                before = furthest[number - strides[place]]
                end = tables.reach(before, limits[place], stops[place])
                if end > furthest[number]:
                    furthest[number], came_by[number] = end, place
            if furthest[number] == tables.count:
                return _trace(number, furthest, came_by, strides, groups)
        return None

    return search


def _trace(
    number: int,
    furthest: Sequence[int],
    came_by: Sequence[int],
    strides: Sequence[int],
    groups: Sequence[Sequence[int]],
) -> _Stages:
    """Trace stages back from a set to the empty one; equal GPUs come out in the given order."""
    backwards = []
    while number:
        place = came_by[number]
        before = number - strides[place]
        if furthest[before] < furthest[number]:
            backwards.append((place, furthest[before], furthest[number]))
        number = before
    budgets = [iter(group) for group in groups]
    return [(next(budgets[place]), first, end) for place, first, end in reversed(backwards)]


def _least(
    search: _Search, tables: Tables, budgets: Sequence[Budget], max_gpus: int | None
) -> tuple[Fraction, _Stages] | None:
    """Return the least fullness that `search` can reach and the stages that reach it."""

    def fullness(stages: _Stages) -> Fraction:
        return max(fullness_of(budgets[c], tables.costs(i)[j - i - 1]) for c, i, j in stages)

    # Every interval is allowed under this bound, so only pins can prevent a split.
    smallest = min(budget.capacity for budget in budgets if budget.capacity > 0)
    widest = tables.costs(0)[-1] + max(budget.base for budget in budgets)
    found = search(Fraction(widest, smallest), False, max_gpus)
    if found is None:
        return None
    best, high, low = found, fullness(found), Fraction(0)
    while high - low > high * _PRECISION:
        middle = (low + high) / 2
        found = search(middle, False, max_gpus)
        if found is None:
            low = middle
        else:
            best, high = found, fullness(found)
    while found := search(high, True, max_gpus):
        best, high = found, fullness(found)
    return high, best


def fullness_of(budget: Budget, cost: int) -> Fraction:
    """Return the fullness of a GPU by the bytes that its units need."""
    return Fraction(budget.base + cost, budget.capacity)


def spread(
    best: Partition,
    tables: Tables,
    budgets: Sequence[Budget],
    sums: Sequence[Sequence[int]] | None = None,
    entries: Sequence[int] = (),
) -> tuple[tuple[int, int], ...]:
    """Return the borders with the least sum of squared fullnesses that keep the optimum.

    Args:
        best: a split; its order and fullness count.
        tables: its units.
        budgets: its GPUs.
        sums: for each of `budgets` the cost of no unit, of the first, of the first two, and so on;
            the total cost is minimised before any fullness counts.
        entries: for each unit, the cost of a stage that ends with it; with `sums` only.
    """
    count = tables.count
    never = (float("inf"), float("inf"))
    # Over the GPUs so far, per number of units placed.
    least: list[tuple[float, float]] = [(0, 0.0), *[never] * count]
    moves: list[list[int]] = []  # per GPU and number of units placed: where the GPU began
    for index in best.order:
        base, capacity = budgets[index].base, budgets[index].capacity
        limit = limit_of(budgets[index], best.fullness, False)
        stops = tables.stops(index)
        spent = sums[index] if sums is not None else [0] * (count + 1)
        with_entry = [0, *map(add, spent[1:], entries)] if entries else spent
        following, begins = least[:], list(range(count + 1))
        for first in range(count):
            cost, before = least[first]
            if before == never[1]:
                continue
            possible = tables.costs(first)[: tables.reach(first, limit, stops) - first]
            cost -= spent[first]
            for end, size in enumerate(possible, start=first + 1):
                share = (base + size) / capacity
                found = cost + with_entry[end], before + share * share
                if found < following[end]:
                    following[end], begins[end] = found, first
        least = following
        moves.append(begins)
    borders = []
    end = count
    for begins in reversed(moves):
        borders.append((begins[end], end))
        end = begins[end]
    return tuple(reversed(borders))
