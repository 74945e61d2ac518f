"""The functions of ``torch.cuda`` that libraries call before they use a GPU, for virtual GPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.virtual_gpus.memory import MemoryLedger

__all__ = ["CudaFacade"]

# transformers' caching_allocator_warmup reserves the total memory less 1.2 GiB, a negative size
# on a smaller GPU. No real GPU is that small, but virtual ones may be: so the total reported to it
# is at least this, while the free memory is always exact.
_LEAST_TOTAL = int(1.25 * 2**30)
_COMPUTE_CAPABILITY = (8, 0)


class CudaFacade:
    """Replacements for functions of ``torch.cuda``.

    ``torch.cuda.is_available()`` is not replaced, and ``False`` without a GPU: its callers go on to
    use the real runtime.
    """

    def __init__(self, gpus: Sequence[GPU], ledger: MemoryLedger) -> None:
        self._gpus = gpus
        self._ledger = ledger
        self._thread = threading.local()

    def current_device(self) -> int:
        """Index of the GPU chosen in this thread, 0 at first."""
        return getattr(self._thread, "index", 0)

    def functions(self) -> dict[str, Callable[..., Any]]:
        """The replacements, by name in ``torch.cuda``."""
        return {
            "_lazy_init": lambda: None,
            "_exchange_device": self._exchange_device,
            "_maybe_exchange_device": self._exchange_device,
            "current_device": self.current_device,
            "device_count": lambda: len(self._gpus),
            "empty_cache": lambda: None,
            "get_device_capability": self._capability,
            "get_device_name": lambda device=None: self._gpu(device).name,
            "get_device_properties": self._properties,
            "ipc_collect": lambda: None,
            "max_memory_allocated": self._peak,
            "max_memory_reserved": self._peak,
            "mem_get_info": self._mem_get_info,
            "memory_allocated": self._allocated,
            "memory_reserved": self._allocated,
            "reset_peak_memory_stats": lambda device=None: None,
            "set_device": self._exchange_device,
            "synchronize": lambda device=None: None,
        }

    def _index(self, device: int | str | torch.device | None) -> int:
        if device is None:
            return self.current_device()
        index = device if isinstance(device, int) else torch.device(device).index
        return self.current_device() if index is None else index

    def _gpu(self, device: int | str | torch.device | None) -> GPU:
        index = self._index(device)
        if not 0 <= index < len(self._gpus):
            raise AssertionError("Invalid device id")
        return self._gpus[index]

    def _capability(self, device: int | str | torch.device | None = None) -> tuple[int, int]:
        return self._gpu(device).capability or _COMPUTE_CAPABILITY

    def _exchange_device(self, device: int | str | torch.device) -> int:
        before, index = self.current_device(), self._index(device)
        if index >= 0:
            self._thread.index = self._gpu(index).index
        return before

    def _allocated(self, device: int | str | torch.device | None = None) -> int:
        return self._ledger.live_bytes(self._gpu(device).index)

    def _peak(self, device: int | str | torch.device | None = None) -> int:
        return self._ledger.peak_bytes(self._gpu(device).index)

    def _mem_get_info(self, device: int | str | torch.device | None = None) -> tuple[int, int]:
        gpu = self._gpu(device)
        capacity = self._ledger.capacities[gpu.index]
        return capacity - self._allocated(device), max(capacity, _LEAST_TOTAL)

    def _properties(self, device: int | str | torch.device | None = None) -> SimpleNamespace:
        gpu = self._gpu(device)
        major, minor = self._capability(device)
        return SimpleNamespace(
            name=gpu.name,
            major=major,
            minor=minor,
            total_memory=self._ledger.capacities[gpu.index],
            is_integrated=False,
        )
