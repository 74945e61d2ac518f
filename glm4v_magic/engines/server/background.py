"""An event loop in a thread of its own: requests go on while the caller does something else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Generator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from glm4v_magic.core.events import Waiting
from glm4v_magic.engines.silence import Silence

__all__ = ["Background"]

_ROUNDS = 3
"""Rounds of the loop after which a transport that was closed has let its socket go."""

_LOOK = 0.05
"""Seconds between two looks for an interrupt."""

_Result = TypeVar("_Result")


class Background:
    """An event loop in a thread. Use it in a ``with`` statement, whose end cancels all tasks.

    The caller's thread may have a loop that is running, as in a notebook.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)

    def submit(self, task: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        """Start a task; cancelling its future cancels it."""
        return asyncio.run_coroutine_threadsafe(task, self._loop)

    def result(
        self, task: Coroutine[Any, Any, _Result], on: str
    ) -> Generator[Waiting, None, _Result]:
        """Run a task and return its result; an interrupt ends the waiting.

        Args:
            task: the task.
            on: what it waits for; see `Waiting`.
        """
        future, silence = self.submit(task), Silence(on)
        while not future.done():
            with contextlib.suppress(TimeoutError):
                return future.result(_LOOK)
            yield from silence.said()
        return future.result()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.sleep(0)  # what the caller has cancelled begins to close its connection
        for task in tasks:
            if not task.cancelling():  # a second time would interrupt the closing
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
