"""Memory in use right now: of the GPUs, of virtual GPUs, or of the host.

Divided into this model's weights, the rest of this process, other programs, and free memory.
Unknown numbers are ``None``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from glm4v_magic.hardware.gpus import FoundGPU

if TYPE_CHECKING:
    from glm4v_magic.virtual_gpus import VirtualGPUs

__all__ = ["HOST", "Reading", "Readings", "take_readings"]

HOST = "cpu"
"""Device name of the host's memory, as in torch."""


_VIRTUAL = (
    "Virtual GPUs: tensors that live in the host's memory. Plans keep room for a CUDA context, "
    "too, which these have not."
)


@dataclass(frozen=True, slots=True)
class Reading:
    """The memory of one device at one moment.

    Attributes:
        device: torch's name of the device; `HOST` for the host's memory.
        name: product name.
        key: stable key of the GPU, however CUDA numbers it: its UUID, if there is one.
        total_bytes: size of the memory.
        weight_bytes: weights of the loaded model.
        kernel_bytes: memory of this process except for weights and the prefix cache.
        other_bytes: memory of other programs and the driver.
        free_bytes: free memory.
        utilization: recent fraction of time in which the GPU was busy, 0 to 1.
        celsius, power_watts, power_limit_watts: as the driver reports them.
        kept_bytes: prefix cache: prompts and images that need not be read again.
    """

    device: str
    name: str
    key: str
    total_bytes: int | None
    weight_bytes: int = 0
    kernel_bytes: int | None = None
    other_bytes: int | None = None
    free_bytes: int | None = None
    utilization: float | None = None
    celsius: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    kept_bytes: int = 0

    @property
    def own_bytes(self) -> int | None:
        """All memory of this process on the device."""
        if self.kernel_bytes is None:
            return None
        return self.weight_bytes + self.kept_bytes + self.kernel_bytes


@dataclass(frozen=True, slots=True)
class Readings:
    """The memory of all devices at one moment, with a note for the reader."""

    memories: tuple[Reading, ...]
    note: str = ""


def take_readings(
    read_gpus: Callable[[], tuple[FoundGPU, ...]],
    weights: Mapping[str, int],
    kept: Mapping[str, int] | None = None,
) -> Readings:
    """Read the virtual GPUs if they are in use, else the GPUs, else the host's memory.

    Args:
        read_gpus: function that `gpus.gpu_reader` yields.
        weights: bytes of the model's weights on each device.
        kept: bytes of the prefix cache on each device.
    """
    readings = _read(read_gpus, weights)
    memories = tuple(
        _with_kept(each, (kept or {}).get(each.device, 0)) for each in readings.memories
    )
    return replace(readings, memories=memories)


def _with_kept(reading: Reading, kept: int) -> Reading:
    """Return a reading that counts the prefix cache apart from the other memory of this process."""
    if reading.kernel_bytes is None:
        return replace(reading, kept_bytes=kept)
    known = min(kept, reading.kernel_bytes)
    return replace(reading, kept_bytes=known, kernel_bytes=reading.kernel_bytes - known)


def _read(read_gpus: Callable[[], tuple[FoundGPU, ...]], weights: Mapping[str, int]) -> Readings:
    virtual = _virtual_gpus()
    if virtual is not None:
        gpus = tuple(_virtual(virtual, weights))
        return Readings(gpus, _VIRTUAL)
    gpus = tuple(_of_gpu(found, weights.get(f"cuda:{found.index}", 0)) for found in read_gpus())
    if not gpus:
        return Readings(
            (_host(weights),), "No NVIDIA GPU tells of itself here: the host's memory is shown."
        )
    silent = [gpu.device for gpu in gpus if gpu.total_bytes is None]
    if not silent:
        return Readings(gpus)
    return Readings(
        (*gpus, _host(weights)),
        f"{', '.join(silent)} does not tell its memory. Boards that share it with the host do not; "
        "the host's memory is shown as well.",
    )


def _virtual_gpus() -> VirtualGPUs | None:
    # Another thread may be in the middle of importing it: then it has no such function yet.
    active = getattr(sys.modules.get("glm4v_magic.virtual_gpus.context"), "active", None)
    return None if active is None else active()


def _virtual(gpus: VirtualGPUs, weights: Mapping[str, int]) -> list[Reading]:
    readings = []
    for gpu, live in zip(gpus.gpus, gpus.live_bytes, strict=True):
        device = f"cuda:{gpu.index}"
        model = min(weights.get(device, 0), live)
        others = max(gpu.total_bytes - gpu.usable_bytes, 0)
        readings.append(
            Reading(
                device,
                f"virtual {gpu.name}",
                f"virtual {gpu.index}",
                gpu.total_bytes,
                model,
                live - model,
                others,
                max(gpu.usable_bytes - live, 0),
            )
        )
    return readings


def _of_gpu(found: FoundGPU, weights: int) -> Reading:
    own = found.own_bytes
    model = weights if own is None else min(weights, own)
    return Reading(
        f"cuda:{found.index}",
        found.name,
        found.uuid or f"index {found.index}",
        found.total_bytes,
        model,
        None if own is None else own - model,
        found.other_bytes,
        found.free_bytes,
        found.utilization,
        found.celsius,
        found.power_watts,
        found.power_limit_watts,
    )


def _host(weights: Mapping[str, int]) -> Reading:
    import psutil

    memory = psutil.virtual_memory()
    own = psutil.Process().memory_info().rss
    model = min(weights.get(HOST, 0), own)
    taken = memory.total - memory.available
    return Reading(
        HOST,
        "host memory",
        HOST,
        memory.total,
        model,
        own - model,
        max(taken - own, 0),
        memory.available,
    )
