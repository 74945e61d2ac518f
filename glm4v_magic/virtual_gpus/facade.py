"""The functions of ``torch.cuda`` that libraries call before they use a GPU, for virtual GPUs."""

from __future__ import annotations

import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NoReturn

import torch

from glm4v_magic.virtual_gpus.generators import default_generators
from glm4v_magic.virtual_gpus.memory import MemoryLedger
from glm4v_magic.virtual_gpus.old_types import old_types
from glm4v_magic.virtual_gpus.package import GPU
from glm4v_magic.virtual_gpus.refused import refusals
from glm4v_magic.virtual_gpus.streams import VirtualEvent, VirtualStream

__all__ = ["CudaFacade"]


# transformers' caching_allocator_warmup reserves the total memory less 1.2 GiB, a negative size
# on a smaller GPU. No real GPU is that small, but virtual ones may be: so the total reported to it
# is at least this, while the free memory is always exact.
_LEAST_TOTAL = int(1.25 * 2**30)
_COMPUTE_CAPABILITY = (8, 0)
# What programs read to choose the size of a launch: those of an A100, whatever the GPU is named.
_OF_AN_A100 = {
    "multi_processor_count": 108,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "regs_per_multiprocessor": 65536,
    "shared_memory_per_block": 48 << 10,
    "shared_memory_per_block_optin": 163 << 10,
    "shared_memory_per_multiprocessor": 164 << 10,
    "warp_size": 32,
    "L2_cache_size": 40 << 20,
}
_POOLS = ("all", "small_pool", "large_pool")
_OF_BYTES = ("allocated_bytes", "active_bytes", "requested_bytes", "reserved_bytes")
_OF_COUNTS = ("allocation", "active", "segment")
_OF_NOTHING = {"current": 0, "peak": 0, "allocated": 0, "freed": 0}


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
        self._default_streams = [VirtualStream(gpu.index, is_default=True) for gpu in gpus]

    def current_device(self) -> int:
        """Index of the GPU chosen in this thread, 0 at first."""
        return getattr(self._thread, "index", 0)

    def functions(self) -> dict[str, Callable[..., Any]]:
        """The replacements, by name in ``torch.cuda``."""
        available = {"is_available": _is_available} if self._is_available else {}
        return {
            **available,
            **refusals(),
            **old_types(),
            "Event": VirtualEvent,
            "Stream": VirtualStream,
            "_lazy_init": lambda: None,
            "_exchange_device": self._exchange_device,
            "_maybe_exchange_device": self._exchange_device,
            "caching_allocator_disabled": nullcontext,
            "caching_allocator_enable": lambda value=True: None,
            "can_device_access_peer": self._can_access,
            "current_device": self.current_device,
            "current_stream": self._current_stream,
            "default_generators": default_generators(len(self._gpus)),
            "default_stream": self._default_stream,
            "device_count": lambda: len(self._gpus),
            "device_memory_used": self._allocated,
            "empty_cache": lambda: None,
            "get_allocator_backend": lambda: "native",
            "get_arch_list": self._architectures,
            "get_device_capability": self._capability,
            "get_device_name": lambda device=None: self._gpu(device).name,
            "get_device_properties": self._properties,
            "get_per_process_memory_fraction": self._fraction,
            "get_rng_state": lambda device=None: torch.get_rng_state(),
            "get_rng_state_all": lambda: [torch.get_rng_state() for _ in self._gpus],
            "get_sync_debug_mode": lambda: 0,
            "host_memory_stats_as_nested_dict": dict,
            "init": lambda: None,
            "initial_seed": torch.initial_seed,
            "ipc_collect": lambda: None,
            "is_current_stream_capturing": lambda: False,
            "is_bf16_supported": lambda including_emulation=True: True,
            "is_initialized": lambda: True,
            "list_gpu_processes": self._processes,
            "manual_seed": _seed,
            "manual_seed_all": _seed,
            "max_memory_allocated": self._peak,
            "max_memory_reserved": self._peak,
            "mem_get_info": self._mem_get_info,
            "memory_allocated": self._allocated,
            "memory_reserved": self._allocated,
            "memory_stats_as_nested_dict": self._statistics,
            "memory_summary": self._summary,
            "reset_accumulated_host_memory_stats": lambda: None,
            "reset_accumulated_memory_stats": self._forget_totals,
            "reset_peak_host_memory_stats": lambda: None,
            "reset_peak_memory_stats": self._forget_peak,
            "seed": torch.seed,
            "seed_all": torch.seed,
            "set_device": self._set_device,
            "set_per_process_memory_fraction": self._set_fraction,
            "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
            "set_rng_state_all": lambda states: torch.set_rng_state(states[0]),
            "set_stream": self._set_stream,
            "set_sync_debug_mode": _set_sync_debug_mode,
            "stream": self._in_stream,
            "synchronize": lambda device=None: None,
        }

    def accelerator_functions(self) -> dict[str, Callable[..., Any]]:
        """The replacements, by name in ``torch.accelerator``."""
        if not self._is_available:
            return {}
        return {
            "Graph": _refuse_graph,
            "current_accelerator": lambda check_available=False: torch.device("cuda"),
            "current_device_index": self.current_device,
            "current_device_idx": self.current_device,
            "current_stream": self._current_stream,
            "device_count": lambda: len(self._gpus),
            "empty_cache": lambda: None,
            "empty_host_cache": lambda: None,
            "get_device_capability": _refuse_capability,
            "get_memory_info": self._mem_get_info,
            "is_available": lambda: True,
            "memory_allocated": self._allocated,
            "max_memory_allocated": self._peak,
            "memory_reserved": self._allocated,
            "max_memory_reserved": self._peak,
            "memory_stats": lambda device=None: torch.cuda.memory_stats(self._index(device)),
            "reset_accumulated_memory_stats": self._forget_totals,
            "reset_peak_memory_stats": self._forget_peak,
            "set_device_idx": self._exchange_device,
            "set_device_index": self._exchange_device,
            "set_stream": self._set_stream,
            "synchronize": lambda device=None: None,
        }

    def exchanges(self) -> dict[str, Callable[..., Any]]:
        """The replacements in ``torch._C``, for ``torch.accelerator`` and ``get_device_module``."""
        if not self._is_available:
            return {}
        names = ("_accelerator_exchangeDevice", "_accelerator_maybeExchangeDevice")
        return {
            **dict.fromkeys(names, self._exchange_device),
            "_get_accelerator": lambda check=None: torch.device("cuda"),
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
        if index >= len(self._gpus):
            raise RuntimeError(f"CUDA error: invalid device ordinal: there is no cuda:{index}")
        if index >= 0:
            self._thread.index = index
        return before

    def _set_device(self, device: int | str | torch.device) -> None:
        self._exchange_device(device)

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
            uuid=uuid.UUID(int=gpu.index),
            pci_bus_id=gpu.index,
            pci_device_id=0,
            pci_domain_id=0,
            is_integrated=False,
            is_multi_gpu_board=False,
            **_OF_AN_A100,
        )

    def _architectures(self) -> list[str]:
        versions = {self._capability(gpu.index) for gpu in self._gpus}
        return [f"sm_{major}{minor}" for major, minor in sorted(versions)]

    def _can_access(
        self, device: int | str | torch.device, peer_device: int | str | torch.device
    ) -> bool:
        return self._gpu(device) is not self._gpu(peer_device)

    def _processes(self, device: int | str | torch.device | None = None) -> str:
        return f"GPU:{self._gpu(device).index}\nno processes are running"

    def _fraction(self, device: int | str | torch.device | None = None) -> float:
        return self._ledger.fraction(self._gpu(device).index)

    def _set_fraction(
        self, fraction: float, device: int | str | torch.device | None = None
    ) -> None:
        if not isinstance(fraction, float):
            raise TypeError("Invalid type for fraction argument, must be `float`")
        if not 0 <= fraction <= 1:
            raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
        self._ledger.limit(self._gpu(device).index, fraction)

    def _forget_totals(self, device: int | str | torch.device | None = None) -> None:
        self._ledger.forget_totals(self._gpu(device).index)

    def _statistics(self, device: int | str | torch.device | None = None) -> dict[str, Any]:
        """Statistics of an allocator that gives back every tensor's memory when it is freed."""
        index = self._gpu(device).index
        octets, count = self._ledger.totals(index)
        unused = dict.fromkeys(_POOLS, _OF_NOTHING)
        return {
            **{name: unused | {"all": octets} for name in _OF_BYTES},
            **{name: unused | {"all": count} for name in _OF_COUNTS},
            "inactive_split": unused,
            "inactive_split_bytes": unused,
            "oversize_allocations": _OF_NOTHING,
            "oversize_segments": _OF_NOTHING,
            "num_alloc_retries": 0,
            "num_ooms": self._ledger.refusals(index),
        }

    def _summary(
        self, device: int | str | torch.device | None = None, abbreviated: bool = False
    ) -> str:
        # Where there are no GPUs, PyTorch knows none that is current.
        return _memory_summary(self._gpu(device).index, abbreviated)

    def _default_stream(self, device: int | str | torch.device | None = None) -> VirtualStream:
        return self._default_streams[self._gpu(device).index]

    def _streams(self) -> list[VirtualStream]:
        """Return the stream that is current in this thread, for each GPU."""
        if not hasattr(self._thread, "streams"):
            self._thread.streams = list(self._default_streams)
        streams: list[VirtualStream] = self._thread.streams
        return streams

    def _current_stream(self, device: int | str | torch.device | None = None) -> VirtualStream:
        return self._streams()[self._gpu(device).index]

    def _set_stream(self, stream: VirtualStream | None) -> None:
        if stream is not None:
            self._streams()[stream.device_index] = stream
            self._exchange_device(stream.device_index)

    @contextmanager
    def _in_stream(self, stream: VirtualStream | None) -> Iterator[None]:
        device, streams = self.current_device(), self._streams().copy()
        self._set_stream(stream)
        try:
            yield
        finally:
            self._thread.streams = streams
            self._exchange_device(device)


