"""Ratios of times taken in pairs, with how sure their median is."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

__all__ = ["describe", "interval"]


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return a confidence interval of the median: two of `values`, and its confidence, 0 to 1.

    From the binomial distribution of how many values lie below the median, so that nothing is
    assumed about their distribution. As narrow as `confidence` allows; with too few values it spans
    all of them, at a lower confidence.
    """
    ordered, count = sorted(values), len(values)
    # Probability that at most 0, 1, 2, ... values lie on one side of the median.
    likely = list(itertools.accumulate(math.comb(count, k) / 2**count for k in range(count)))
    outside = sum(2 * chance <= 1 - confidence for chance in likely)
    skipped = max(outside - 1, 0)
    return ordered[skipped], ordered[-1 - skipped], 1 - 2 * likely[skipped]


def describe(baseline: Sequence[float], measured: Sequence[float]) -> str:
    """Write how much faster `measured` is than `baseline`: times of pairs, in the same order."""
    ratios = [base / time for base, time in zip(baseline, measured, strict=True)]
    low, high, sure = interval(ratios)
    return (
        f"ratio {statistics.median(ratios):.3f} ({sure:.0%} sure: {low:.3f} to {high:.3f}; "
        f"pairs {min(ratios):.3f} to {max(ratios):.3f})"
    )
