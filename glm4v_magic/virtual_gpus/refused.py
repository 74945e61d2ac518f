"""Names of ``torch.cuda`` that virtual GPUs do not have, and why."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["REFUSED", "refusals"]

_GRAPHS = "nothing is launched that a CUDA graph could record"
_SENSORS = "a computer without the GPU has no sensors to read"
_LIBRARIES = "what lies behind the handle is a library of CUDA"
_ALLOCATOR = "memory is counted, and allocated by the CPU"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "CUDAGraph": _GRAPHS,
        "graph": _GRAPHS,
        "graph_pool_handle": _GRAPHS,
        "make_graphed_callables": _GRAPHS,
        "CUDAPluggableAllocator": _ALLOCATOR,
        "MemPool": _ALLOCATOR,
        "caching_allocator_alloc": _ALLOCATOR,
        "caching_allocator_delete": _ALLOCATOR,
        "change_current_allocator": _ALLOCATOR,
        "memory_snapshot": _ALLOCATOR,
        "use_mem_pool": _ALLOCATOR,
        "ExternalStream": _LIBRARIES,
        "GreenContext": _LIBRARIES,
        "check_error": _LIBRARIES,
        "cudart": _LIBRARIES,
        "current_blas_handle": _LIBRARIES,
        "current_solver_handle": _LIBRARIES,
        "get_stream_from_external": _LIBRARIES,
        "clock_rate": _SENSORS,
        "memory_usage": _SENSORS,
        "power_draw": _SENSORS,
        "temperature": _SENSORS,
        "utilization": _SENSORS,
    }
)
"""Reason by public name in ``torch.cuda``. Of its modules ``jiterator``, ``nccl`` and ``tunable``
call kernels of CUDA and are left as PyTorch without CUDA has them."""


def refusals() -> dict[str, type]:
    """Return the replacements, by name in ``torch.cuda``: calling one raises."""
    return {name: _refusal(name, reason) for name, reason in REFUSED.items()}


def _refusal(name: str, reason: str) -> type:
    def refuse(cls: type, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"Virtual GPUs have no torch.cuda.{name}: {reason}.")

    return type(name, (), {"__new__": refuse, "__module__": "torch.cuda"})