_memory_summary = torch.cuda.memory.memory_summary


def _refuse_capability(device: int | str | torch.device | None = None) -> NoReturn:
    """Say what PyTorch says of CUDA, whose guard has no such method (c10/cuda/CUDAGuardImpl.h)."""
    raise RuntimeError("Backend doesn't support getting device capabilities.")


def _refuse_graph(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError(
        "Virtual GPUs have no torch.accelerator.Graph: nothing is launched that a CUDA graph could "
        "record."
    )


def _is_available() -> bool:
    """Say that there are GPUs, but not to bitsandbytes and to PyTorch's profiler.

    The former would load its kernels for CUDA, which are not there, and then have none for the CPU
    either, for as long as the process lives. The latter would print a trace of C++ for each
    operation whose time on the GPU it cannot take; now it warns once, and takes those of the CPU.
    """
    caller: str = sys._getframe(1).f_globals.get("__name__", "")
    return not (caller == "torch.autograd.profiler" or caller.partition(".")[0] == "bitsandbytes")


def _set_sync_debug_mode(debug_mode: int | str) -> None:
    """Accept the mode in which reading a value neither warns nor fails."""
    if debug_mode not in (0, "default"):
        raise NotImplementedError(
            "Virtual GPUs have no torch.cuda.set_sync_debug_mode but the default: work is done "
            "when it is called, and nothing waits."
        )


def _seed(seed: int) -> None:
    """Seed the generator of the CPU, which also makes the random numbers of the GPUs."""
    torch.default_generator.manual_seed(seed)
