"""Cut a sequence of units into contiguous stages so that the fullest card is as empty as it can be.

Only numbers here: a unit is the bytes it keeps and the bytes it needs for a moment, a card is the
bytes it can hold. What units and cards stand for is `placement.plan`'s business.

A card that runs the units ``i..j-1`` holds ::

    base + sum(resident[i:j]) + max(transient[i:j])         (nothing at all when i == j)

because residents add up while transients come and go one unit at a time. Its *fullness* is that
over its capacity. `partition` minimises the fullness of the fullest card, exactly.

Why it is exact:

1. The cost of an interval never grows when units are taken away from either end (sums of and
   maxima over fewer non-negative numbers). So for a bound ``f`` and a fixed order of cards, giving
   each card in turn as many units as ``f`` allows is optimal: by induction, whatever another
   split has placed after k cards, this one has placed at least as much, and the units that
   remain can be treated as the other split treats them.
2. For the same reason, if the order is free, only the furthest unit reached by a *set* of used
   cards matters, not how it was reached; a dynamic programme over sets replaces the orders.
   Equal cards are interchangeable, so a set is a count per kind of card.
3. A unit that is pinned to a card stops every other card. Who is further along has already passed
   the pinned units with the right cards, so 1 and 2 still hold.
4. The answer is the fullness of some interval on some card. Halving finds a split within one in a
   million of the best; then "is there a split that is *strictly* emptier?" is asked, in integers,
   until the answer is no. There are finitely many intervals, so it ends at the optimum.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from math import prod
from operator import add

__all__ = ["MAX_SETS", "Card", "Item", "Partition", "fits", "partition"]

MAX_SETS = 4096
"""Sets of cards up to which every order is considered.

Twelve cards that all differ have so many; sixteen cards of two sizes have 81. Beyond it three
orders are tried: as given, largest card first, smallest card first.
"""

_PRECISION = Fraction(1, 2**20)
_WHOLE = Fraction(1)


@dataclass(frozen=True, slots=True)
class Item:
    """A unit, in bytes.

    Attributes:
        resident: stays on the card: weights, cache.
        transient: needed while the unit runs, returned afterwards.
        pinned: index of the card it must be on, or ``None``.
    """

    resident: int
    transient: int = 0
    pinned: int | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """A card, in bytes: what it can hold, and what is taken as soon as it is used at all."""

    capacity: int
    base: int = 0


@dataclass(frozen=True, slots=True)
class Partition:
    """Which card runs which units.

    Attributes:
        order: indices of all usable cards, in the order in which the units run through them.
        borders: per card of `order` its units as ``(first, one past the last)``; empty when equal.
        fullness: of the fullest card; above 1 it does not fit.
        exact: whether every allowed order was considered.
    """

    order: tuple[int, ...]
    borders: tuple[tuple[int, int], ...]
    fullness: Fraction
    exact: bool = True


def partition(
    items: Sequence[Item],
    cards: Sequence[Card],
    *,
    any_order: bool = True,
    max_cards: int | None = None,
    fewest: bool = False,
) -> Partition | None:
    """Return the best split of `items` over `cards`, which may be over-full (see `fullness`).

    Among equally good splits the given order of cards wins, and within an order the units are
    spread so that the sum of squared fullnesses is least.

    Args:
        items: in the order in which they run.
        cards: those with a capacity of 0 or less are never used.
        any_order: whether cards may be used in another order than given.
        max_cards: use at most so many.
        fewest: use as few cards as fit; has no effect when nothing fits.

    Returns:
        ``None`` if the pins contradict each other or the order, or there is no usable card.
    """
    usable = [index for index, card in enumerate(cards) if card.capacity > 0]
    if not items or not usable:
        return None
    tables = _Tables(items)
    searches, exact = _searches(tables, cards, usable, any_order)
    if fewest:
        max_cards = _fewest([search for search, _ in searches], len(usable))

    best: Partition | None = None
    for search, order in searches:
        found = _least(search, tables, cards, max_cards)
        if found is None or (best is not None and found[0] >= best.fullness):
            continue
        full, stages = found
        used = tuple(card for card, _, _ in stages)
        idle = tuple(index for index in usable if index not in used)
        through = used if max_cards is not None else order or used + idle
        best = Partition(through, (), full, exact)
    return None if best is None else replace(best, borders=_spread(best, tables, cards))


def fits(items: Sequence[Item], cards: Sequence[Card], *, any_order: bool = True) -> bool:
    """Whether `partition` finds a split that over-fills no card, without looking for the best."""
    usable = [index for index, card in enumerate(cards) if card.capacity > 0]
    if not items or not usable:
        return False
    searches, _ = _searches(_Tables(items), cards, usable, any_order)
    return any(search(_WHOLE, False, None) is not None for search, _ in searches)


class _Tables:
    """Costs of intervals, and where pins stop a card."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.count = len(items)
        self._residents = [item.resident for item in items]
        self._transients = [item.transient for item in items]
        self._costs: list[list[int] | None] = [None] * self.count
        self.pins = [item.pinned for item in items]
        self.pinned_cards = {pin for pin in self.pins if pin is not None}
        self._stops: dict[int | None, list[int]] = {}

    def costs(self, first: int) -> list[int]:
        """Per number of units, less one, what so many of them cost that begin with `first`."""
        costs = self._costs[first]
        if costs is None:  # a search begins a card at few of the units
            sums = accumulate(self._residents[first:])
            peaks = accumulate(self._transients[first:], max)
            costs = self._costs[first] = list(map(add, sums, peaks))
        return costs

    def stops(self, card: int | None) -> list[int]:
        """Per unit the next one, itself included, that is pinned to another card than `card`."""
        if card not in self._stops:
            stops = [self.count] * (self.count + 1)
            for unit in reversed(range(self.count)):
                foreign = self.pins[unit] is not None and self.pins[unit] != card
                stops[unit] = unit if foreign else stops[unit + 1]
            self._stops[card] = stops
        return self._stops[card]

    def reach(self, first: int, limit: int, stops: Sequence[int]) -> int:
        """One past the last unit that a card with `limit` bytes can run, starting at `first`."""
        if first == self.count:
            return first
        return min(first + bisect_right(self.costs(first), limit), stops[first])


