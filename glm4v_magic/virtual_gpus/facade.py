"""The functions of ``torch.cuda`` that libraries call before they use a GPU, for virtual GPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from glm4v_magic.virtual_gpus.memory import MemoryLedger
from glm4v_magic.virtual_gpus.package import GPU
from glm4v_magic.virtual_gpus.streams import VirtualEvent, VirtualStream

__all__ = ["CudaFacade"]


# transformers' caching_allocator_warmup reserves the total memory less 1.2 GiB, a negative size
# on a smaller GPU. No real GPU is that small, but virtual ones may be: so the total reported to it
# is at least this, while the free memory is always exact.
_LEAST_TOTAL = int(1.25 * 2**30)
_COMPUTE_CAPABILITY = (8, 0)


class CudaFacade:
    """Replacements for functions of ``torch.cuda``.

    Args:
        gpus: the GPUs.
        ledger: counts their memory.
        is_available: let ``torch.cuda.is_available()`` and ``torch.accelerator`` say that there
            are GPUs. Otherwise they say what they say outside of the block.
    """

    def __init__(self, gpus: Sequence[GPU], ledger: MemoryLedger, is_available: bool) -> None:
        self._gpus = gpus
        self._ledger = ledger
        self._is_available = is_available
        self._thread = threading.local()

    def current_device(self) -> int:
        """Index of the GPU chosen in this thread, 0 at first."""
        return getattr(self._thread, "index", 0)

    def functions(self) -> dict[str, Callable[..., Any]]:
        """The replacements, by name in ``torch.cuda``."""
        available = {"is_available": lambda: True} if self._is_available else {}
        return {
            **available,
            "Event": VirtualEvent,
            "Stream": VirtualStream,
            "_lazy_init": lambda: None,
            "_exchange_device": self._exchange_device,
            "_maybe_exchange_device": self._exchange_device,
            "current_device": self.current_device,
            "current_stream": VirtualStream,
            "default_stream": VirtualStream,
            "device_count": lambda: len(self._gpus),
            "empty_cache": lambda: None,
            "get_device_capability": self._capability,
            "get_device_name": lambda device=None: self._gpu(device).name,
            "get_device_properties": self._properties,
            "get_rng_state": lambda device=None: torch.get_rng_state(),
            "get_rng_state_all": lambda: [torch.get_rng_state() for _ in self._gpus],
            "initial_seed": torch.initial_seed,
            "ipc_collect": lambda: None,
            "is_bf16_supported": lambda including_emulation=True: True,
            "is_initialized": lambda: True,
            "manual_seed": _seed,
            "manual_seed_all": _seed,
            "max_memory_allocated": self._peak,
            "max_memory_reserved": self._peak,
            "mem_get_info": self._mem_get_info,
            "memory_allocated": self._allocated,
            "memory_reserved": self._allocated,
            "reset_peak_memory_stats": self._forget_peak,
            "set_device": self._exchange_device,
            "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
            "set_rng_state_all": lambda states: torch.set_rng_state(states[0]),
            "set_stream": lambda stream: None,
            "stream": lambda stream: nullcontext(stream),
            "synchronize": lambda device=None: None,
        }

    def accelerator_functions(self) -> dict[str, Callable[..., Any]]:
        """The replacements, by name in ``torch.accelerator``."""
        if not self._is_available:
            return {}
        return {
            "current_accelerator": lambda check_available=False: torch.device("cuda"),
            "current_device_index": self.current_device,
            "current_device_idx": self.current_device,
            "current_stream": VirtualStream,
            "device_count": lambda: len(self._gpus),
            "empty_cache": lambda: None,
            "is_available": lambda: True,
            "memory_allocated": self._allocated,
            "max_memory_allocated": self._peak,
            "memory_reserved": self._allocated,
            "max_memory_reserved": self._peak,
            "reset_peak_memory_stats": self._forget_peak,
            "set_device_idx": self._exchange_device,
            "set_device_index": self._exchange_device,
            "set_stream": lambda stream: None,
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

    def _forget_peak(self, device: int | str | torch.device | None = None) -> None:
        self._ledger.forget_peak(self._gpu(device).index)

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


def _seed(seed: int) -> None:
    """Seed the generator of the CPU, which also makes the random numbers of the GPUs."""
    torch.default_generator.manual_seed(seed)
