"""Processes that use a GPU, as NVML lists them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from glm4v_magic.hardware.gpus import FoundGPU, _ask, _nvml

__all__ = ["GPUUser", "other_users"]


@dataclass(frozen=True, slots=True)
class GPUUser:
    """Another process with memory on a GPU; `used_bytes` is ``None`` if unknown."""

    pid: int
    name: str
    used_bytes: int | None


def other_users(gpu: FoundGPU) -> tuple[GPUUser, ...]:
    """Return the other processes on a GPU, the largest first.

    Empty where the driver does not tell, as in most containers.
    """
    with _nvml() as nvml:
        handle = None
        if nvml is not None and gpu.uuid:
            handle = _ask(nvml, "nvmlDeviceGetHandleByUUID", gpu.uuid)
        if handle is None:
            return ()
        listed = [
            process
            for kind in ("Compute", "Graphics")
            for process in _ask(nvml, f"nvmlDeviceGet{kind}RunningProcesses", handle) or ()
        ]
        users = {
            process.pid: GPUUser(
                process.pid,
                str(_ask(nvml, "nvmlSystemGetProcessName", process.pid) or ""),
                process.usedGpuMemory,
            )
            for process in listed
            if process.pid != os.getpid()
        }
    return tuple(sorted(users.values(), key=lambda user: -(user.used_bytes or 0)))
