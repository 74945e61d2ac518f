"""When an interrupt may come: never in the middle of an import.

An interrupt in an import leaves a library half loaded, and many cannot be imported a second time
in the same process. What takes seconds to import is imported in a thread (`imports`), where a wait
can be stopped at once; any other import finishes first.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["imports_finish_first"]

_IMPORTLIB = "<frozen importlib._bootstrap>"
_PAUSE = 0.02


@contextlib.contextmanager
def imports_finish_first() -> Iterator[None]:
    """Defer an interrupt that comes during an import within the block until the import is done."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    around = _imports(sys._getframe())  # the block itself may be run by an import
    watch: _Watch | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal watch
        if _imports(frame) <= around:
            usual(number, frame)
        elif watch is None or not watch.is_alive():
            watch = _Watch(around)
            watch.start()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if watch is not None and watch.cancel():
            usual(signal.SIGINT, None)


class _Watch(threading.Thread):
    """Repeats an interrupt to the main thread once that is no longer importing."""

    def __init__(self, around: int) -> None:
        super().__init__(name="interrupt after import", daemon=True)
        self._around = around
        self._main = threading.main_thread().ident or 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(_PAUSE):
            if _imports(sys._current_frames().get(self._main)) <= self._around:
                with self._lock:
                    if not self._over.is_set():
                        self._over.set()
                        _interrupt(self._main)

    def cancel(self) -> bool:
        """End it; tells whether the interrupt was still due."""
        with self._lock:
            was_due = not self._over.is_set()
            self._over.set()
        return was_due


def _interrupt(thread: int) -> None:
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(thread, signal.SIGINT)  # ends a wait of the thread, too
    else:
        _thread.interrupt_main()


def _imports(frame: FrameType | None) -> int:
    """Return how many frames of importing are in this call stack."""
    found = 0
    while frame is not None:
        found += frame.f_code.co_filename == _IMPORTLIB
        frame = frame.f_back
    return found
