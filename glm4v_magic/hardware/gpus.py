"""The GPUs of this machine, as the driver's management library (NVML) reports them.

NVML sees the GPUs without a CUDA context and without torch. Any of its calls may fail
(boards with unified memory answer "not supported" for memory; containers hide processes; MIG
instances have no power reading), so a field that could not be read is ``None``. Where NVML does
not report memory, torch is asked if the program has imported it already.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from glm4v_magic.core.errors import PlacementError
from glm4v_magic.core.gpu_models import gpu_model
from glm4v_magic.core.gpu_spec import APPLE, GPU
from glm4v_magic.core.installed import installed_version
from glm4v_magic.core.overhead import cuda_overhead
from glm4v_magic.hardware.visible import Device, visible

__all__ = ["FoundGPU", "find_gpus", "gpu_reader", "import_torch_if_needed", "is_apple"]

_CORE = 0  # NVML_TEMPERATURE_GPU
_MEMORY = 2  # NVML_CLOCK_MEM
_NARROW = frozenset({(6, 0), (7, 0), (7, 2), (7, 5), (8, 0)})
"""Compute capabilities with 64 cores in a multiprocessor; others have 128."""


@dataclass(frozen=True, slots=True)
class FoundGPU:
    """A GPU that CUDA shows to this process; unknown fields are ``None``.

    Attributes:
        index: CUDA index, as in ``cuda:<index>``.
        name: product name.
        uuid: UUID of the GPU or the MIG instance; empty if unknown.
        total_bytes, free_bytes: memory in bytes, as the driver reports it.
        own_bytes: memory used by this process.
        context_bytes: the part of it that its CUDA context and kernels take, where the driver tells
            it.
        other_bytes: memory used by other processes and the driver.
        power_watts, power_limit_watts: power draw, and the limit in force, in watts.
        utilization: recent fraction of time in which a kernel ran, 0 to 1.
        celsius: temperature in degrees Celsius.
        capability: CUDA's compute capability.
        bandwidth: peak memory bandwidth in bytes per second: from the driver's bus width and clock,
            else that of its model in `core.gpu_models`.
        multiprocessors: number of streaming multiprocessors: its model's, or from the driver.
        ecc: whether error correction is on.
        mig: whether this is a MIG instance, a part of a GPU.
        index_certain: ``False`` if the GPUs differ, because CUDA may number them by speed and NVML
            numbers them by bus. ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` makes it certain.
    """

    index: int
    name: str
    uuid: str = ""
    total_bytes: int | None = None
    free_bytes: int | None = None
    own_bytes: int | None = None
    other_bytes: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    utilization: float | None = None
    ecc: bool | None = None
    mig: bool = False
    index_certain: bool = True
    celsius: int | None = None
    capability: tuple[int, int] | None = None
    bandwidth: int | None = None
    multiprocessors: int | None = None
    context_bytes: int | None = None

    @property
    def gpu(self) -> GPU:
        """The GPU for a plan: its size, and the memory that other programs leave free.

        Raises:
            PlacementError: if the size is unknown.
        """
        if self.total_bytes is None:
            raise PlacementError(
                f"Nothing tells how much memory cuda:{self.index} ({self.name}) has.",
                'Describe the GPUs, for example "2x24GiB".',
            )
        free = None if self.other_bytes is None else max(self.total_bytes - self.other_bytes, 0)
        model = gpu_model(self.name, self.total_bytes)
        return GPU(
            self.index,
            self.name,
            self.total_bytes,
            free,
            self.capability,
            self.bandwidth,
            None if model is None or self.mig else model.flops,
            self.multiprocessors,
            self.context_bytes,
        )


def find_gpus(environment: Mapping[str, str] | None = None) -> tuple[FoundGPU, ...]:
    """Return the GPUs that CUDA shows to this process, in CUDA's order; none without a driver.

    Args:
        environment: environment with ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER``; that of
            this process by default.
    """
    with gpu_reader(environment) as read:
        return read()


def import_torch_if_needed() -> None:
    """Import torch where it alone knows the GPUs: AMD's, with a build for ROCm, and Apple's.

    `find_gpus` then finds them. Elsewhere torch is not needed for that, and nothing happens.
    """
    build = installed_version("torch")
    if not build:
        return
    if "rocm" in build or (sys.platform == "darwin" and platform.machine() == "arm64"):
        with suppress(ImportError, OSError):  # a broken torch is the doctor's to report
            importlib.import_module("torch")


def is_apple() -> bool:
    """Tell whether torch, if it is imported, runs on Apple's GPU."""
    torch = _torch()
    if torch is None or torch.cuda.is_available():
        return False
    backend = getattr(torch.backends, "mps", None)
    return backend is not None and bool(backend.is_available())


@contextmanager
def gpu_reader(
    environment: Mapping[str, str] | None = None,
) -> Iterator[Callable[[], tuple[FoundGPU, ...]]]:
    """Yield a function like `find_gpus` for repeated calls; NVML stays initialised meanwhile."""
    environment = os.environ if environment is None else environment
    with _nvml() as nvml:

        def read() -> tuple[FoundGPU, ...]:
            found = () if nvml is None else tuple(_seen_by_nvml(nvml, environment))
            return found or tuple(_seen_by_torch()) or tuple(_of_apple())

        yield read


@contextmanager
def _nvml() -> Iterator[Any]:
    """Yield the initialised NVML library, or ``None`` without a driver."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        _ask(pynvml, "nvmlShutdown")


def _ask(nvml: Any, function: str, *arguments: Any) -> Any:
    """Return the result of an NVML function; ``None`` if it is missing or fails."""
    try:
        return getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, AttributeError, UnicodeDecodeError):
        return None


def _seen_by_nvml(nvml: Any, environment: Mapping[str, str]) -> Iterator[FoundGPU]:
    handles: dict[Device, Any] = {}
    for ordinal in range(_ask(nvml, "nvmlDeviceGetCount") or 0):
        gpu = _ask(nvml, "nvmlDeviceGetHandleByIndex", ordinal)
        if gpu is not None:
            handles.update(_devices(nvml, ordinal, gpu))
    value = environment.get("CUDA_VISIBLE_DEVICES")
    devices = _in_order_of_torch(handles) or visible(list(handles), value)
    names = {device: _ask(nvml, "nvmlDeviceGetName", handles[device]) for device in devices}
    by_bus = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    by_uuid = value is not None and value.startswith(("GPU-", "MIG-"))
    alike = len({_ask(nvml, "nvmlDeviceGetName", handle) for handle in handles.values()}) <= 1
    certain = by_bus or by_uuid or alike or bool(_in_order_of_torch(handles))
    for index, device in enumerate(devices):
        name = names[device] or "unknown GPU"
        yield _read(nvml, handles[device], index, device, str(name), certain)


def _devices(nvml: Any, ordinal: int, gpu: Any) -> Iterator[tuple[Device, Any]]:
    """Yield a GPU with its handle, or its MIG instances with theirs."""
    uuid = _ask(nvml, "nvmlDeviceGetUUID", gpu) or ""
    mode = _ask(nvml, "nvmlDeviceGetMigMode", gpu)
    if not mode or not mode[0]:
        yield Device(ordinal, uuid), gpu
        return
    for place in range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", gpu) or 0):
        instance = _ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", gpu, place)
        if instance is None:  # slots without an instance answer "not found"
            continue
        ids = (
            _ask(nvml, f"nvmlDeviceGet{kind}InstanceId", instance) for kind in ("Gpu", "Compute")
        )
        path = "/".join([uuid, *map(str, ids)])
        yield Device(ordinal, _ask(nvml, "nvmlDeviceGetUUID", instance) or "", path), instance


def _read(nvml: Any, handle: Any, index: int, device: Device, name: str, certain: bool) -> FoundGPU:
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    total, free, used = (memory.total, memory.free, memory.used) if memory else (None, None, None)
    if not total:
        total, free = _memory_by_torch(index)
        used = None if total is None or free is None else total - free
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    cores = None if device.instance else _multiprocessors(nvml, handle, name, total, capability)
    own, context = _own(nvml, handle, index, used, cuda_overhead(total or 0, capability, cores))
    utilization = _ask(nvml, "nvmlDeviceGetUtilizationRates", handle)
    ecc = _ask(nvml, "nvmlDeviceGetEccMode", handle)
    return FoundGPU(
        index,
        name,
        device.uuid,
        total,
        free,
        own,
        None if used is None else max(used - (own or 0), 0),
        _scaled(_ask(nvml, "nvmlDeviceGetPowerUsage", handle), 1000),
        _scaled(_ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle), 1000),
        _scaled(None if utilization is None else utilization.gpu, 100),
        None if ecc is None else bool(ecc[0]),
        bool(device.instance),
        certain,
        _ask(nvml, "nvmlDeviceGetTemperature", handle, _CORE),
        capability,
        # An instance has a part of the bandwidth, and nothing tells which.
        None if device.instance else _bandwidth(nvml, handle, name, total),
        cores,
        context,
    )


def _bandwidth(nvml: Any, handle: Any, name: str, total: int | None) -> int | None:
    """Return bytes per second of a GPU's memory, which moves data twice per cycle."""
    bits = _ask(nvml, "nvmlDeviceGetMemoryBusWidth", handle)
    megahertz = _ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, _MEMORY)
    if bits and megahertz:
        return int(2 * bits // 8 * megahertz * 10**6)
    return _of_model(name, total)


def _of_model(name: str, total: int | None) -> int | None:
    model = gpu_model(name, total)
    return None if model is None else model.bandwidth


def _multiprocessors(
    nvml: Any, handle: Any, name: str, total: int | None, capability: tuple[int, int] | None
) -> int | None:
    """Return the number of a GPU's multiprocessors: its model's, or by the driver's cores."""
    model = gpu_model(name, total)
    if model is not None and model.multiprocessors is not None:
        return model.multiprocessors
    cores = _ask(nvml, "nvmlDeviceGetNumGpuCores", handle)
    if not cores or capability is None:
        return None
    return int(cores) // (64 if capability in _NARROW else 128)


def _scaled(value: float | None, unit: int) -> float | None:
    return None if value is None else value / unit


def _own(
    nvml: Any, handle: Any, index: int, used: int | None, overhead: int
) -> tuple[int | None, int | None]:
    """Return the memory of this process on a GPU, and the part that is not tensors.

    In a container with its own process ids this process is not in the driver's list. Then torch's
    reserved memory is the best estimate, with the usual `overhead` beside it: a context of this
    process is not to be taken for another program.
    """
    listed, reserved = _listed_bytes(nvml, handle), _reserved_by_torch(index)
    if listed:
        return listed, None if reserved is None else max(listed - reserved, 0)
    return listed if reserved is None else _with_context(reserved, used, overhead), None


def _with_context(reserved: int, used: int | None, overhead: int) -> int:
    """Return torch's reserved memory and what the context with it takes, of what is in use."""
    own = reserved + overhead if reserved else 0
    return own if used is None else min(own, used)


def _listed_bytes(nvml: Any, handle: Any) -> int | None:
    """Return the memory that the driver lists for this process; ``None`` if it does not tell."""
    processes = _ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handle)
    if processes is None:
        return None
    mine = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    return None if None in mine else sum(mine)  # Windows lists processes without their memory


def _torch() -> Any:
    """Return torch if it is imported, else ``None``."""
    torch = sys.modules.get("torch")
    # Another thread may be in the middle of importing it.
    return None if torch is None or getattr(torch.__spec__, "_initializing", False) else torch


def _torch_cuda() -> Any:
    """Return ``torch.cuda`` if torch is imported and has a GPU, else ``None``."""
    torch = _torch()
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _with_torch(read: Callable[[Any], Any]) -> Any:
    cuda = _torch_cuda()
    if cuda is None:
        return None
    try:
        return read(cuda)
    except (RuntimeError, AssertionError, AttributeError):  # a driver that fails, an old torch
        return None


def _memory_by_torch(index: int) -> tuple[int | None, int | None]:
    """Return total and free bytes."""
    info = _with_torch(lambda cuda: cuda.mem_get_info(index))
    return (info[1], info[0]) if info else (None, None)


def _reserved_by_torch(index: int) -> int | None:
    reserved: int | None = _with_torch(
        lambda cuda: cuda.memory_reserved(index) if cuda.is_initialized() else 0
    )
    return reserved


def _in_order_of_torch(handles: Mapping[Device, Any]) -> tuple[Device, ...]:
    """Return devices in the order of an initialised CUDA runtime; empty if that is unknown."""

    def uuids(cuda: Any) -> list[str]:
        if not cuda.is_initialized():
            return []
        count = cuda.device_count()
        return [str(cuda.get_device_properties(index).uuid) for index in range(count)]

    by_uuid = {device.uuid.removeprefix("GPU-"): device for device in handles}
    order = [by_uuid.get(uuid.removeprefix("GPU-")) for uuid in _with_torch(uuids) or []]
    return tuple(device for device in order if device is not None) if all(order) else ()


def _seen_by_torch() -> Iterator[FoundGPU]:
    """Yield GPUs that only torch sees: on boards without NVML, and AMD's, which ROCm runs.

    Their compute capability stays unknown: ROCm's version numbers are not CUDA's.
    """
    names: list[str] = (
        _with_torch(lambda cuda: [cuda.get_device_name(i) for i in range(cuda.device_count())])
        or []
    )
    for index, name in enumerate(names):
        total, free = _memory_by_torch(index)
        own = _reserved_by_torch(index)
        used = None if total is None or free is None else total - free
        if own is not None:
            own = _with_context(own, used, cuda_overhead(total or 0))
        other = None if used is None else max(used - (own or 0), 0)
        bandwidth = _of_model(name, total)
        yield FoundGPU(index, name, "", total, free, own, other, bandwidth=bandwidth)


def _of_apple() -> Iterator[FoundGPU]:
    """Yield Apple's GPU. Its memory is that of the host, of which it may have a part."""
    if not is_apple():
        return
    import psutil

    torch = _torch()
    total = int(torch.mps.recommended_max_memory())
    own = int(torch.mps.driver_allocated_memory())
    free = min(max(total - own, 0), int(psutil.virtual_memory().available))
    yield FoundGPU(0, APPLE, "", total, free, own, max(total - free - own, 0))
