"""The memory that pictures show, watched by one thread for as long as a picture is open.

It reads once a second, four times a second during a call, and tells a picture only what has
changed. It neither prints nor touches the model: it reads what the driver and the session tell.
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

from glm4v_magic.display.memory import BUCKETS, MemoryPicture, MemoryRow, Peak
from glm4v_magic.placement.activity import ActivityRecorder
from glm4v_magic.placement.costs import DTYPE_BYTES
from glm4v_magic.placement.gpus import FoundGPU, gpu_reader
from glm4v_magic.placement.readings import HOST, Reading, Readings, take_readings

if TYPE_CHECKING:
    from glm4v_magic.conversation import Answer
    from glm4v_magic.engines import EngineInfo
    from glm4v_magic.session import Status

__all__ = ["CLOCK", "Monitor", "View", "weights_by_device"]

IDLE_SECONDS = 1.0
BUSY_SECONDS = 0.25
CATCH_UP_SECONDS = 1.0
CLOCK = "%Y-%m-%d %H:%M:%S"
MINUTES = 5
_BUCKET_SECONDS = 60 * MINUTES / BUCKETS
_STEPS = 1000  # numbers are rounded to this part of a memory: less is noise
_MIB = 2**20
_PEAKS = 20
_JOIN_SECONDS = 2.0


class View(Protocol):
    """Something that shows what the monitor sees."""

    def refresh(self, picture: MemoryPicture, status: Status) -> None:
        """Show `picture`. Runs on the monitor's thread; whatever it raises closes the view."""


class Monitor:
    """Watches for open views.

    Args:
        status: of the session; called often and from another thread.
        recorder: of the session; it notes what the model does for as long as a view is open.
    """

    def __init__(
        self, status: Callable[[], Status], recorder: ActivityRecorder | None = None
    ) -> None:
        self._status = status
        self._recorder = recorder or ActivityRecorder()
        self._views: weakref.WeakSet[View] = weakref.WeakSet()
        self._lock = threading.RLock()
        self._end: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()
        self._told = threading.Condition()
        self._histories: dict[str, _History] = {}
        self._last: Answer | None = None
        self._asked = self._answered = 0  # looks, by number
        self._was_busy = False

    @property
    def is_running(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None

    def watch(self, view: View) -> None:
        """Tell `view` from now on what is seen, until `forget`, or until it is collected."""
        with self._lock:
            self._views.add(view)
            if self._thread is None:
                self._end = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._end,), name="glm4v-monitor", daemon=True
                )
                atexit.register(self.stop)
                self._recorder.is_watched = True
                self._thread.start()

    def forget(self, view: View) -> None:
        """Tell `view` nothing any more; the thread ends with the last one."""
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
        """Tell the thread to end; the next view gets another."""
        thread, self._thread = self._thread, None
        self._recorder.is_watched = False
        if self._end is not None:
            self._end.set()
        self._hurry.set()
        atexit.unregister(self.stop)
        return thread

    def catch_up(self) -> None:
        """Wait until the views have been told of this moment, if they are told at all."""
        with self._told:
            if self.is_running:
                self._asked += 1
                asked = self._asked
                self._hurry.set()
                self._told.wait_for(lambda: self._answered >= asked, CATCH_UP_SECONDS)

    def picture(self) -> MemoryPicture:
        """Read now; works without the thread."""
        with gpu_reader() as read:
            return self._look(read)[0]

    def _run(self, end: threading.Event) -> None:
        with gpu_reader() as read:
            while not end.is_set():
                asked = self._asked
                picture, status = self._look(read)
                self._tell(picture, status)
                with self._lock:
                    if not self._views and not end.is_set():
                        self._dismiss()
                with self._told:
                    self._answered = asked
                    self._told.notify_all()
                del status  # holds on to an answer and its pictures
                self._hurry.wait(BUSY_SECONDS if picture.busy else IDLE_SECONDS)
                self._hurry.clear()

    def _tell(self, picture: MemoryPicture, status: Status) -> None:
        for view in list(self._views):
            try:
                view.refresh(picture, status)
            except Exception:  # a front end that went away must not end the others
                self._views.discard(view)

    def _look(self, read: Callable[[], tuple[FoundGPU, ...]]) -> tuple[MemoryPicture, Status]:
        status = self._status()
        readings = take_readings(read, weights_by_device(status.info))
        with self._lock:
            rows = tuple(self._rows(readings, status))
            self._last, self._was_busy = status.last, status.busy
        model = "" if status.info is None else status.info.model
        activity = self._recorder.read(is_busy=status.busy)
        at = time.strftime(CLOCK)
        return MemoryPicture(model, status.busy, rows, readings.note, MINUTES, activity, at), status

    def _rows(self, readings: Readings, status: Status) -> Iterator[MemoryRow]:
        now = time.monotonic()
        answer = None if status.last is self._last else status.last
        for reading in readings.memories:
            history = self._histories.setdefault(reading.key, _History())
            rounded = _rounded(reading)
            if status.busy and not self._was_busy:
                history.call_began()
            history.add(now, rounded.own_bytes)
            if answer is not None:
                told = answer.usage.peak_bytes.get(reading.device, 0)
                history.answered(now, told)
            yield MemoryRow(rounded, history.buckets(now), history.peaks(now))


