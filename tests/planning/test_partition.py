"""The optimiser, against exhaustive search."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import combinations_with_replacement, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4v_magic.planning.partition import (
    MAX_SETS,
    Budget,
    Item,
    Partition,
    fewest,
    fits,
    partition,
)


def fullness(items: list[Item], budgets: list[Budget], split: Partition) -> Fraction:
    """Fullness of the fullest GPU of `split`, added up from scratch."""
    shares = [Fraction(0)]
    for index, (first, end) in zip(split.order, split.borders, strict=True):
        if first < end:
            cost = sum(item.resident for item in items[first:end])
            cost += max(
                *(
                    sum(item.cache for item in items[first : unit + 1])
                    + items[unit].transient
                    - (items[unit].shared if unit > first else 0)
                    for unit in range(first, end)
                ),
                sum(item.cache for item in items[first:end])
                + max(item.step for item in items[first:end]),
            )
            shares.append(Fraction(budgets[index].base + cost, budgets[index].capacity))
    return max(shares)


def exhaustive(
    items: list[Item], budgets: list[Budget], *, any_order: bool, max_gpus: int | None = None
) -> Fraction | None:
    """Least fullness over every order of the GPUs and every way to cut the items."""
    usable = [index for index, budget in enumerate(budgets) if budget.capacity > 0]
    if not usable:
        return None
    best: Fraction | None = None
    for order in permutations(usable) if any_order else [tuple(usable)]:
        for cuts in combinations_with_replacement(range(len(items) + 1), len(order) - 1):
            borders = tuple(zip((0, *cuts), (*cuts, len(items)), strict=True))
            pinned_elsewhere = any(
                item.pinned not in (None, index)
                for index, (first, end) in zip(order, borders, strict=True)
                for item in items[first:end]
            )
            used = sum(first < end for first, end in borders)
            if pinned_elsewhere or (max_gpus is not None and used > max_gpus):
                continue
            full = fullness(items, budgets, Partition(order, borders, Fraction(0)))
            best = full if best is None else min(best, full)
    return best


def random_case(seed: int) -> tuple[list[Item], list[Budget]]:
    """Units and GPUs as varied as small ones can be: equal, unequal, full, pinned, costless."""
    draw = random.Random(seed)
    largest = draw.choice([3, 10, 1000])
    budgets = [
        Budget(draw.choice([0, draw.randint(1, largest)]) if draw.random() < 0.2
             else draw.randint(1, 3 * largest), draw.choice([0, 0, draw.randint(0, largest)]))
        for _ in range(draw.randint(1, 4))
    ]  # fmt: skip
    if draw.random() < 0.3:
        budgets = [budgets[0]] * len(budgets)
    items: list[Item] = []
    for _ in range(draw.randint(1, 7)):
        resident, transient = (
            draw.randint(0, largest),
            draw.choice([0, draw.randint(0, 2 * largest)]),
        )
        pinned = draw.randrange(len(budgets)) if draw.random() < 0.08 else None
        most = min(items[-1].resident, transient) if items else 0
        shared = draw.choice([0, draw.randint(0, most)])
        cache, step = (draw.choice([0, 0, draw.randint(0, largest // 2)]) for _ in range(2))
        items.append(Item(resident, transient, pinned, shared=shared, cache=cache, step=step))
    return items, budgets


def assert_covers(items: list[Item], budgets: list[Budget], split: Partition) -> None:
    assert len(set(split.order)) == len(split.order)
    flat = [unit for first, end in split.borders for unit in range(first, end)]
    assert flat == list(range(len(items)))
    for index, (first, end) in zip(split.order, split.borders, strict=True):
        assert budgets[index].capacity > 0
        assert all(item.pinned in (None, index) for item in items[first:end])


@pytest.mark.parametrize("any_order", [True, False])
@pytest.mark.parametrize("block", range(10))
def test_optimum_equals_exhaustive_search(block: int, any_order: bool) -> None:
    for seed in range(40 * block, 40 * (block + 1)):
        items, budgets = random_case(seed)
        best = exhaustive(items, budgets, any_order=any_order)
        split = partition(items, budgets, any_order=any_order)
        if split is None:
            assert best is None, seed
            continue
        assert split.fullness == best, seed
        assert_covers(items, budgets, split)
        assert fullness(items, budgets, split) == split.fullness
        assert split.exact


@pytest.mark.parametrize("any_order", [True, False])
def test_what_fits_is_known_without_the_best_split(any_order: bool) -> None:
    answers = []
    for seed in range(400):
        items, budgets = random_case(seed)
        split = partition(items, budgets, any_order=any_order)
        answers.append(fits(items, budgets, any_order=any_order))
        assert answers[-1] == (split is not None and split.fullness <= 1), seed
    assert 60 < sum(answers) < 340


@pytest.mark.parametrize("any_order", [True, False])
def test_fewest_uses_the_least_number_that_fits(any_order: bool) -> None:
    fitting = 0
    for seed in range(1000, 1120):
        items, budgets = random_case(seed)
        best = exhaustive(items, budgets, any_order=any_order)
        if best is None or best > 1:
            continue
        fitting += 1
        counts = range(1, len(budgets) + 1)
        optima = {n: exhaustive(items, budgets, any_order=any_order, max_gpus=n) for n in counts}
        needed = min(n for n, full in optima.items() if full is not None and full <= 1)
        assert fewest(items, budgets, any_order=any_order) == needed, seed
        split = partition(items, budgets, any_order=any_order, max_gpus=needed)
        assert split is not None
        assert_covers(items, budgets, split)
        assert sum(first < end for first, end in split.borders) == needed, seed
        assert split.fullness == optima[needed], seed
    assert fitting > 20


def test_fewest_within_a_bound_that_no_split_keeps() -> None:
    items, budgets = [Item(10)] * 4, [Budget(25), Budget(25)]
    assert fewest(items, budgets) == 2
    assert fewest(items, budgets, Fraction(4, 5)) == 2
    assert fewest(items, budgets, Fraction(3, 4)) is None
    assert fewest([], budgets) is None
    assert fewest(items, [Budget(0)]) is None


item = st.builds(Item, st.integers(0, 50), st.integers(0, 80))
budget = st.builds(Budget, st.integers(1, 120), st.integers(0, 5))


@settings(max_examples=150)
@given(
    st.lists(item, min_size=1, max_size=9),
    st.lists(budget, min_size=1, max_size=4),
    st.data(),
)
def test_more_memory_never_makes_it_worse(
    items: list[Item], budgets: list[Budget], data: st.DataObject
) -> None:
    before = partition(items, budgets)
    which = data.draw(st.integers(0, len(budgets) - 1))
    more = data.draw(st.integers(1, 60))
    larger = [*budgets]
    larger[which] = Budget(budgets[which].capacity + more, budgets[which].base)
    after, with_another = partition(items, larger), partition(items, [*budgets, Budget(more)])
    assert before is not None
    assert after is not None
    assert with_another is not None
    assert after.fullness <= before.fullness
    assert with_another.fullness <= before.fullness


def test_units_are_spread_below_the_optimum_too() -> None:
    split = partition([Item(100), *[Item(10)] * 6], [Budget(100)] * 4)
    assert split is not None
    assert split.fullness == 1
    assert [end - first for first, end in split.borders] == [1, 2, 2, 2]


def test_splits_that_differ_by_a_few_bytes_in_a_billion_are_told_apart() -> None:
    items = [Item(10**9 + 5), Item(3), Item(10**9)]
    budgets = [Budget(10**10)] * 2
    split = partition(items, budgets)
    assert split is not None
    assert split.fullness == exhaustive(items, budgets, any_order=True)
    assert split.borders == ((0, 1), (1, 3))


def test_the_given_order_wins_ties() -> None:
    split = partition([Item(1)] * 4, [Budget(10), Budget(20), Budget(10)])
    assert split is not None
    assert split.order == (0, 1, 2)


def test_too_many_kinds_of_gpus_are_planned_but_not_called_exact() -> None:
    budgets = [Budget(100 + index) for index in range(13)]
    assert 2 ** len(budgets) > MAX_SETS
    items = [Item(7)] * 60
    split = partition(items, budgets)
    assert split is not None
    assert not split.exact
    assert_covers(items, budgets, split)
    assert fullness(items, budgets, split) == split.fullness
    in_order = partition(items, budgets, any_order=False)
    assert in_order is not None
    assert in_order.exact
    assert split.fullness <= in_order.fullness


def test_contradicting_pins_have_no_split() -> None:
    budgets = [Budget(100), Budget(100)]
    assert partition([Item(1, 0, 0), Item(1, 0, 1), Item(1, 0, 0)], budgets) is None
    back_to_front = [Item(1, 0, 1), Item(1, 0, 0)]
    assert partition(back_to_front, budgets, any_order=False) is None
    split = partition(back_to_front, budgets)
    assert split is not None
    assert split.order == (1, 0)


def test_nothing_to_split_or_nowhere_to_go() -> None:
    assert partition([], [Budget(1)]) is None
    assert partition([Item(1)], []) is None
    assert partition([Item(1)], [Budget(0)]) is None
    assert not fits([Item(1)], [Budget(0)])
    assert not fits([], [Budget(1)])
