"""How many replicas of a model go onto which machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glm4v_magic.core.errors import DoesNotFitError, OptionError, PlacementError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.wording import counted

__all__ = ["MAX", "Machine", "Seat", "seats"]

MAX = "max"
"""As many replicas as the GPUs hold; without GPUs, one on each machine."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of a cluster.

    Attributes:
        id: its id in the cluster.
        name: its address, for people.
        cores: CPU cores that the cluster may use.
        gpus: GPUs that the cluster may use.
    """

    id: str
    name: str
    cores: int
    gpus: tuple[GPU, ...] = ()


@dataclass(frozen=True, slots=True)
class Seat:
    """Place of a replica.

    Attributes:
        machine: its machine.
        gpus: number of GPUs that it has to itself; 0 on the CPU.
        cores: number of CPU cores that it has to itself; 0 with GPUs, which need little of them.
    """

    machine: Machine
    gpus: int
    cores: int


def seats(
    model: str,
    wanted: int | str,
    machines: Sequence[Machine],
    holds: Callable[[Sequence[GPU]], bool],
) -> tuple[Seat, ...]:
    """Return the places of replicas, spread over the machines.

    With GPUs each replica takes as few as hold it; without, the cores of a machine are divided.

    Args:
        model: name of the model, for errors.
        wanted: number of replicas, or `MAX`.
        machines: machines of the cluster; those without GPUs are left out if others have some.
        holds: whether some GPUs hold the model.

    Raises:
        DoesNotFitError: if the GPUs of no machine hold one.
        PlacementError: if there are more replicas than fit.
    """
    with_gpus = [each for each in machines if each.gpus]
    if with_gpus:
        return _on_gpus(model, wanted, with_gpus, holds)
    return _on_cores(wanted, machines)


def _on_gpus(
    model: str,
    wanted: int | str,
    machines: Sequence[Machine],
    holds: Callable[[Sequence[GPU]], bool],
) -> tuple[Seat, ...]:
    each_takes = [_fewest(machine.gpus, holds) for machine in machines]
    rooms = [
        len(machine.gpus) // takes if takes else 0
        for machine, takes in zip(machines, each_takes, strict=True)
    ]
    room = sum(rooms)
    if not room:
        raise DoesNotFitError(
            f"{model} fits on the GPUs of no machine of the cluster.",
            "Load it in 4 bit, or with a shorter context.",
        )
    count = room if wanted == MAX else int(wanted)
    if count > room:
        there = counted(sum(len(machine.gpus) for machine in machines), "GPU")
        raise PlacementError(
            f"{counted(count, 'replica')} of {model} do not fit: the cluster has {there}, which "
            f"hold {room}.",
            "Ask for fewer, or for max.",
        )
    shares = _spread(count, rooms)
    return tuple(
        Seat(machine, takes, 0)
        for machine, takes, share in zip(machines, each_takes, shares, strict=True)
        for _ in range(share)
    )


def _fewest(gpus: Sequence[GPU], holds: Callable[[Sequence[GPU]], bool]) -> int:
    """Return the number of GPUs that one replica takes; 0 if all of them do not hold it.

    The cluster chooses which ones it gets, so the smallest must do.
    """
    by_size = sorted(gpus, key=lambda gpu: gpu.usable_bytes)
    return next((n for n in range(1, len(gpus) + 1) if holds(by_size[:n])), 0)


def _on_cores(wanted: int | str, machines: Sequence[Machine]) -> tuple[Seat, ...]:
    rooms = [machine.cores for machine in machines]
    count = sum(room > 0 for room in rooms) if wanted == MAX else int(wanted)
    if count > sum(rooms):
        raise PlacementError(
            f"{counted(count, 'replica')} are more than the {counted(sum(rooms), 'core')} of the "
            "cluster, which has no GPUs.",
            "Ask for fewer.",
        )
    if not count:
        raise OptionError("The cluster has no core to spare.", "Wait for its other jobs.")
    shares = _spread(count, rooms)
    return tuple(
        Seat(machine, 0, machine.cores // share)
        for machine, share in zip(machines, shares, strict=True)
        for _ in range(share)
    )


def _spread(count: int, rooms: Sequence[int]) -> list[int]:
    """Return how many of `count` go to each, the emptiest first."""
    shares = [0] * len(rooms)
    for _ in range(count):
        free = [n for n, room in enumerate(rooms) if shares[n] < room]
        shares[min(free, key=lambda n: (shares[n], -rooms[n]))] += 1
    return shares
