"""Driver versions and links between GPUs, as NVML reports them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from glm4v_magic.hardware.gpus import FoundGPU, _ask, _nvml

__all__ = ["Driver", "Link", "find_driver", "find_links"]

# nvml.h, nvmlGpuP2PCapsIndex_t. pynvml 13.615 has the tuple (0,) for NVML_P2P_CAPS_INDEX_READ.
_READ, _NVLINK = 0, 2

_OBSTACLES = {
    "NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED": "the chipset does not support it",
    "NVML_P2P_STATUS_GPU_NOT_SUPPORTED": "the GPUs do not support it",
    "NVML_P2P_STATUS_IOH_TOPOLOGY_NOT_SUPPORTED": "the GPUs hang on different PCIe roots",
    "NVML_P2P_STATUS_DISABLED_BY_REGKEY": "the driver's settings turn it off",
}


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver of NVIDIA's GPUs.

    Attributes:
        version: driver version, such as ``550.54.15``; empty if unknown.
        cuda: newest CUDA version that it runs, major and minor; ``None`` if unknown.
    """

    version: str
    cuda: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Link:
    """The link between two GPUs; ``None`` where the driver does not tell.

    Attributes:
        gpus: CUDA indices of the two GPUs.
        peer: whether each can read the other's memory directly, without a copy in host memory.
        nvlink: whether they are connected by NVLink.
        obstacle: why there is no peer access; empty if there is, or if unknown.
    """

    gpus: tuple[int, int]
    peer: bool | None
    nvlink: bool | None
    obstacle: str = ""


def find_driver() -> Driver | None:
    """Return the driver's versions; ``None`` without a driver."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        version = _ask(nvml, "nvmlSystemGetDriverVersion")
        cuda = _ask(nvml, "nvmlSystemGetCudaDriverVersion_v2")  # 1000 x major + 10 x minor
    return Driver(str(version or ""), (cuda // 1000, cuda % 1000 // 10) if cuda else None)


def find_links(gpus: Sequence[FoundGPU]) -> tuple[Link, ...]:
    """Return the link between every two of `gpus`."""
    with _nvml() as nvml:
        if nvml is None:
            return ()
        handles = {
            gpu.index: _ask(nvml, "nvmlDeviceGetHandleByUUID", gpu.uuid) if gpu.uuid else None
            for gpu in gpus
        }
        return tuple(
            _link(nvml, pair, [handles[index] for index in pair])
            for pair in combinations(handles, 2)
        )


def _link(nvml: Any, pair: tuple[int, int], handles: Sequence[Any]) -> Link:
    if None in handles:
        return Link(pair, None, None)
    peer, nvlink = (_states(nvml, handles, capability) for capability in (_READ, _NVLINK))
    names = [text for name, text in _OBSTACLES.items() if getattr(nvml, name, None) in (peer or ())]
    return Link(pair, _all_ok(nvml, peer), _all_ok(nvml, nvlink), names[0] if names else "")


def _states(nvml: Any, handles: Sequence[Any], capability: int) -> tuple[int, ...] | None:
    """Return NVML's status of a capability in both directions; ``None`` if unknown."""
    states = [
        _ask(nvml, "nvmlDeviceGetP2PStatus", *pair, capability)
        for pair in (handles, reversed(handles))
    ]
    return None if None in states or nvml.NVML_P2P_STATUS_UNKNOWN in states else tuple(states)


def _all_ok(nvml: Any, states: tuple[int, ...] | None) -> bool | None:
    return None if states is None else set(states) == {nvml.NVML_P2P_STATUS_OK}