def _join(thread: threading.Thread | None) -> None:
    # A view may close itself on the thread that tells it.
    if thread is not None and thread is not threading.current_thread():
        thread.join(_JOIN_SECONDS)


class _History:
    """What this process held of one memory lately."""

    def __init__(self) -> None:
        self._most: deque[tuple[int, int]] = deque(maxlen=BUCKETS)  # bucket, bytes
        self._peaks: deque[tuple[int, int]] = deque(maxlen=_PEAKS)
        self._in_call = 0

    def call_began(self) -> None:
        self._in_call = 0

    def add(self, now: float, size: int | None) -> None:
        if size is None:
            return
        self._in_call = max(self._in_call, size)
        bucket = _bucket(now)
        if self._most and self._most[-1][0] == bucket:
            size = max(size, self._most.pop()[1])
        self._most.append((bucket, size))

    def answered(self, now: float, told: int) -> None:
        """Mark the peak of a call: what torch tells, or the most that was read meanwhile."""
        peak = max(told, self._in_call)
        if peak:
            self._peaks.append((_bucket(now), peak))
        self._in_call = 0

    def buckets(self, now: float) -> tuple[int | None, ...]:
        first = _bucket(now) - BUCKETS + 1
        sizes: list[int | None] = [None] * BUCKETS
        for bucket, size in self._most:
            if bucket >= first:
                sizes[bucket - first] = size
        return tuple(sizes)

    def peaks(self, now: float) -> tuple[Peak, ...]:
        first = _bucket(now) - BUCKETS + 1
        return tuple(Peak(bucket - first, size) for bucket, size in self._peaks if bucket >= first)


def weights_by_device(info: EngineInfo | None) -> Mapping[str, int]:
    """Return the bytes of a loaded model's weights on each device, as far as they are known.

    A plan knows them, and loading has checked that they are so; without GPUs they are all on the
    CPU. Of a map that was given nothing is known.
    """
    if info is None:
        return {}
    if info.plan is not None:
        return {stage.device: stage.weight_bytes for stage in info.plan.stages}
    if info.devices == (HOST,) and info.quantize is None and info.parameters:
        return {HOST: info.parameters * DTYPE_BYTES.get(info.dtype, 0)}
    return {}


def _rounded(reading: Reading) -> Reading:
    step = max((reading.total_bytes or 0) // _STEPS, 1)

    def whole(size: int | None, step: int = step) -> int | None:
        return None if size is None else size // step * step

    return replace(
        reading,
        kernel_bytes=whole(reading.kernel_bytes, min(step, _MIB)),
        other_bytes=whole(reading.other_bytes),
        free_bytes=whole(reading.free_bytes),
        power_watts=None if reading.power_watts is None else float(round(reading.power_watts)),
    )


def _bucket(now: float) -> int:
    return int(now / _BUCKET_SECONDS)
