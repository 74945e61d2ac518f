"""Who uses a card: the processes that NVML lists for it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from glm4v_magic.placement.gpus import FoundGPU, _ask, _nvml

__all__ = ["CardUser", "other_users"]


@dataclass(frozen=True, slots=True)
class CardUser:
    """Another process with memory on a card; `used_bytes` is ``None`` where that is not told."""

    pid: int
    name: str
    used_bytes: int | None


def other_users(card: FoundGPU) -> tuple[CardUser, ...]:
    """Return the processes on a card beside this one, the largest first.

    Empty where the driver does not tell, as in most containers.
    """
    with _nvml() as nvml:
        handle = None
        if nvml is not None and card.uuid:
            handle = _ask(nvml, "nvmlDeviceGetHandleByUUID", card.uuid)
        if handle is None:
            return ()
        listed = [
            process
            for kind in ("Compute", "Graphics")
            for process in _ask(nvml, f"nvmlDeviceGet{kind}RunningProcesses", handle) or ()
        ]
        users = {
            process.pid: CardUser(
                process.pid,
                str(_ask(nvml, "nvmlSystemGetProcessName", process.pid) or ""),
                process.usedGpuMemory,
            )
            for process in listed
            if process.pid != os.getpid()
        }
    return tuple(sorted(users.values(), key=lambda user: -(user.used_bytes or 0)))
