"""Loads a model as several replicas: prepares them here, and loads each where it is."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from glm4v_magic.core.errors import DoesNotFitError, OptionError
from glm4v_magic.core.events import Loading, Starting
from glm4v_magic.core.model import LoadProgress, ModelChoice
from glm4v_magic.imports import import_slowly

if TYPE_CHECKING:
    from glm4v_magic.checkpoints import Checkpoint
    from glm4v_magic.core.gpu_spec import GPU
    from glm4v_magic.engines import Engine
    from glm4v_magic.engines.replicas.layout import Seat
    from glm4v_magic.engines.replicas.worker import Load

__all__ = ["Opening", "prepare", "refuse_alone", "refuse_beside"]

_CPU = "cpu"


def refuse_alone(choice: ModelChoice) -> None:
    """Raise OptionError if a choice without replicas has an option that only replicas have."""
    if choice.replicas is None and choice.cluster is not None:
        raise OptionError("cluster is about replicas, and there are none.", option="cluster")


@dataclass(frozen=True, slots=True)
class Opening:
    """Replicas that are ready to be started; as `opening.Opening`.

    Attributes:
        found: the checkpoint.
        choice: how each of them is loaded.
        places: where they go.
        load_one: loads one of them into its process; see `engines.replicas.worker.Load`.
        joined: the connection to their cluster.
    """

    found: Checkpoint
    choice: ModelChoice
    places: tuple[Seat, ...]
    load_one: Load
    joined: str

    def load(self, released: str = "") -> Generator[Loading, None, Engine]:
        """Start the replicas; returns their engine.

        Args:
            released: name of the model that was released to make room.
        """
        from glm4v_magic.engines.replicas import cluster
        from glm4v_magic.engines.replicas.engine import start

        try:
            total = self.found.total_bytes
            yield Loading(LoadProgress(0, total * len(self.places), "", released=released))
            return (yield from start(self.places, self.load_one, self.choice, total, released))
        except BaseException as error:
            cluster.leave(self.joined, is_interrupted=isinstance(error, KeyboardInterrupt))
            raise

    def load_beside(self) -> Generator[Loading, None, Engine | None]:
        """Return ``None``: nothing tells whether their machines have room for more."""
        return None
        yield


def prepare(
    found: Checkpoint, choice: ModelChoice, load_one: Load
) -> Generator[Starting, None, Opening]:
    """Connect to the cluster and decide where replicas go.

    Args:
        found: the checkpoint.
        choice: how it is to be loaded.
        load_one: see `Opening`.

    Raises:
        OptionError: if Ray is missing, or an option does not go with replicas.
        EngineError: if there is no cluster.
        PlacementError: if its machines have no room for so many.
    """
    from glm4v_magic.engines.replicas import cluster

    refuse_beside(choice)
    cluster.require_ray()
    address = None if choice.cluster is None else cluster.read_cluster(choice.cluster)
    found.require_usable()
    for _ in import_slowly("ray", "glm4v_magic.engines.replicas.engine"):
        yield Starting("Ray", goes_on=False)
    yield Starting("Ray", goes_on=False)
    joined = cluster.connect(address)
    try:
        places = _places(found, choice)
    except BaseException:
        cluster.leave(joined)
        raise
    alone = replace(choice, replicas=None, cluster=None)
    return Opening(found, alone, places, load_one, joined)


def refuse_beside(choice: ModelChoice) -> None:
    """Raise OptionError if an option does not go with replicas."""
    if choice.device_map is not None:
        raise OptionError(
            "A device map does not go with replicas: each of them makes its own plan.",
            "Leave one of them out.",
        )
    if choice.options.gpus not in (None, _CPU):
        raise OptionError(
            "gpus does not go with replicas: each takes as few as hold it.",
            "Leave one of them out; cpu alone can be given.",
            option="gpus",
        )


def _places(found: Checkpoint, choice: ModelChoice) -> tuple[Seat, ...]:
    from glm4v_magic.engines.replicas import cluster
    from glm4v_magic.engines.replicas.layout import seats
    from glm4v_magic.planning.decision import choose

    there = cluster.machines()
    if choice.options.gpus == _CPU:
        there = tuple(replace(each, gpus=()) for each in there)

    def holds(gpus: Sequence[GPU]) -> bool:
        numbered = tuple(replace(gpu, index=n) for n, gpu in enumerate(gpus))
        try:
            choose(found.architecture, choice.options, numbered, None)
        except DoesNotFitError:
            return False
        return True

    assert choice.replicas is not None
    return seats(found.name, choice.replicas, there, holds)
