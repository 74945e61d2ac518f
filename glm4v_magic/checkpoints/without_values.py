"""Weights that have no values yet are not drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["no_drawing"]

_DRAWN = ("kaiming_uniform_", "uniform_", "normal_", "ones_", "zeros_")
"""Functions of ``torch.nn.init`` that the layers of a model call when they are made."""


@contextmanager
def no_drawing() -> Iterator[None]:
    """Let ``torch.nn.init`` pass over tensors on ``meta``, which have no values.

    `from_pretrained` makes a model on ``meta``, where torch goes through all of the arithmetic of a
    random weight for nothing: a quarter of a load whose weights stay in their files. Tensors on
    other devices are filled as usual. For one thread at a time, like `from_pretrained`, which
    replaces the same functions.
    """
    originals = {name: getattr(nn.init, name) for name in _DRAWN}
    for name, original in originals.items():
        setattr(nn.init, name, _passing_over(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(nn.init, name, original)


def _passing_over(fill: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def filled(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        return tensor if tensor.is_meta else fill(tensor, *args, **options)

    return filled
