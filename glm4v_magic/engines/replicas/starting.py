"""Starts replicas, and waits until each has loaded the model."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import replace

from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.events import Loading
from glm4v_magic.core.model import EngineInfo, LoadProgress, ModelChoice
from glm4v_magic.engines.replicas.layout import Seat
from glm4v_magic.engines.replicas.replica import RunningReplica, kill
from glm4v_magic.engines.replicas.worker import Load, LoadState

__all__ = ["started"]

_SECONDS_TO_START = 90.0
_PAUSE = 0.05


def started(
    places: Sequence[Seat],
    load: Load,
    choice: ModelChoice,
    total_bytes: int,
    released: str = "",
) -> Generator[Loading, None, tuple[list[RunningReplica], EngineInfo]]:
    """Start replicas and load the model into each; all of them end if one fails.

    Returns them, and the facts about the model of the first.

    Args:
        places: place of each.
        load: loads the model; it is sent to them.
        choice: which model.
        total_bytes: bytes of its weights.
        released: name of the model that was released to make room.

    Raises:
        Glm4vError: as loading in this process; names the replica.
    """
    replicas = [RunningReplica(number, seat, load, choice) for number, seat in enumerate(places)]
    try:
        states = yield from _loaded(replicas, total_bytes, released)
        infos = [replica.loaded(state) for replica, state in zip(replicas, states, strict=True)]
    except BaseException:
        kill(replicas)
        raise
    return replicas, infos[0]


def _loaded(
    replicas: Sequence[RunningReplica], total_bytes: int, released: str
) -> Generator[Loading, None, list[LoadState | None]]:
    """Wait until all replicas have loaded; returns their states."""
    states: list[LoadState | None] = [None] * len(replicas)
    began = time.monotonic()
    while not all(state is not None and state.info for state in states):
        for number, replica in enumerate(replicas):
            states[number] = replica.state(_PAUSE) or states[number]
        if None in states and time.monotonic() - began > _SECONDS_TO_START:
            raise _late(replicas[states.index(None)])
        yield Loading(replace(_progress(states, total_bytes), released=released))
        time.sleep(_PAUSE)
    return states


def _late(replica: RunningReplica) -> EngineError:
    return EngineError(
        f"{replica.name} has not started: other jobs of the cluster use what it needs.",
        "Ask for fewer replicas, or wait for those jobs.",
    )


def _progress(states: Sequence[LoadState | None], total_bytes: int) -> LoadProgress:
    latest = [state.progress for state in states if state is not None and state.progress]
    done = sum(each.done_bytes for each in latest)
    weight = latest[-1].weight if latest else ""
    return LoadProgress(done, total_bytes * len(states), weight)
