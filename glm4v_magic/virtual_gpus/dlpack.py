"""DLPack within the block: a virtual tensor is handed on as it is, since its GPU has no memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from glm4v_magic.virtual_gpus.tensor import VirtualTensor

__all__ = ["exporters", "inner_functions"]

_ON_CPU = 1  # kDLCPU of dlpack.h


@dataclass(frozen=True, slots=True)
class _Capsule:
    """Stands for the capsule of a virtual tensor, which no other library could read.

    PyTorch's own would have an address in the host's memory, and say that it is a GPU's.
    """

    tensor: torch.Tensor


def exporters() -> dict[str, Callable[..., Any]]:
    """Return the replacement of ``to_dlpack``, by its name in ``torch`` and its ``utils``."""
    return {"to_dlpack": _exporter(torch._C._to_dlpack)}


def inner_functions() -> dict[str, Callable[..., Any]]:
    """Return what ``from_dlpack`` and ``Tensor.__dlpack__`` call, by name in ``torch._C``."""
    read = torch._C._from_dlpack

    def from_dlpack(capsule: Any) -> torch.Tensor:
        return capsule.tensor if isinstance(capsule, _Capsule) else read(capsule)

    exports = ("_to_dlpack", "_to_dlpack_versioned")
    return {"_from_dlpack": from_dlpack} | {
        name: _exporter(getattr(torch._C, name)) for name in exports
    }


def _exporter(export: Callable[..., Any]) -> Callable[..., Any]:
    def to_dlpack(tensor: torch.Tensor, *, dl_device: Any = None, copy: bool | None = None) -> Any:
        if not isinstance(tensor, VirtualTensor):
            return export(tensor, dl_device=dl_device, copy=copy)
        if dl_device is not None and dl_device[0] == _ON_CPU:
            return export(tensor.cpu())
        return _Capsule(tensor.clone() if copy else tensor.detach())

    return to_dlpack