_Stages = list[tuple[int, int, int]]  # card, first unit, one past the last
_Search = Callable[[Fraction, bool, int | None], _Stages | None]  # bound, strictly below, max cards


def _searches(
    tables: _Tables, cards: Sequence[Card], usable: Sequence[int], any_order: bool
) -> tuple[list[tuple[_Search, tuple[int, ...]]], bool]:
    """Searches to run, each with its order of cards (empty if free), and if that is all orders."""
    orders = [tuple(usable)]
    kinds = _kinds(tables, cards, usable) if any_order else []
    exact = prod(len(kind) + 1 for kind in kinds) <= MAX_SETS
    if not exact:
        largest_first = sorted(usable, key=lambda index: -cards[index].capacity)
        orders += [tuple(largest_first), tuple(reversed(largest_first))]
    searches = [(_in_order(tables, cards, order), order) for order in orders]
    if exact and len(kinds) > 1:
        searches.append((_any_order(tables, cards, kinds), ()))
    return searches, exact


def _limit(card: Card, bound: Fraction, strictly: bool) -> int:
    """Most bytes of units on `card` so that its fullness is at (or strictly below) `bound`."""
    product = bound.numerator * card.capacity
    return (product - strictly) // bound.denominator - card.base


def _in_order(tables: _Tables, cards: Sequence[Card], order: Sequence[int]) -> _Search:
    """Search for a split that uses cards in `order`, skipping some where that helps."""
    stops = {index: tables.stops(index) for index in order}

    def search(bound: Fraction, strictly: bool, max_cards: int | None) -> _Stages | None:
        most = len(order) if max_cards is None else min(max_cards, len(order))
        # furthest[k]: the unit reached with k cards, and the stages that reach it
        furthest: list[tuple[int, _Stages]] = [(0, []), *((-1, []) for _ in range(most))]
        for index in order:
            limit = _limit(cards[index], bound, strictly)
            for used in reversed(range(most)):
                first, stages = furthest[used]
                if first < 0:
                    continue
                end = tables.reach(first, limit, stops[index])
                if end > max(first, furthest[used + 1][0]):
                    furthest[used + 1] = end, [*stages, (index, first, end)]
        return next((stages for end, stages in furthest if end == tables.count), None)

    return search


