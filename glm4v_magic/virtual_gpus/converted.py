"""What ``Module.to`` and ``Module.cuda`` do to parameters: they stay the same objects, elsewhere.

On a GPU PyTorch assigns to ``.data``, which would drop the wrapper of a virtual tensor; so that
parameters are swapped here. PyTorch's own swap gives up where a graph of autograd still holds the
parameter, as the answer of an earlier call does, which is no reason to refuse a move.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch.nn import parameter as lazy_parameters
from torch.nn.parameter import UninitializedBuffer, is_lazy

__all__ = ["swapped_parameters"]

_MOVED_TO = "_moved_to"
"""Attribute of a parameter or buffer that has no shape yet: where it is to be made."""


@contextmanager
def swapped_parameters() -> Iterator[None]:
    """Make ``Module.to`` move parameters to and from virtual GPUs."""
    future: Any = torch.__future__
    lazy: Any = lazy_parameters.UninitializedTensorMixin  # type: ignore[attr-defined]
    was_swapping = future.get_swap_module_params_on_conversion()
    swap, materialize = torch.utils.swap_tensors, lazy.materialize

    def materialize_there(
        tensor: Any, shape: Any, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        there = getattr(tensor, _MOVED_TO, None) if device is None else device
        materialize(tensor, shape, "cpu", dtype)
        if there is not None:
            tensor.data = tensor.data.to(there)

    future.set_swap_module_params_on_conversion(True)
    torch.utils.swap_tensors = _swap
    lazy.materialize = materialize_there
    lazy.to, lazy.cuda = _to, _cuda
    try:
        yield
    finally:
        del lazy.to, lazy.cuda
        lazy.materialize = materialize
        torch.utils.swap_tensors = swap
        future.set_swap_module_params_on_conversion(was_swapping)


def _to(tensor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Move a parameter or a buffer that has no shape yet: it is made there later."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    if device is not None:
        setattr(tensor, _MOVED_TO, device)
    if dtype is not None:
        tensor.data = torch.empty(0, dtype=dtype)
    return tensor if isinstance(tensor, UninitializedBuffer) else torch.empty(0)


def _cuda(tensor: Any, device: Any = None) -> torch.Tensor:
    return _to(tensor, "cuda" if device is None else device)


def _swap(tensor: torch.Tensor, other: torch.Tensor) -> None:
    """Replace ``torch.utils.swap_tensors``, whatever else holds the two tensors.

    A graph that holds the tensor keeps what it was; gradients out of it would reach nothing, so
    that computing them is refused.
    """
    if is_lazy(tensor):  # `_to` has seen to it
        return
    if tensor.requires_grad and tensor.is_leaf and not tensor.is_inference():
        with torch.inference_mode(False):  # where no graph would be made
            node = torch.autograd.graph.get_gradient_edge(tensor).node
        node.register_prehook(_refuse_gradients)
    _swap_attribute("__class__", tensor, other)
    _swap_attribute("__dict__", tensor, other)
    for slot in {*copyreg._slotnames(type(tensor)), *copyreg._slotnames(type(other))}:  # type: ignore[attr-defined]
        _swap_attribute(slot, tensor, other)
    torch._C._swap_tensor_impl(tensor, other)


def _swap_attribute(name: str, tensor: torch.Tensor, other: torch.Tensor) -> None:
    ours, theirs = getattr(tensor, name), getattr(other, name)
    setattr(tensor, name, theirs)
    setattr(other, name, ours)


def _refuse_gradients(gradients: Any) -> NoReturn:
    raise RuntimeError(
        "A parameter was moved since this was computed: gradients of it are computed before "
        "`to()` or `cuda()`, or of an answer of the moved model on the CPU."
    )
