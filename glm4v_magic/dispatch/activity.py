"""Activity of a model: which part of it is running, for the views shown during an answer.

A part is drawn as one piece in the view of the device map: the vision tower, the embedding, the
layers of a GPU, norm and head. Hooks on its first and last module note when it begins and ends.
A reader asks a few times a second which share of the time since the last reading each part took:
a single step is over long before a view of it could be drawn.

Each hook costs microseconds, and a token of a small model takes no more than two thousand of them.
So hooks stay for a few steps after each reading and are off until the next one, which does not slow
an answer; a model with long steps keeps them.

Hooks run on the host. On the CPU and on virtual GPUs the work is done there, too, so shares are
those of the work itself. A real GPU works asynchronously: the host queues operations, runs ahead,
and waits where it needs a result. Shares then tell where the host spent its time, not what a GPU
computes; `Activity.is_queued` says so, and views must word it so. The load of a GPU comes from the
driver (`readings.Reading.utilization`).
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glm4v_magic.planning.occupancy import occupancy

if TYPE_CHECKING:
    from glm4v_magic.core.model_shape import ModelShape
    from glm4v_magic.core.plan import Plan

__all__ = ["ActivePart", "Activity", "ActivityRecorder", "Listener", "ModelPart", "model_parts"]

_LEAST = 0.05  # share of the time below which a part is not shown
_MOST_NOTES = 20_000  # without a reader the oldest are dropped
_NOTED_STEPS = 2  # steps with hooks after each reading: the first may be cut short by it


@dataclass(frozen=True, slots=True, eq=False)
class ModelPart:
    """A part of a model on one device; `modules` in execution order.

    Compared by identity, which makes it a fast key.
    """

    device: str
    name: str
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ActivePart:
    """A part that ran: its share of the call's time since the last reading, 0 to 1."""

    device: str
    name: str
    share: float


@dataclass(frozen=True, slots=True)
class Activity:
    """Parts that ran since the last reading.

    Attributes:
        parts: parts in the order of the model; empty if no call is running.
        is_queued: whether shares are of the time in which the host queued work for GPUs.
    """

    parts: tuple[ActivePart, ...] = ()
    is_queued: bool = False


def model_parts(plan: Plan, shape: ModelShape) -> tuple[ModelPart, ...]:
    """Return the parts of a model under a plan, as the view of the plan shows them."""
    return tuple(
        ModelPart(gpu.device, part.name, part.modules)
        for gpu in occupancy(plan, shape).gpus
        for part in gpu.parts
        if part.modules
    )


class Listener:
    """Hook that only notes that a module begins or ends, whatever it is called with.

    A step that does the work of a module without calling it may call this by itself.

    Args:
        note: called without arguments.
    """

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    def __call__(self, *_: Any) -> None:
        """Call `note`."""
        self._note()


# No part runs: while sampling, handling text or masks; in steps without hooks; outside of calls.
_BETWEEN, _UNSEEN, _REST = (ModelPart("", name) for name in ("between parts", "unseen", "rest"))


class ActivityRecorder:
    """Records when parts begin and end, while a call runs and is watched.

    The engine writes in its thread, the monitor reads in another. A note is one append to a deque,
    which needs no lock.

    Args:
        clock: seconds from an arbitrary moment.

    Attributes:
        is_watched: whether to record calls that begin from now on.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.is_watched = False
        self._clock = clock
        self._notes: deque[tuple[float, ModelPart]] = deque(maxlen=_MOST_NOTES)
        self._parts: tuple[ModelPart, ...] = ()
        self._is_queued = False
        self._hooks: list[Any] = []
        self._modules: dict[str, Any] | None = None  # of the model whose call runs
        self._steps = 0  # noted since the last reading
        self._is_read = False  # since the step before
        self._latest = Activity()
        self._reading = threading.Lock()
        self._now, self._since = _REST, clock()

    @contextmanager
    def recording(
        self, model: Any, parts: Callable[[], tuple[ModelPart, ...]], *, is_queued: bool
    ) -> Iterator[None]:
        """Keep hooks on `model` while a call runs; none if it is not watched.

        Args:
            model: a torch module.
            parts: returns the parts to distinguish; called only if the call is watched. Names that
                are not modules (a weight may be placed by itself) are ignored.
            is_queued: see `Activity`.
        """
        # An interrupt may have left these behind.
        self._modules = None
        self._unhook()
        if not self.is_watched:
            yield
            return
        modules: dict[str, Any] = {}
        try:
            self._parts, self._is_queued = parts(), is_queued
            modules.update(model.named_modules())
            self._modules, self._steps = modules, 0
            self._hook()
            yield
        finally:
            # A stream that was left alone may end only while the next call runs.
            if self._modules is modules or self._modules is None:
                self._notes.append((self._clock(), _REST))
                self._modules = None
                self._unhook()

    def step(self) -> None:
        """Count a finished step: hooks are removed after a few steps, and added after a reading.

        Called by the engine between two forwards.
        """
        if self._modules is None:
            return
        if self._is_read:
            self._is_read, self._steps = False, 0
            if not self._hooks:
                self._hook()
        elif self._hooks:
            self._steps += 1
            if self._steps >= _NOTED_STEPS:
                self._notes.append((self._clock(), _UNSEEN))
                self._unhook()

    def read(self, *, is_busy: bool) -> Activity:
        """Return the parts that ran since the last reading.

        Args:
            is_busy: whether a call is running; if not, the result is empty, whatever was noted.
        """
        with self._reading:
            spent: defaultdict[ModelPart, float] = defaultdict(float)
            while self._notes:
                at, part = self._notes.popleft()
                spent[self._now] += at - self._since
                self._now, self._since = part, at
            now = self._clock()
            spent[self._now] += now - self._since
            self._since = now
            self._is_read = True
            # The caller may have looked just before the call began whose parts are noted here.
            if not is_busy and self._modules is None:
                self._now = _REST
            if not is_busy or self._now is _REST:
                return Activity()
            unseen = spent.pop(_UNSEEN, None)
            in_call = sum(seconds for part, seconds in spent.items() if part is not _REST)
            seen = tuple(
                ActivePart(part.device, part.name, round(spent[part] / in_call, 2))
                for part in self._parts
                if in_call and (part is self._now or spent[part] > _LEAST * in_call)
            )
            if seen or unseen is None:
                self._latest = Activity(seen, self._is_queued)
            return self._latest

    def _hook(self) -> None:
        modules = self._modules or {}
        for part in self._parts:
            present = [modules[name] for name in part.modules if name in modules]
            if present:
                self._hooks.append(present[0].register_forward_pre_hook(self._noting(part)))
                self._hooks.append(present[-1].register_forward_hook(self._noting(_BETWEEN)))
        self._notes.append((self._clock(), _BETWEEN))

    def _noting(self, part: ModelPart) -> Listener:
        clock, note = self._clock, self._notes.append
        return Listener(lambda: note((clock(), part)))

    def _unhook(self) -> None:
        while self._hooks:
            self._hooks[-1].remove()
            self._hooks.pop()
