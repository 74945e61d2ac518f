"""`RunningReplica`: a replica, as seen from the process that asks it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from glm4v_magic.core.errors import EngineError, Glm4vError, reason
from glm4v_magic.core.model import EngineInfo, ModelChoice, Replica
from glm4v_magic.engines.replicas.layout import Seat
from glm4v_magic.engines.replicas.worker import OWN_VERSION, Load, LoadState, ReplicaWorker

__all__ = ["RunningReplica", "cause_of", "error_of", "kill"]

_THREADS = 8  # of Ray, for the methods of a replica


class RunningReplica:
    """A replica that was started.

    Args:
        number: its number.
        seat: its place.
        load: loads the model; it is sent there.
        choice: which model.

    Attributes:
        facts: number, machine, devices and memory of it, as others see them.
        open: rows that it is asked.
        news: news that was asked for and has not come yet, if any.
    """

    def __init__(self, number: int, seat: Seat, load: Load, choice: ModelChoice) -> None:
        place = NodeAffinitySchedulingStrategy(seat.machine.id, soft=False)
        self.actor = (
            ray.remote(ReplicaWorker)
            .options(
                num_cpus=seat.cores,
                num_gpus=seat.gpus,
                scheduling_strategy=place,
                max_concurrency=_THREADS,
                max_restarts=0,
            )
            .remote(load, choice, seat.cores)
        )
        self.facts = Replica(number, seat.machine.name)
        self.batch_size = 0
        self.cache: Any = None
        self.open: set[int] = set()
        self.news: Any = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"Replica {self.facts.number} on {self.facts.machine}"

    def state(self, seconds: float) -> LoadState | None:
        """Return how far loading is; ``None`` if it has not begun after that many seconds.

        Raises:
            EngineError: if the replica has ended, or has another version of this package.
            Glm4vError: the error that stopped the load.
        """
        try:
            found: LoadState = ray.get(self.actor.state.remote(), timeout=seconds)
        except GetTimeoutError:
            return None
        except RayError as error:
            raise EngineError(f"{self.name} ended while it was loaded: {reason(error)}.") from None
        if found.version != OWN_VERSION:
            raise EngineError(
                f"{self.facts.machine} has glm4v_magic {found.version}, not {OWN_VERSION}.",
                "Install the same version on all machines.",
            )
        if found.error is not None:
            raise error_of(found.error, self.name)
        return found

    def loaded(self, state: LoadState | None) -> EngineInfo:
        """Take over what a replica tells of itself when it has loaded."""
        assert state is not None
        assert state.info is not None
        process = ray.get(self.actor.process.remote())
        self.batch_size = state.batch_size
        self.facts = replace(self.facts, devices=state.info.devices, process=process)
        return state.info


def kill(replicas: Sequence[RunningReplica]) -> None:
    """End replicas, and the processes that they are in."""
    for each in replicas:
        if ray.is_initialized():
            with contextlib.suppress(RayError):  # it was one of a cluster that has ended
                ray.kill(each.actor)


def cause_of(error: RayTaskError) -> Exception:
    """Return what a method of a replica raised."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def error_of(error: Exception, name: str) -> Glm4vError:
    """Return an error of a replica: ours as it is, since all of them are alike, or in one line."""
    if isinstance(error, Glm4vError):
        return error
    return EngineError(f"{name} failed: {reason(error)}.")
