"""What cannot be made on a virtual GPU: storages without a tensor, and weights without a shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

__all__ = ["tensors_alone"]

_STORAGES = (
    "Virtual GPUs have no torch.UntypedStorage without a tensor: make the tensor, as "
    'torch.empty(bytes, dtype=torch.uint8, device="cuda").'
)
_LAZY = (
    "Virtual GPUs cannot make a lazy module, whose weights have no shape yet: make it on the CPU, "
    'and move it with .to("cuda").'
)
_REFUSED: Mapping[type, str] = MappingProxyType(
    {
        torch.UntypedStorage: _STORAGES,
        UninitializedBuffer: _LAZY,
        UninitializedParameter: _LAZY,
    }
)


@contextmanager
def tensors_alone() -> Iterator[None]:
    """Refuse in one line what PyTorch would make on a GPU beside tensors."""
    originals = {kind: vars(kind).get("__new__") for kind in _REFUSED}
    for kind, message in _REFUSED.items():
        kind.__new__ = _refusing(kind.__new__, message)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for kind, original in originals.items():
            if original is None:
                del kind.__new__  # that of the base class shows again
            else:
                kind.__new__ = original  # type: ignore[method-assign]


def _refusing(make: Callable[..., Any], message: str) -> Callable[..., Any]:
    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if _is_on_gpu(kwargs.get("device"), issubclass(cls, torch.Tensor)):
            raise NotImplementedError(message)
        return make(cls, *args, **kwargs)

    return __new__


def _is_on_gpu(device: Any, has_default: bool) -> bool:
    if device is None:
        return has_default and torch.get_default_device().type == "cuda"
    return torch.device(device).type == "cuda"