def _kinds(tables: _Tables, cards: Sequence[Card], usable: Sequence[int]) -> list[list[int]]:
    """Group cards that are interchangeable: same size, and no unit pinned to them."""
    groups: dict[tuple[Card, int | None], list[int]] = {}
    for index in usable:
        own = index if index in tables.pinned_cards else None
        groups.setdefault((cards[index], own), []).append(index)
    return list(groups.values())


def _any_order(tables: _Tables, cards: Sequence[Card], groups: list[list[int]]) -> _Search:
    """Search for a split in any order: a dynamic programme over sets of used cards."""
    # A set is a number whose digit per group counts the used cards of that group.
    strides = [prod(len(group) + 1 for group in groups[:place]) for place in range(len(groups))]
    sets = prod(len(group) + 1 for group in groups)
    digits = [
        [number // stride % (len(group) + 1) for stride, group in zip(strides, groups, strict=True)]
        for number in range(sets)
    ]
    stops = [tables.stops(group[0]) for group in groups]

    def search(bound: Fraction, strictly: bool, max_cards: int | None) -> _Stages | None:
        limits = [_limit(cards[group[0]], bound, strictly) for group in groups]
        furthest = [0] + [-1] * (sets - 1)
        came_by = [-1] * sets
        for number in range(1, sets):
            if max_cards is not None and sum(digits[number]) > max_cards:
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
    """Walk back from a set to the empty one; equal cards come out in the given order."""
    backwards = []
    while number:
        place = came_by[number]
        before = number - strides[place]
        if furthest[before] < furthest[number]:
            backwards.append((place, furthest[before], furthest[number]))
        number = before
    cards = [iter(group) for group in groups]
    return [(next(cards[place]), first, end) for place, first, end in reversed(backwards)]


def _fewest(searches: Sequence[_Search], cards: int) -> int | None:
    """Least number of cards that fit; ``None`` if all of them do not."""
    counts = range(1, cards + 1)
    return next((n for n in counts if any(search(_WHOLE, False, n) for search in searches)), None)


def _least(
    search: _Search, tables: _Tables, cards: Sequence[Card], max_cards: int | None
) -> tuple[Fraction, _Stages] | None:
    """Return the least fullness that `search` can reach and the stages that reach it."""

    def fullness(stages: _Stages) -> Fraction:
        return max(_fullness(cards[c], tables.costs(i)[j - i - 1]) for c, i, j in stages)

    # Every single interval is allowed under this bound, so only pins can stand in the way.
    smallest = min(card.capacity for card in cards if card.capacity > 0)
    widest = tables.costs(0)[-1] + max(card.base for card in cards)
    found = search(Fraction(widest, smallest), False, max_cards)
    if found is None:
        return None
    best, high, low = found, fullness(found), Fraction(0)
    while high - low > high * _PRECISION:
        middle = (low + high) / 2
        found = search(middle, False, max_cards)
        if found is None:
            low = middle
        else:
            best, high = found, fullness(found)
    while found := search(high, True, max_cards):
        best, high = found, fullness(found)
    return high, best


def _fullness(card: Card, cost: int) -> Fraction:
    return Fraction(card.base + cost, card.capacity)


def _spread(best: Partition, tables: _Tables, cards: Sequence[Card]) -> tuple[tuple[int, int], ...]:
    """Borders with the least sum of squared fullnesses among those that keep the optimum."""
    count = tables.count
    least = [0.0] + [float("inf")] * count  # over the cards so far, per number of units placed
    moves: list[list[int]] = []  # per card and number of units placed: where the card began
    for index in best.order:
        card = cards[index]
        limit = _limit(card, best.fullness, False)
        stops = tables.stops(index)
        following, begins = least[:], list(range(count + 1))
        for first in range(count):
            if least[first] == float("inf"):
                continue
            before = least[first]
            possible = tables.costs(first)[: tables.reach(first, limit, stops) - first]
            for end, cost in enumerate(possible, start=first + 1):
                share = (card.base + cost) / card.capacity
                if before + share * share < following[end]:
                    following[end], begins[end] = before + share * share, first
        least = following
        moves.append(begins)
    borders = []
    end = count
    for begins in reversed(moves):
        borders.append((begins[end], end))
        end = begins[end]
    return tuple(reversed(borders))
