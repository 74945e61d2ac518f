"""Interrupts that wait until something is through which must not be left half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["interrupt_held_back"]


@contextlib.contextmanager
def interrupt_held_back(told: Callable[[], object] | None = None) -> Iterator[None]:
    """Defer an interrupt until the block is done.

    Args:
        told: called when the first one comes, for a block that takes long.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # interrupts come to the main thread only
        return
    held: list[Any] = []

    def hold(*interrupt: Any) -> None:
        held.append(interrupt)
        if told is not None and len(held) == 1:
            told()

    usual = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if held and callable(usual):
            usual(*held[-1])
