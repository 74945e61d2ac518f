"""Copies of tensors that many layers read: once per step and GPU, not once per layer.

Rotary tables, masks and sequence lengths are computed once per step and passed to every layer.
accelerate's hooks copy them for every layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["shared"]

# tensor -> device -> tensors copied together with it, and all their copies
_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def shared(value: Any, device: torch.device) -> Any:
    """Return tensors on `device`, copied at most once during the lifetime of the originals.

    Args:
        value: a tensor, or tensors in tuples and lists; anything else is returned unchanged.
            Shared tensors must not be written to. A tuple of equally shaped ones, such as cos and
            sin, is copied as one.
        device: target device.
    """
    if isinstance(value, Tensor):
        return value if value.device == device else _together((value,), device)[0]
    if type(value) not in (tuple, list) or not value:
        return value
    if type(value) is tuple and _are_alike(value):
        return value if value[0].device == device else _together(value, device)
    return type(value)(shared(item, device) for item in value)


def _are_alike(values: tuple[Any, ...]) -> bool:
    first = values[0]
    return isinstance(first, Tensor) and all(
        isinstance(value, Tensor)
        and (value.shape, value.dtype, value.device) == (first.shape, first.dtype, first.device)
        for value in values
    )


def _together(values: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    first, *rest = values
    by_device: dict[torch.device, tuple[list[Tensor], tuple[Tensor, ...]]]
    by_device = _copies.setdefault(first, {})
    known, copies = by_device.get(device, ([], ()))
    if len(copies) != len(values) or any(a is not b for a, b in zip(known, rest, strict=True)):
        packed = torch.stack(values) if rest else first.unsqueeze(0)
        copies = packed.to(device).unbind()
        by_device[device] = rest, copies
    return copies
