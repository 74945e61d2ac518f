"""Monitor of memory: one thread that updates views for as long as one is open.

It reads once a second, four times a second during a call, and tells a view only what has
changed. It neither prints nor touches the model: it reads what the driver and the session report.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from glm4v_magic.core.errors import reason
from glm4v_magic.core.model_shape import DTYPE_BYTES
from glm4v_magic.dispatch.activity import Activity, ActivityRecorder
from glm4v_magic.hardware.gpus import FoundGPU, gpu_reader
from glm4v_magic.hardware.readings import HOST, Reading, Readings, take_readings
from glm4v_magic.notebook.render.memory import BUCKETS, MemoryRow, MemoryView, Peak

if TYPE_CHECKING:
    from glm4v_magic.core.conversation import Answer
    from glm4v_magic.core.model import EngineInfo
    from glm4v_magic.session.session import Status

__all__ = ["BUCKET_SECONDS", "CLOCK", "History", "Monitor", "View", "weights_by_device"]

IDLE_SECONDS = 1.0
BUSY_SECONDS = 0.25
CATCH_UP_SECONDS = 1.0
CLOCK = "%Y-%m-%d %H:%M:%S"
MINUTES = 5
BUCKET_SECONDS = 60 * MINUTES / BUCKETS
"""Seconds that each point of a history stands for."""

_STEPS = 1000  # numbers are rounded to this part of a memory: less is noise
_MIB = 2**20
_PEAKS = 20
_JOIN_SECONDS = 2.0


class View(Protocol):
    """A view that the monitor updates."""

    def refresh(self, view: MemoryView, status: Status) -> None:
        """Show `view`. Runs on the monitor's thread; an exception closes the view."""


class Monitor:
    """Reads memory for open views.

    Args:
        status: returns the session's status; called often and from another thread.
        recorder: recorder of the session; it is watched for as long as a view is open.
    """

    def __init__(
        self, status: Callable[[], Status], recorder: ActivityRecorder | None = None
    ) -> None:
        self._status = status
        self._recorder = recorder or ActivityRecorder()
        self._views: weakref.WeakSet[View] = weakref.WeakSet()
        self._lock = threading.RLock()  # of views, watch and histories
        self._watch: _Watch | None = None
        self._watching = threading.Lock()  # held by the one thread that reads
        self._told = threading.Condition()
        self._histories: dict[str, History] = {}
        self._last: Answer | None = None
        self._asked = self._answered = 0  # readings, by number
        self._was_busy = False

    @property
    def is_running(self) -> bool:
        """Whether the thread is running."""
        return self._watch is not None

    def watch(self, view: View) -> None:
        """Update `view` from now on, until `forget`, or until it is garbage collected."""
        with self._lock:
            self._views.add(view)
            if self._watch is None:
                self._watch = _Watch(self._run)
                self._recorder.is_watched = True
                atexit.register(self.stop)
                self._watch.thread.start()

    def forget(self, view: View) -> None:
        """Stop updating `view`; the thread ends with the last one."""
        with self._lock:
            self._views.discard(view)
            ended = None if self._views else self._dismiss()
        _join(ended)

    def stop(self) -> None:
        """End the thread. Views stay as they are."""
        with self._lock:
            ended = self._dismiss()
        _join(ended)

    def _dismiss(self) -> threading.Thread | None:
        """Tell the thread to end; the next view starts another."""
        watch, self._watch = self._watch, None
        self._recorder.is_watched = False
        atexit.unregister(self.stop)
        with self._told:
            self._told.notify_all()  # nobody will answer
        if watch is None:
            return None
        watch.end.set()
        watch.hurry.set()
        return watch.thread

    def catch_up(self) -> None:
        """Wait until the views show a reading from now on, if the thread is running."""
        with self._told:
            watch = self._watch
            if watch is not None and watch.thread is not threading.current_thread():
                self._asked += 1
                asked = self._asked
                watch.hurry.set()
                self._told.wait_for(
                    lambda: self._answered >= asked or self._watch is not watch, CATCH_UP_SECONDS
                )

    def view(self) -> MemoryView:
        """Read memory now, with the calls that the thread has seen; the thread need not run."""
        with gpu_reader() as read:
            status = self._status()
            readings = self._readings(read, status)
            with self._lock:
                rows = tuple(self._rows(readings))
            return _view(status, readings, rows)

    def _run(self, watch: _Watch) -> None:
        try:
            with self._watching, gpu_reader() as read:
                # Nobody knows when an answer ended that was there before the first reading.
                self._last, self._was_busy = self._status().last, False
                asked = self._requests(watch)
                while not watch.end.is_set():
                    is_busy = self._look_and_tell(read, watch)
                    with self._told:
                        self._answered = asked
                        self._told.notify_all()
                    watch.hurry.wait(BUSY_SECONDS if is_busy else IDLE_SECONDS)
                    asked = self._requests(watch)
        finally:
            with self._lock:
                if self._watch is watch:
                    self._dismiss()

    def _requests(self, watch: _Watch) -> int:
        """Return how many readings were requested; the next reading serves all of them."""
        with self._told:
            watch.hurry.clear()
            return self._asked

    def _look_and_tell(self, read: Callable[[], tuple[FoundGPU, ...]], watch: _Watch) -> bool:
        """Return whether a call is running. Keeps no status, which holds an answer."""
        status = self._status()
        readings = self._readings(read, status)
        activity = self._recorder.read(is_busy=status.busy)
        with self._lock:
            if watch.end.is_set():
                return False
            began = status.busy and not self._was_busy
            ended = None if status.last is self._last else status.last
            rows = tuple(self._rows(readings, began=began, ended=ended))
            self._last, self._was_busy = status.last, status.busy
        self._tell(_view(status, readings, rows, activity), status)
        with self._lock:
            if not self._views and self._watch is watch:
                self._dismiss()
        return status.busy

    def _tell(self, view: MemoryView, status: Status) -> None:
        with self._lock:  # another view may be added meanwhile
            views = list(self._views)
        for each in views:
            try:
                each.refresh(view, status)
            except Exception:  # a front end that went away must not end the others
                with self._lock:
                    self._views.discard(each)

    def _readings(self, read: Callable[[], tuple[FoundGPU, ...]], status: Status) -> Readings:
        try:
            found = take_readings(
                read,
                weights_by_device(status.info),
                {} if status.kept is None else dict(status.kept.devices),
            )
        except Exception as error:  # libraries of drivers have errors of their own
            return Readings((), f"What is in memory cannot be read now: {reason(error)}")
        return Readings(tuple(_rounded(reading) for reading in found.memories), found.note)

    def _rows(
        self, readings: Readings, *, began: bool = False, ended: Answer | None = None
    ) -> Iterator[MemoryRow]:
        """Yield the row of each memory, with calls that began or ended since the last reading."""
        now = time.monotonic()
        for reading in readings.memories:
            history = self._histories.setdefault(reading.key, History())
            if began:
                history.call_began()
            history.add(now, reading.own_bytes)
            if ended is not None:
                history.answered(now, ended.usage.peak_bytes.get(reading.device, 0))
            yield MemoryRow(reading, history.buckets(now), history.peaks(now))


