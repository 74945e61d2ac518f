"""Streams and events of virtual GPUs: all work is done at once, so that its order is kept."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Self

import torch

from glm4v_magic.virtual_gpus.storages import refuse_processes

__all__ = ["Ranges", "VirtualEvent", "VirtualStream"]


class VirtualStream:
    """Takes the place of ``torch.cuda.Stream`` and ``torch.Stream``.

    Operations run when they are called, whatever the stream: waiting is never needed.

    Args:
        device: the GPU; the current one by default.
        priority: stored, without effect.
        is_default: that of `device`, made before the GPUs are there.

    Raises:
        RuntimeError: if `device` is no GPU, or one that is not there.
    """

    def __init__(
        self,
        device: int | str | torch.device | None = None,
        priority: int = 0,
        *,
        is_default: bool = False,
        **_: Any,
    ) -> None:
        where = torch.device("cuda", device) if isinstance(device, int) else device
        where = None if where is None else torch.device(where)
        if where is not None and where.type != "cuda":
            raise RuntimeError(f"Virtual GPUs have streams on cuda:k alone, and none on {where}")
        index = torch.cuda.current_device() if where is None or where.index is None else where.index
        if not is_default and index >= torch.cuda.device_count():
            raise RuntimeError(f"CUDA error: invalid device ordinal: there is no cuda:{index}")
        self.device = torch.device("cuda", index)
        self.device_index = index
        self.priority = priority
        self.cuda_stream = self.native_handle = self.stream_id = 0
        self.device_type = 1  # of c10::DeviceType
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> Self:
        context = torch.cuda.stream(self)  # type: ignore[arg-type]
        context.__enter__()
        self._entered.append(context)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.pop().__exit__(None, None, None)

    @staticmethod
    def priority_range() -> tuple[int, int]:
        """Return the least and the greatest priority."""
        return 0, -5

    def is_capturing(self) -> bool:
        """Return False: no CUDA graph is made."""
        return False

    def query(self) -> bool:
        """Return True: all work is done."""
        return True

    def synchronize(self) -> None:
        """Nothing is left to wait for."""

    def wait_event(self, event: VirtualEvent) -> None:
        """Nothing is left to wait for."""

    def wait_stream(self, stream: VirtualStream) -> None:
        """Nothing is left to wait for."""

    def record_event(self, event: VirtualEvent | None = None) -> VirtualEvent:
        """Record `event`, or a new one, and return it."""
        event = event or VirtualEvent()
        event.record(self)
        return event


class VirtualEvent:
    """Takes the place of ``torch.cuda.Event`` and ``torch.Event``.

    Args:
        enable_timing: allow `elapsed_time`; the time is that of this computer.
    """

    def __init__(
        self, *_: Any, enable_timing: bool = False, blocking: bool = False, **__: Any
    ) -> None:
        self._timing = enable_timing
        self._recorded: float | None = None
        self.event_id = 0
        self.device = torch.device("cuda", torch.cuda.current_device())

    def record(self, stream: VirtualStream | None = None) -> None:
        """Note the time."""
        self._recorded = time.perf_counter()
        if stream is not None:
            self.device = stream.device

    def wait(self, stream: VirtualStream | None = None) -> None:
        """Nothing is left to wait for."""

    def query(self) -> bool:
        """Return True: all work is done."""
        return True

    def synchronize(self) -> None:
        """Nothing is left to wait for."""

    def ipc_handle(self) -> NoReturn:
        """Raise NotImplementedError."""
        refuse_processes()

    @classmethod
    def from_ipc_handle(cls, device: Any, handle: Any) -> NoReturn:
        """Raise NotImplementedError."""
        refuse_processes()

    def elapsed_time(self, end_event: VirtualEvent) -> float:
        """Return the milliseconds until `end_event` was recorded.

        Raises:
            ValueError: as CUDA does, unless both events were recorded, with ``enable_timing``.
        """
        if not (self._timing and end_event._timing):
            raise ValueError(
                "Both events must be created with argument 'enable_timing=True' before "
                "calculating elapsed time."
            )
        if self._recorded is None or end_event._recorded is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return (end_event._recorded - self._recorded) * 1000


class Ranges:
    """Takes the place of NVTX, which names ranges of time for a profiler: there is none."""

    def __init__(self) -> None:
        self._depth = 0

    def rangePushA(self, message: str) -> int:  # noqa: N802
        """Return the depth at which a range begins."""
        self._depth += 1
        return self._depth - 1

    def rangePop(self) -> int:  # noqa: N802
        """Return the depth at which the last range began."""
        self._depth = max(self._depth - 1, 0)
        return self._depth

    def rangeStartA(self, message: str) -> int:  # noqa: N802
        """Return the number of a range that may overlap others."""
        return 0

    def rangeEnd(self, number: int) -> None:  # noqa: N802
        """Nothing was recorded."""

    def markA(self, message: str) -> None:  # noqa: N802
        """Nothing is recorded."""
