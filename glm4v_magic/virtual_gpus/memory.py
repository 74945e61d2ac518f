"""Live and peak bytes of each virtual GPU, and out-of-memory errors."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from glm4v_magic.virtual_gpus.report import MemoryPeak

__all__ = ["MemoryLedger"]


@dataclass(slots=True)
class _Peak:
    start_bytes: int
    peak_bytes: int
    module: str


@dataclass(slots=True)
class _Totals:
    """Bytes and storages: allocated since the last `forget_totals`, and storages live now."""

    octets: int = 0
    storages: int = 0
    live: int = 0
    most: int = 0
    freed_octets: int = 0
    freed_storages: int = 0


class MemoryLedger:
    """Counts the storages on each GPU, each once, during their lifetime.

    Tensors are counted by their exact size. A real allocator rounds up, keeps freed blocks, and
    shares the GPU with the CUDA context and the workspaces of libraries: keep some headroom.
    """

    def __init__(self, capacities: Sequence[int]) -> None:
        self.capacities = tuple(capacities)
        self._live = [0] * len(self.capacities)
        self._highest = [0] * len(self.capacities)
        self._fractions = [1.0] * len(self.capacities)
        self._refusals = [0] * len(self.capacities)
        self._totals = [_Totals() for _ in self.capacities]
        self._peaks: dict[tuple[str, int], _Peak] = {}
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._sizes: dict[int, tuple[int, int]] = {}  # GPU and bytes
        # Storages are freed at any moment, in any thread, even inside a method of this object: they
        # are noted here (deque.append is atomic) and subtracted at the next call.
        self._ended: deque[int] = deque()
        self.is_forked = False
        self._lock = threading.RLock()

    def live_bytes(self, gpu: int) -> int:
        """Return the bytes of the live tensors on a GPU."""
        with self._lock:
            self._subtract_ended()
            return self._live[gpu]

    def peak_bytes(self, gpu: int) -> int:
        """Return the peak bytes of the tensors on a GPU since `forget_peak`, over all phases."""
        return self._highest[gpu]

    def forget_peak(self, gpu: int) -> None:
        """Let `peak_bytes` begin anew with what is live; the recorded phases are kept."""
        self._highest[gpu] = self.live_bytes(gpu)
        self._totals[gpu].most = self._totals[gpu].live

    def fraction(self, gpu: int) -> float:
        """Return the share of a GPU that tensors may take."""
        return self._fractions[gpu]

    def limit(self, gpu: int, fraction: float) -> None:
        """Let tensors take a share of a GPU, from 0 to 1."""
        self._fractions[gpu] = fraction

    def refusals(self, gpu: int) -> int:
        """Return how many tensors a GPU had no room for."""
        return self._refusals[gpu]

    def totals(self, gpu: int) -> tuple[dict[str, int], dict[str, int]]:
        """Return bytes and storages, as ``current``, ``peak``, ``allocated`` and ``freed``."""
        live, counted = self.live_bytes(gpu), self._totals[gpu]
        octets = (live, self._highest[gpu], counted.octets, counted.freed_octets)
        storages = (counted.live, counted.most, counted.storages, counted.freed_storages)
        names = ("current", "peak", "allocated", "freed")
        return dict(zip(names, octets, strict=True)), dict(zip(names, storages, strict=True))

    def forget_totals(self, gpu: int) -> None:
        """Let what `totals` says was allocated and freed begin anew."""
        live = self._totals[gpu].live
        self._totals[gpu] = _Totals(live=live, most=live)

    def hold(
        self,
        storage: torch.UntypedStorage,
        size: int,
        gpu: int,
        phase: str,
        module: str,
        where: Callable[[], str],
    ) -> None:
        """Count a storage; of one that is counted already, by what its size has changed.

        Args:
            storage: holds, or would hold, the values of a tensor.
            size: the bytes that it has, or is about to have.
            gpu: index of the GPU.
            phase: see `MemoryPeak`.
            module: module whose forward is running.
            where: returns the place in the source, for the error message.

        Raises:
            torch.OutOfMemoryError: with CUDA's text, if the GPU is too small.
            RuntimeError: with CUDA's text and a word more, in a process that was forked.
        """
        if self.is_forked:  # before the lock, which another thread may have held
            raise RuntimeError(_FORKED)
        key = storage._cdata
        with self._lock:
            self._subtract_ended()
            _, before = self._sizes.get(key, (gpu, 0))
            if key in self._known and size == before:
                return
            size -= before
            self.check_room(size, gpu, where)
            totals = self._totals[gpu]
            totals.octets += max(size, 0)
            totals.freed_octets += max(-size, 0)
            if key not in self._known:
                totals.storages += 1
                totals.live += 1
                totals.most = max(totals.most, totals.live)
                self._known[key] = weakref.ref(storage, partial(_note_end, self._ended, key))
            self._sizes[key] = gpu, before + size
            peak = self._peaks.setdefault((phase, gpu), _Peak(self._live[gpu], self._live[gpu], ""))
            self._live[gpu] += size
            self._highest[gpu] = max(self._highest[gpu], self._live[gpu])
            if self._live[gpu] > peak.peak_bytes:
                peak.peak_bytes, peak.module = self._live[gpu], module

    def check_room(self, size: int, gpu: int, where: Callable[[], str]) -> None:
        """Raise ``torch.OutOfMemoryError`` if a GPU has no room for `size` bytes more."""
        with self._lock:
            if not self.has_room(size, gpu):
                self._refusals[gpu] += 1
                raise torch.OutOfMemoryError(self._out_of_memory(gpu, size) + f" ({where()})")

    def has_room(self, size: int, gpu: int) -> bool:
        """Tell whether a GPU has room for `size` bytes more."""
        with self._lock:
            self._subtract_ended()
            room = self.capacities[gpu] * self._fractions[gpu] - self._live[gpu]
            return size <= max(room, 0)

    def gpu_of(self, storage: Any) -> int | None:
        """Return the index of the GPU that a storage is counted on, or None."""
        with self._lock:
            self._subtract_ended()
            gpu, _ = self._sizes.get(storage._cdata, (None, 0))
            return gpu

    def begin(self, phase: str) -> None:
        """Start recording a phase, unless it is being recorded."""
        with self._lock:
            self._subtract_ended()
            for gpu, live in enumerate(self._live):
                peak = self._peaks.setdefault((phase, gpu), _Peak(live, live, ""))
                peak.peak_bytes = max(peak.peak_bytes, live)

    def reset_peaks(self) -> None:
        """Forget all peaks."""
        with self._lock:
            self._peaks.clear()
            for gpu in range(len(self.capacities)):
                self.forget_peak(gpu)

    def peaks(self) -> tuple[MemoryPeak, ...]:
        """Return the peak of each GPU in each phase, phases in the order they began."""
        with self._lock:
            return tuple(
                MemoryPeak(phase, gpu, peak.peak_bytes, peak.start_bytes, peak.module)
                for (phase, gpu), peak in self._peaks.items()
            )

    def _subtract_ended(self) -> None:
        while self._ended:
            key = self._ended.popleft()
            self._known.pop(key, None)
            gpu, size = self._sizes.pop(key)
            self._live[gpu] -= size
            totals = self._totals[gpu]
            totals.live -= 1
            totals.freed_octets += size
            totals.freed_storages += 1

    def _out_of_memory(self, gpu: int, size: int) -> str:
        """Return the text of c10/cuda/CUDACachingAllocator.cpp."""
        total, live = self.capacities[gpu], self._live[gpu]
        return (
            f"CUDA out of memory. Tried to allocate {_format_size(size)}. GPU {gpu} has a total "
            f"capacity of {_format_size(total)} of which {_format_size(total - live)} is free. "
            f"Of the allocated memory {_format_size(live)} is allocated by PyTorch, and 0 bytes "
            "is reserved by PyTorch but unallocated."
        )


# torch/cuda/__init__.py, and what else it takes here
_FORKED = (
    "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must "
    "use the 'spawn' start method; virtual GPUs are made there by a block of its own."
)


def _note_end(ended: deque[int], key: int, reference: weakref.ref[torch.UntypedStorage]) -> None:
    ended.append(key)


def _format_size(size: int) -> str:
    """Format a size as ``format_size`` in c10/cuda/CUDACachingAllocator.cpp does."""
    if size <= 1024:
        return f"{size} bytes"
    for unit, power in (("KiB", 1), ("MiB", 2)):
        if size <= 1024 ** (power + 1):
            return f"{size / 1024**power:.2f} {unit}"
    return f"{size / 1024**3:.2f} GiB"
