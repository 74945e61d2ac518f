"""Nested tensors: strided ones are as any other, and jagged ones are refused in one line.

PyTorch makes strided ones of a padded batch (`nn.TransformerEncoder`) or of a list of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from glm4v_magic.virtual_gpus.tensor import VirtualTensor, leaves

__all__ = ["nested_makers", "refuse_jagged"]

_MESSAGE = (
    "Virtual GPUs have no nested tensors with layout=torch.jagged: pad the rows to one length, "
    "with torch.nn.utils.rnn.pad_sequence, or take layout=torch.strided."
)


def nested_makers() -> dict[str, Callable[..., Any]]:
    """Return the replacements of what makes nested tensors, by name in ``torch.nested``."""
    copied, taken = torch.nested.nested_tensor, torch.nested.as_nested_tensor

    def nested_tensor(
        tensor_list: Any,
        *,
        dtype: torch.dtype | None = None,
        layout: torch.layout | None = None,
        device: Any = None,
        requires_grad: bool = False,
        pin_memory: bool = False,
    ) -> Any:
        if not _goes_to_gpu(tensor_list, device):
            return copied(
                tensor_list,
                dtype=dtype,
                layout=layout,
                device=device,
                requires_grad=requires_grad,
                pin_memory=pin_memory,
            )
        # C++ would fill a copy whose device it takes for a real one.
        rows = [torch.as_tensor(row, dtype=dtype, device=device).detach() for row in tensor_list]
        return as_nested_tensor(rows, layout=layout).requires_grad_(requires_grad)

    def as_nested_tensor(
        ts: Any, dtype: Any = None, device: Any = None, layout: torch.layout | None = None
    ) -> Any:
        if layout is torch.jagged and _goes_to_gpu(ts, device):
            raise NotImplementedError(_MESSAGE)
        return taken(ts, dtype, device, layout)

    return {
        "nested_tensor": nested_tensor,
        "as_nested_tensor": as_nested_tensor,
        "nested_tensor_from_jagged": _refusing(torch.nested.nested_tensor_from_jagged),
    }


def refuse_jagged(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise NotImplementedError if a jagged tensor goes to a GPU, as in ``tensor.to("cuda")``."""
    # By its class: asked for its layout, it calls an operator that is none of PyTorch's.
    is_jagged = bool(args) and type(args[0]).__name__ == "NestedTensor"
    if is_jagged and any(map(_is_gpu, (*args[1:], *kwargs.values()))):
        raise NotImplementedError(_MESSAGE)


def _refusing(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(*args: Any, **kwargs: Any) -> Any:
        if _goes_to_gpu((args, kwargs), None):
            raise NotImplementedError(_MESSAGE)
        return make(*args, **kwargs)

    return made


def _goes_to_gpu(values: Any, device: Any) -> bool:
    if device is None:
        return any(isinstance(tensor, VirtualTensor) for tensor in leaves(values))
    return _is_gpu(device)


def _is_gpu(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.device.type == "cuda"
    return isinstance(value, str | torch.device) and str(value).startswith("cuda")
