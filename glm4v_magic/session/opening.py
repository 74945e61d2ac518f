"""Opens the engine of a chosen model: finds the checkpoint, places and loads it, or connects."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from glm4v_magic.core.errors import Glm4vError, LoadInterrupted, OptionError, OutOfMemoryError
from glm4v_magic.core.events import Loading, Starting
from glm4v_magic.core.model import LoadProgress, ModelChoice
from glm4v_magic.core.server_address import ServerAddress, is_address, read_address
from glm4v_magic.imports import import_slowly

if TYPE_CHECKING:
    from glm4v_magic.checkpoints import Checkpoint
    from glm4v_magic.core.gpu_spec import GPU
    from glm4v_magic.core.plan import Plan
    from glm4v_magic.dispatch.activity import ActivityRecorder
    from glm4v_magic.engines import Engine
    from glm4v_magic.planning.decision import Placement

__all__ = ["find", "open_model"]

_MODULES = ("glm4v_magic.engines.local", "glm4v_magic.engines.pull")


def find(choice: ModelChoice) -> Checkpoint | ServerAddress:
    """Find a checkpoint and check its files without reading weights; parse a server's address.

    Raises:
        CheckpointError: if there is no such checkpoint, or a file of it is damaged.
        OptionError: if an option does not suit a checkpoint, or a server.
    """
    if is_address(choice.name):
        return _address(choice)
    for name in ("served_model", "timeout"):
        if getattr(choice, name) is not None:
            what = f"{name} is about a server, and {choice.name} is none."
            raise OptionError(what, option=name)
    from glm4v_magic import checkpoints

    return checkpoints.resolve(
        choice.model,
        revision=choice.revision,
        download=True,
        base=choice.base,
        lora=choice.lora,
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


def open_model(
    choice: ModelChoice,
    found: Checkpoint | ServerAddress,
    release: Callable[[], object],
    old: ModelChoice | None,
    recorder: ActivityRecorder,
) -> Generator[Starting | Loading, None, Engine]:
    """Load a checkpoint, or connect to a server.

    Args:
        choice: model to open.
        found: result of `find`.
        release: releases the previous model; called if there is no room for two, and only when the
            load itself is all that can still fail.
        old: previous model; ``None`` if none is loaded.
        recorder: records which part of the model is running.

    Returns:
        The engine. Unless it was released, the previous model is still loaded.

    Raises:
        LoadInterrupted: on an interrupt after the previous model was released.
        Glm4vError: as `Session.stream_load`.
    """
    if isinstance(found, ServerAddress):
        from glm4v_magic.engines import server

        return server.connect(found)
    # What can be refused without torch is refused before the seconds that its import takes.
    if "torch" not in sys.modules:
        _refuse(found, choice)
    for _ in import_slowly(*_MODULES, *found.modules):
        yield Starting("PyTorch")
    placement, keep = _place(found, choice)
    yield Loading(LoadProgress(0, found.total_bytes, ""))
    from glm4v_magic.checkpoints.reading import forget_locals
    from glm4v_magic.engines import local
    from glm4v_magic.engines.pull import pulled
    from glm4v_magic.session.room import fits_beside

    def load(released: str) -> Generator[Loading, None, Engine]:
        def work(tell: Callable[[Loading], None]) -> Engine:
            def arrived(progress: LoadProgress) -> None:
                tell(Loading(replace(progress, released=released)))

            return local.load(found, placement, recorder=recorder, keep=keep, arrived=arrived)

        return pulled(work)

    found.require_usable()
    if old is None:
        return (yield from load(""))
    if fits_beside(found, placement):
        try:
            return (yield from load(""))
        except OutOfMemoryError as error:  # other programs have taken it meanwhile
            forget_locals(error)
    return (yield from _in_place_of(old, release, load))


def _in_place_of(
    old: ModelChoice,
    release: Callable[[], object],
    load: Callable[[str], Generator[Loading, None, Engine]],
) -> Generator[Loading, None, Engine]:
    """Release the previous model, and load one; says so if that fails or is interrupted."""
    from glm4v_magic.checkpoints.reading import forget_locals

    try:
        release()
        return (yield from load(old.name))
    except Glm4vError as error:
        error.hint += f" {old.name} was released to make room; the next question loads it again."
        raise
    except KeyboardInterrupt as interrupt:
        forget_locals(interrupt)
    # Raised here, it has no __context__, whose frames would keep weights in memory.
    raise LoadInterrupted(old.name)


def _place(found: Checkpoint, choice: ModelChoice) -> tuple[Placement, int]:
    """Decide where a checkpoint goes on this machine; imports torch if there are GPUs.

    Returns:
        The placement, and the budget of the prefix cache in bytes.
    """
    from glm4v_magic.hardware.cpu import cpu_here
    from glm4v_magic.hardware.usable import usable_gpus
    from glm4v_magic.planning.decision import decide

    gpus = usable_gpus(choice.options.gpus)
    placement = decide(found.architecture, choice.options, gpus, choice.device_map, cpu=cpu_here())
    on_gpus = any(place != "cpu" for place in (placement.device_map or {}).values())
    return placement, _budget(choice, placement.plan, gpus if on_gpus else ())


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


def _budget(choice: ModelChoice, plan: Plan | None, gpus: Sequence[GPU]) -> int:
    """Return the budget of the prefix cache in bytes.

    Raises:
        OptionError: if it is larger than what the plan leaves, or than the memory there is.
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
    return kept_budget(choice.keep, plan, free)
