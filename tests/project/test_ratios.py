"""How sure the benchmarks are of a median."""

from __future__ import annotations

import random
import runpy
from pathlib import Path

import pytest

RATIOS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "ratios.py"))


@pytest.mark.parametrize(
    ("count", "ends"),
    [
        (1, (1, 1, 0.0)),
        (5, (1, 5, 0.9375)),
        (6, (1, 6, 0.96875)),
        (9, (2, 8, 0.9609375)),
        (20, (6, 15, 0.9586105346679688)),
    ],
)
def test_the_interval_is_that_of_the_tables_for_the_sign_test(count, ends):
    """Order statistics as textbooks list them for 95%; too few values are all of them."""
    values = list(range(count, 0, -1))

    assert RATIOS["interval"](values) == pytest.approx(ends)


def test_the_interval_holds_the_median_as_often_as_it_says():
    """Of lopsided values, as times are."""
    rng = random.Random(0)
    median = 2**0.5  # where half of the values 1 / (1 - u)**0.5 lie below
    samples = [[(1 - rng.random()) ** -0.5 for _ in range(15)] for _ in range(2000)]

    held = sum(low <= median <= high for low, high, _ in map(RATIOS["interval"], samples))

    assert 0.95 <= held / len(samples) < 0.98


def test_a_ratio_above_one_means_faster_than_the_baseline():
    text = RATIOS["describe"]([2.0, 2.2, 1.8], [1.0, 1.0, 1.0])

    assert text == "ratio 2.000 (75% sure: 1.800 to 2.200; pairs 1.800 to 2.200)"
