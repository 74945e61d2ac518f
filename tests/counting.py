"""What processes of tests count with: with it they import nothing that takes long."""

from __future__ import annotations

import itertools
from collections.abc import Iterator


def numbers(seed: int, size: int, progress: object) -> Iterator[int]:
    """Count from the seed in steps of `size`."""
    return itertools.count(seed, size)
