"""Opens the engine of a chosen model: finds the checkpoint, places and loads it, or connects."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.errors import (
    DoesNotFitError,
    Glm4vError,
    LoadInterrupted,
    OptionError,
    OutOfMemoryError,
)
from glm4v_magic.core.events import Loading, Starting, Waiting
from glm4v_magic.core.model import LoadProgress, ModelChoice
from glm4v_magic.core.options import taken
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.server_address import ServerAddress, is_address, read_address
from glm4v_magic.imports import import_slowly, is_imported
from glm4v_magic.outside import path_text, require_current_folder
from glm4v_magic.session import replicas

if TYPE_CHECKING:
    from glm4v_magic.checkpoints import Checkpoint
    from glm4v_magic.core.gpu_spec import GPU
    from glm4v_magic.core.room import Room
    from glm4v_magic.dispatch.activity import ActivityRecorder
    from glm4v_magic.engines import Engine
    from glm4v_magic.planning.decision import Placement

__all__ = ["choice_of", "connect", "find", "prepare", "told_what_was_released"]

_MODULES = ("glm4v_magic.engines.local", "glm4v_magic.engines.pull")
_OF_A_CHOICE = (
    "revision",
    "device_map",
    "served_model",
    "timeout",
    "keep",
    "base",
    "lora",
    "replicas",
    "cluster",
)


def choice_of(model: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> ModelChoice:
    """Return a model with options of `Session.load` as a choice.

    Without a model it is the one of the plan that is given, if one is, and the demo otherwise. What
    the model of a plan is made of is kept, also where it is named.
    """
    given = dict(options)
    for name in ("base", "lora"):
        if given.get(name) is not None:
            given[name] = os.fspath(given[name])
    if given.get("device_map") is not None:
        from glm4v_magic.planning.decision import refuse_other_than_planned
        from glm4v_magic.planning.files import read_given

        # Read here, because a file may have changed since a model was loaded by it.
        plan = given["device_map"] = read_given(given["device_map"])
        if isinstance(plan, Plan):  # here, where it is known what was given
            refuse_other_than_planned(plan, given)
        if isinstance(plan, Plan) and (model is None or plan.is_of(os.fspath(model))):
            model = plan.model if model is None else model
            given |= {name: value for name, value in plan.made_of if given.get(name) is None}
    return ModelChoice(
        model=None if model is None else path_text(model, "The model", OptionError),
        options=taken(PlacementOptions, given),
        **{name: given[name] for name in _OF_A_CHOICE if name in given},
    )


def find(choice: ModelChoice) -> Checkpoint | ServerAddress:
    """Find a checkpoint and check its files without reading weights; parse a server's address.

    Raises:
        CheckpointError: if there is no such checkpoint, or a file of it is damaged.
        OptionError: if an option does not suit a checkpoint, or a server.
    """
    if is_address(choice.name):
        return _address(choice)
    replicas.refuse_alone(choice)
    for name in ("served_model", "timeout"):
        if getattr(choice, name) is not None:
            what = f"{name} is about a server, and {choice.name} is none."
            raise OptionError(what, option=name)
    from glm4v_magic import checkpoints

    return checkpoints.resolve(
        choice.model,
        download=True,
        **choice.made_of,
    )


def _address(choice: ModelChoice) -> ServerAddress:
    url = read_address(choice.name)
    here = ModelChoice(choice.model, served_model=choice.served_model, timeout=choice.timeout)
    if choice != here:
        raise OptionError(
            f"{url} is a server: it has loaded its model as it was told to.",
            code="not_of_a_server",
        )
    if choice.timeout is None:
        return ServerAddress(url, choice.served_model)
    return ServerAddress(url, choice.served_model, choice.timeout)


def connect(address: ServerAddress) -> Generator[Waiting, None, Engine]:
    """Connect to a server; yields that it is waited for.

    Raises:
        EngineError: if it cannot be used.
    """
    from glm4v_magic.engines import server

    return (yield from server.connect(address))


def prepare(
    choice: ModelChoice,
    found: Checkpoint,
    recorder: ActivityRecorder,
    released: Engine | None = None,
) -> Generator[Starting | Loading, None, Opening | replicas.Opening]:
    """Import what a checkpoint needs, and decide where it goes; nothing is loaded yet.

    Args:
        choice: model to open.
        found: its checkpoint.
        recorder: records which part of the model is running.
        released: engine whose model is released where there is no room beside it.

    Raises:
        Glm4vError: as `Session.stream_load`.
    """
    require_current_folder(OptionError)
    if choice.replicas is not None:
        _refuse_together(choice)
        return (yield from replicas.prepare(found, choice, load_here))
    # What can be refused without torch is refused before the seconds that its import takes.
    if "torch" not in sys.modules:
        _refuse(found, choice)
    begun = Loading(LoadProgress(0, found.total_bytes, ""))
    for _ in import_slowly(*_MODULES, *found.modules):
        # With PyTorch there, it is the code of this model that is imported.
        yield begun if is_imported("torch") else Starting("PyTorch")
    placement, keep = _place(found, choice, released)
    yield begun
    found.require_usable()
    return Opening(found, placement, keep, recorder)


@dataclass(frozen=True, slots=True)
class Opening:
    """A checkpoint that is ready to be loaded: the load itself is all that can still fail.

    Attributes:
        found: the checkpoint.
        placement: where it goes.
        keep: budget of the prefix cache in bytes.
        recorder: records which part of the model is running.
    """

    found: Checkpoint
    placement: Placement
    keep: int
    recorder: ActivityRecorder

    def load(self, released: str = "") -> Generator[Loading, None, Engine]:
        """Load the model; returns its engine.

        Args:
            released: name of the model that was released to make room.
        """
        from glm4v_magic.engines import local
        from glm4v_magic.engines.pull import pulled

        # Both callbacks end in `pulled`: transformers loads in a loop of its own.
        def work(tell: Callable[[Loading], None]) -> Engine:
            def arrived(progress: LoadProgress) -> None:
                tell(Loading(replace(progress, released=released)))

            return local.load(
                self.found,
                self.placement,
                recorder=self.recorder,
                keep=self.keep,
                arrived=arrived,
            )

        return pulled(work)

    def load_beside(self) -> Generator[Loading, None, Engine | None]:
        """Load the model beside another; returns ``None`` if there is no room for both."""
        from glm4v_magic.checkpoints.reading import forget_locals
        from glm4v_magic.session.room import fits_beside

        if fits_beside(self.found, self.placement):
            try:
                return (yield from self.load())
            except OutOfMemoryError as error:  # other programs have taken it meanwhile
                forget_locals(error)
        return None


def load_here(choice: ModelChoice, arrived: Callable[[LoadProgress], None]) -> Engine:
    """Load a model into this process: that of a replica.

    Args:
        choice: which one.
        arrived: called after each weight that has arrived.

    Raises:
        Glm4vError: as `Session.stream_load`.
    """
    from glm4v_magic.engines import local

    found = find(choice)
    assert not isinstance(found, ServerAddress)
    found.require_usable()
    placement, keep = _place(found, choice)
    return local.load(found, placement, keep=keep, arrived=arrived)


@contextmanager
def told_what_was_released(old: ModelChoice) -> Iterator[None]:
    """Load a model in place of another inside the block: errors and interrupts in it say so.

    Args:
        old: the model that is released first inside the block.

    Raises:
        LoadInterrupted: on an interrupt.
    """
    from glm4v_magic.checkpoints.reading import forget_locals

    try:
        yield
    except Glm4vError as error:
        error.hint += f" {old.name} was released to make room; the next question loads it again."
        raise
    except KeyboardInterrupt as interrupt:
        forget_locals(interrupt)  # they hold weights
    else:
        return
    raise LoadInterrupted(old.name)


def _place(
    found: Checkpoint, choice: ModelChoice, released: Engine | None = None
) -> tuple[Placement, int]:
    """Decide where a checkpoint goes on this machine; imports torch if there are GPUs.

    Args:
        found: the checkpoint.
        choice: the model, with its options.
        released: engine whose model makes room.

    Returns:
        The placement, and the budget of the prefix cache in bytes.
    """
    from glm4v_magic.engines.local import require_real_gpus
    from glm4v_magic.hardware.cpu import cpu_here
    from glm4v_magic.hardware.usable import usable_gpus
    from glm4v_magic.planning.decision import decide
    from glm4v_magic.session.room import left_by, tell_who_stays

    there = usable_gpus(choice.options.gpus)
    gpus = left_by(there, released)
    options, given = choice.options, choice.device_map
    left = None
    try:
        placement = decide(found.architecture, options, gpus, given, cpu=cpu_here())
        require_real_gpus(found, placement)
        on_gpus = any(place != "cpu" for place in (placement.device_map or {}).values())
        if given is not None and on_gpus:
            from glm4v_magic.dry_run.room import require_room

            placement, left = require_room(found.architecture, placement, options, given, gpus)
    except DoesNotFitError as error:
        tell_who_stays(error, there, gpus)
        raise
    return placement, _budget(choice, placement.plan, gpus if on_gpus else (), left=left)


def _refuse(found: Checkpoint, choice: ModelChoice) -> None:
    """Raise what `_place` would raise, as far as it can be known without torch."""
    from glm4v_magic.core.plan import Plan
    from glm4v_magic.hardware.cpu import cpu_here
    from glm4v_magic.hardware.usable import usable_gpus
    from glm4v_magic.planning.decision import choose

    options, given = choice.options, choice.device_map
    gpus = usable_gpus(options.gpus, ask_torch=False)
    # Only torch knows which of the driver's GPUs it can use.
    if given is not None or options.gpus is not None or not gpus:
        chosen = choose(found.architecture, options, gpus, given, cpu=cpu_here())
        if given is None:
            _budget(choice, chosen if isinstance(chosen, Plan) else None, gpus)


def _refuse_together(choice: ModelChoice) -> None:
    """Raise OptionError if replicas on this machine would keep more than its memory."""
    from glm4v_magic.hardware.usable import usable_gpus

    if (
        choice.keep is None
        or choice.cluster is not None
        or choice.options.gpus not in (None, "cpu")
    ):
        return
    count = choice.replicas if isinstance(choice.replicas, int) else 1
    gpus = usable_gpus(choice.options.gpus, ask_torch=False)
    _budget(choice, None, gpus, count)


def _budget(
    choice: ModelChoice,
    plan: Plan | None,
    gpus: Sequence[GPU],
    replicas: int = 1,
    left: Room | None = None,
) -> int:
    """Return the budget of the prefix cache in bytes; arguments as those of `kept_budget`.

    Raises:
        OptionError: if it is larger than what the plan or map leaves, or than the memory there is.
    """
    from glm4v_magic.core.room import Room
    from glm4v_magic.hardware.host import free_host_bytes
    from glm4v_magic.hardware.readings import HOST
    from glm4v_magic.planning.kept import kept_budget

    if choice.keep is None:
        free = None
    elif gpus:
        largest = max(gpus, key=lambda gpu: gpu.usable_bytes)
        free = Room(sum(gpu.usable_bytes for gpu in gpus), f"cuda:{largest.index}")
    else:
        free = Room(free_host_bytes(), HOST)
    return kept_budget(choice.keep, plan, free, replicas, left)