class _Watch:
    """One run of the thread.

    Attributes:
        thread: the thread.
        end: set to stop the thread.
        hurry: set to make it read at once.
    """

    def __init__(self, run: Callable[[_Watch], None]) -> None:
        self.end, self.hurry = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=run, args=(self,), name="glm4v-monitor", daemon=True)


def _view(
    status: Status,
    readings: Readings,
    rows: tuple[MemoryRow, ...],
    activity: Activity | None = None,
) -> MemoryView:
    info = status.info
    return MemoryView(
        "" if info is None else info.model,
        status.busy,
        rows,
        readings.note,
        MINUTES,
        activity or Activity(),
        time.strftime(CLOCK),
        (info and info.server) or "",
        () if info is None else info.replicas,
    )


def _join(thread: threading.Thread | None) -> None:
    # A view may close itself on the monitor's own thread.
    if thread is not None and thread is not threading.current_thread():
        thread.join(_JOIN_SECONDS)


class History:
    """Recent history of this process's use of one memory."""

    def __init__(self) -> None:
        self._most: deque[tuple[int, int]] = deque(maxlen=BUCKETS)  # bucket, bytes
        self._peaks: deque[tuple[int, int]] = deque(maxlen=_PEAKS)
        self._in_call = 0

    def call_began(self) -> None:
        """Forget the highest reading of the previous call."""
        self._in_call = 0

    def add(self, now: float, size: int | None) -> None:
        """Record the bytes held at a time in seconds; ``None`` if unknown."""
        if size is None:
            return
        self._in_call = max(self._in_call, size)
        bucket = _bucket(now)
        if self._most and self._most[-1][0] == bucket:
            size = max(size, self._most.pop()[1])
        self._most.append((bucket, size))

    def answered(self, now: float, told: int) -> None:
        """Mark the peak of a call: torch's peak, or the highest reading during the call."""
        peak = max(told, self._in_call)
        if peak:
            self._peaks.append((_bucket(now), peak))
        self._in_call = 0

    def buckets(self, now: float) -> tuple[int | None, ...]:
        """Return the most bytes held in each span until `now`, ``None`` where nothing was read."""
        first = _bucket(now) - BUCKETS + 1
        sizes: list[int | None] = [None] * BUCKETS
        for bucket, size in self._most:
            if bucket >= first:
                sizes[bucket - first] = size
        return tuple(sizes)

    def peaks(self, now: float) -> tuple[Peak, ...]:
        """Return the peaks of calls in the spans until `now`."""
        first = _bucket(now) - BUCKETS + 1
        return tuple(Peak(bucket - first, size) for bucket, size in self._peaks if bucket >= first)


def weights_by_device(info: EngineInfo | None) -> Mapping[str, int]:
    """Return the bytes of a loaded model's weights on each device, as far as known.

    A plan knows them, and loading has checked that they are so; without GPUs they are all on the
    CPU. For a given device map nothing is known.
    """
    if info is None or info.replicas:
        return {}
    if info.plan is not None:
        return {stage.device: stage.weight_bytes for stage in info.plan.stages}
    if info.devices == (HOST,) and info.quantize is None and info.parameters:
        return {HOST: info.parameters * DTYPE_BYTES.get(info.dtype, 0)}
    return {}


def _rounded(reading: Reading) -> Reading:
    """Return a reading without noise; what is rounded off the memory in use is counted as free."""
    step = max((reading.total_bytes or 0) // _STEPS, 1)

    def whole(size: int | None, step: int = step) -> int | None:
        return None if size is None else round(size / step) * step

    kernel, others = whole(reading.kernel_bytes, min(step, _MIB)), whole(reading.other_bytes)
    parts = (reading.kernel_bytes, reading.other_bytes, reading.free_bytes)
    left = [each for each in parts if each is not None]
    free = whole(reading.free_bytes)
    if kernel is not None and others is not None and len(left) == len(parts):
        free = max(sum(left) - kernel - others, 0)
    return replace(
        reading,
        kernel_bytes=kernel,
        other_bytes=others,
        free_bytes=free,
        power_watts=None if reading.power_watts is None else float(round(reading.power_watts)),
    )


def _bucket(now: float) -> int:
    return int(now / BUCKET_SECONDS)
