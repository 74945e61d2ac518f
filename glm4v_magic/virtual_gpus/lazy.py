"""Lazy modules, whose weights have no shape until they meet an input, are made on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

__all__ = ["lazy_weights_refused"]

_KINDS: tuple[type, ...] = (UninitializedBuffer, UninitializedParameter)


@contextmanager
def lazy_weights_refused() -> Iterator[None]:
    """Refuse in one line weights without a shape that would be made on a GPU."""
    originals = {kind: vars(kind).get("__new__") for kind in _KINDS}
    for kind in _KINDS:
        kind.__new__ = _refusing(kind.__new__)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for kind, original in originals.items():
            if original is None:
                del kind.__new__  # that of the base class shows again
            else:
                kind.__new__ = original  # type: ignore[method-assign]


def _refusing(make: Callable[..., Any]) -> Callable[..., Any]:
    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        device = kwargs.get("device")
        if torch.device(torch.get_default_device() if device is None else device).type == "cuda":
            raise NotImplementedError(
                "Virtual GPUs cannot make a lazy module, whose weights have no shape yet: make it "
                'on the CPU, and move it with .to("cuda").'
            )
        return make(cls, *args, **kwargs)

    return __new__
