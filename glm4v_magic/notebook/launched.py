"""A server that a notebook has started: its log, its answer when it is ready, and its end.

It is a process of its own with a session of its own, so that Ctrl-C in the notebook does not reach
it. It ends with the kernel, also with one that is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import IO

from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.wording import printable
from glm4v_magic.held_interrupts import interrupt_held_back
from glm4v_magic.notebook.engine_commands import EngineCommand

__all__ = ["LaunchedServer"]

_PAUSE = 0.25
_SECONDS_TO_END = 10.0
_SECONDS_FOR_REST = 5.0
_LINES = 5
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


class LaunchedServer:
    """A server, once it is started.

    Args:
        command: starts it.
        name: name of the engine, for messages.
        url: URL of its API.

    Attributes:
        command: as given, as are the others.
    """

    def __init__(self, command: EngineCommand, name: str, url: str) -> None:
        self.command, self.name, self.url = command, name, url
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._last: deque[str] = deque(maxlen=_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Start it.

        Raises:
            EngineError: if the program cannot be started.
        """
        command = self.command
        try:
            with interrupt_held_back():  # one that comes as the process forks would be lost
                self._process = subprocess.Popen(  # noqa: S603  the user asked for this program
                    command.words,
                    env={**os.environ, **command.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                    text=True,
                    errors="replace",
                )
                self._follow(self._process.stdout)
        except OSError as error:
            raise EngineError(f"{command.words[0]} did not start: {error.strerror}.") from None
        atexit.register(_end_if_there, weakref.ref(self))

    def _follow(self, log: IO[str] | None) -> None:
        assert log is not None

        def read() -> None:
            with log:
                for line in log:
                    self._last.append(line.rstrip())
                    self._lines.put(line.rstrip())

        self._reader = threading.Thread(target=read, name=f"log of {self.name}", daemon=True)
        self._reader.start()

    def wait(self) -> Iterator[str]:
        """Yield lines of the log until the server answers; ``""`` after each try to reach it.

        Raises:
            EngineError: if it ends before it answers.
        """
        answers = False
        while not answers:
            answers = self._answers()
            if self.ending:
                self.end()
                yield from self._rest()
                raise EngineError(
                    f"{self.name} {self.ending} before it was ready: "
                    f"{printable(self._last[-1]) if self._last else 'it said nothing'}",
                    "Its log is above.",
                )
            yield from self._said()
            yield ""
        yield from self._said()

    def _said(self) -> Iterator[str]:
        with contextlib.suppress(queue.Empty):
            yield self._lines.get(timeout=_PAUSE)
            while True:
                yield self._lines.get_nowait()

    def _rest(self) -> Iterator[str]:
        """Yield what the server said last, once it has ended: its pipe may still hold some."""
        if self._reader is not None:
            # A process that it left in a session of its own may keep the pipe open.
            self._reader.join(_SECONDS_FOR_REST)
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._lines.get_nowait()

    def _answers(self) -> bool:
        import httpx

        try:
            found = httpx.get(f"{self.url}/models", timeout=_PAUSE * 8, trust_env=False)
        except httpx.HTTPError:
            return False
        return found.status_code < httpx.codes.INTERNAL_SERVER_ERROR

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def ending(self) -> str:
        """How it ended, such as ``ended by signal 9``; empty while it runs."""
        status = None if self._process is None else self._process.poll()
        if status is None:
            return ""
        return f"ended by signal {-status}" if status < 0 else f"ended with status {status}"

    def end(self) -> None:
        """End it and all its processes."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_SECONDS_TO_END)
                break


def _end_if_there(server: weakref.ref[LaunchedServer]) -> None:
    there = server()
    if there is not None:
        there.end()


def _end_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
