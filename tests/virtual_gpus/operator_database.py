"""Samples of PyTorch's own database of operators, on any device."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch.utils._pytree import tree_map

__all__ = ["call", "on", "operators", "samples"]


@cache
def operators() -> tuple[Any, ...]:
    """Operators of floating-point numbers on the CPU; to import them takes ten seconds."""
    from torch.testing._internal.common_methods_invocations import op_db

    return tuple(op for op in op_db if op.supports_dtype(torch.float32, "cpu"))


def samples(operator: Any, limit: int | None = None) -> Iterator[Any]:
    """The same ones each time."""
    random.seed(1)
    torch.manual_seed(1)
    yield from islice(operator.sample_inputs("cpu", torch.float32, requires_grad=False), limit)


def on(device: str, value: Any) -> Any:
    """The same arguments, tensors and devices among them on `device`."""

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.clone().to(device)
        is_cpu = leaf == "cpu" or (isinstance(leaf, torch.device) and leaf.type == "cpu")
        return torch.device(device) if is_cpu else leaf

    return tree_map(moved, value)


def call(operator: Any, arguments: Any) -> Any:
    first, args, kwargs = arguments
    torch.manual_seed(3)
    return operator(first, *args, **kwargs)
