"""NVML as far as it is asked, with GPUs that a test describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

GIB = 2**30


MISSING = object()


@dataclass
class Described:
    """A GPU or MIG instance as the driver would describe it; `MISSING` is "not supported"."""

    uuid: Any = "GPU-aaaa"
    name: Any = "NVIDIA A100"
    memory: Any = (40 * GIB, 30 * GIB)  # total, free
    processes: Any = ()  # pid, bytes
    power: Any = 61_500
    limit: Any = 400_000
    utilization: Any = 35
    ecc: Any = True
    bus: Any = 5120  # bits
    clock: Any = 1215  # MHz
    capability: Any = MISSING
    cores: Any = MISSING
    instances: list[Described] | None = None
    ids: tuple[int, int] = (0, 0)
    handle: object = field(default_factory=object)


class Driver:
    """GPUs behind the functions of NVML."""

    def __init__(self, gpus: list[Described]) -> None:
        self.gpus = gpus
        self.initialised = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in dir(pynvml):
            if name.startswith("nvmlDevice"):
                monkeypatch.setattr(pynvml, name, self.not_supported)
        functions: dict[str, Callable[..., Any]] = {
            "nvmlInit": lambda: self.count(1),
            "nvmlShutdown": lambda: self.count(-1),
            "nvmlDeviceGetCount": lambda: len(self.gpus),
            "nvmlDeviceGetHandleByIndex": lambda index: self.gpus[index],
            "nvmlDeviceGetName": lambda gpu: self.told(gpu.name),
            "nvmlDeviceGetUUID": lambda gpu: self.told(gpu.uuid),
            "nvmlDeviceGetMemoryInfo": self.memory,
            "nvmlDeviceGetComputeRunningProcesses": self.processes,
            "nvmlDeviceGetPowerUsage": lambda gpu: self.told(gpu.power),
            "nvmlDeviceGetEnforcedPowerLimit": lambda gpu: self.told(gpu.limit),
            "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(
                gpu=self.told(gpu.utilization)
            ),
            "nvmlDeviceGetEccMode": lambda gpu: [self.told(gpu.ecc), self.told(gpu.ecc)],
            "nvmlDeviceGetMemoryBusWidth": lambda gpu: self.told(gpu.bus),
            "nvmlDeviceGetMaxClockInfo": lambda gpu, kind: {
                pynvml.NVML_CLOCK_MEM: self.told(gpu.clock)
            }[kind],
            "nvmlDeviceGetCudaComputeCapability": lambda gpu: self.told(gpu.capability),
            "nvmlDeviceGetNumGpuCores": lambda gpu: self.told(gpu.cores),
            "nvmlDeviceGetMigMode": lambda gpu: [gpu.instances is not None] * 2,
            "nvmlDeviceGetMaxMigDeviceCount": lambda gpu: 7,
            "nvmlDeviceGetMigDeviceHandleByIndex": self.instance,
            "nvmlDeviceGetGpuInstanceId": lambda gpu: gpu.ids[0],
            "nvmlDeviceGetComputeInstanceId": lambda gpu: gpu.ids[1],
        }
        for name, function in functions.items():
            monkeypatch.setattr(pynvml, name, function)

    def count(self, change: int) -> None:
        self.initialised += change

    def not_supported(self, *arguments: Any) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def told(self, value: Any) -> Any:
        return self.not_supported() if value is MISSING else value

    def memory(self, gpu: Described) -> Any:
        total, free = self.told(gpu.memory)
        return SimpleNamespace(total=total, free=free, used=total - free)

    def processes(self, gpu: Described) -> Any:
        listed = self.told(gpu.processes)
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in listed]

    def instance(self, gpu: Described, place: int) -> Described:
        if gpu.instances is None or place >= len(gpu.instances):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return gpu.instances[place]
