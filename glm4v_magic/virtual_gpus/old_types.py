"""``torch.cuda.FloatTensor`` and its kind: names of a dtype on a GPU, from before PyTorch 0.4."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["device_and_dtype", "old_types"]

_DTYPES = {
    "BFloat16Tensor": torch.bfloat16,
    "BoolTensor": torch.bool,
    "ByteTensor": torch.uint8,
    "CharTensor": torch.int8,
    "DoubleTensor": torch.float64,
    "FloatTensor": torch.float32,
    "HalfTensor": torch.float16,
    "IntTensor": torch.int32,
    "LongTensor": torch.int64,
    "ShortTensor": torch.int16,
}


class _OldType(type):
    """Type of these types: calling one makes a tensor, and tensors are instances by their dtype."""

    dtype: torch.dtype

    def __call__(cls, *values: Any, device: Any = "cuda") -> Any:
        """Make a tensor of a list of numbers, of a storage, or of these sizes, without values."""
        if len(values) == 1 and isinstance(values[0], (torch.UntypedStorage, torch.TypedStorage)):
            return torch.empty(0, dtype=cls.dtype, device=device).set_(values[0])
        if len(values) == 1 and not isinstance(values[0], (int, torch.Size)):
            return torch.tensor(values[0], dtype=cls.dtype, device=device)
        return torch.empty(*values if values else (0,), dtype=cls.dtype, device=device)

    def __instancecheck__(cls, instance: object) -> bool:
        is_on_gpu = isinstance(instance, torch.Tensor) and instance.is_cuda
        return is_on_gpu and instance.dtype == cls.dtype  # type: ignore[attr-defined]


def old_types() -> dict[str, Any]:
    """Return the replacements, by name in ``torch.cuda``."""
    return {
        name: _OldType(name, (), {"dtype": dtype, "__module__": "torch.cuda"})
        for name, dtype in _DTYPES.items()
    }


def device_and_dtype(kind: Any) -> tuple[str, torch.dtype] | None:
    """Read what ``Tensor.type`` is given; None if that is not a type on a GPU."""
    if isinstance(kind, _OldType):
        return "cuda", kind.dtype
    name = kind.removeprefix("torch.cuda.") if isinstance(kind, str) else ""
    is_on_gpu = name in _DTYPES and name != kind
    return ("cuda", _DTYPES[name]) if is_on_gpu else None
