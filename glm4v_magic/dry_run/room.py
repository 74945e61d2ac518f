"""Whether a model that is to be loaded by a given map or plan would run there: as a dry run says.

Prices tell it in milliseconds where there is room enough, and a dry run where there may not be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.errors import DoesNotFitError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.options import OPTIONS, of_python
from glm4v_magic.core.placement import GivenMap, PlacementOptions
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.dry_run.text import raise_if_unusable
from glm4v_magic.planning.needs import (
    VISITORS,
    longest_that_fits,
    needs_of_map,
    needs_of_plan,
    room_of_map,
)
from glm4v_magic.planning.seen import image_size_of

if TYPE_CHECKING:
    from glm4v_magic.core.model import Architecture
    from glm4v_magic.core.model_shape import Workload
    from glm4v_magic.core.room import Room
    from glm4v_magic.dry_run.report import DryRunReport
    from glm4v_magic.planning.decision import Placement

__all__ = ["require_room"]


def require_room(
    architecture: Architecture,
    placement: Placement,
    options: PlacementOptions,
    given: GivenMap,
    gpus: Sequence[GPU],
) -> tuple[Placement, Room | None]:
    """Raise what a dry run with the same options would, for a map or plan that a load follows.

    Virtual GPUs are judged as the GPUs that they stand for, though they would hold a little more:
    nothing but tensors takes memory of theirs.

    Args:
        architecture: the model.
        placement: what `planning.decision.decide` made of the map.
        options: placement options; context, images and batch are what is to fit.
        given: the map or plan.
        gpus: the GPUs of the load.

    Returns:
        The placement; one by a map for the longest context that fits, from `held.USEFUL_CONTEXT`
        on, if the model's longest does not and no other was asked for. And the room that a map
        leaves for the prefix cache beside that context; ``None`` for a plan, which tells its own,
        and where parts of the model are on the CPU, of which prices do not tell it.

    Raises:
        DoesNotFitError: if a GPU is too small for the workload.
        PlacementError: if the map mixes devices in an operation.
    """
    shape, made = architecture.shape(), placement.plan
    weights = placement.device_map or {}
    work = _work(placement, options)

    def needs_with(visitors: float) -> Callable[[Workload], dict[int, int] | None]:
        return lambda each: needs_of_map(shape, each, weights, gpus, visitors=visitors)

    def left_beside(each: Workload) -> Room | None:
        return None if made else room_of_map(shape, each, weights, gpus)

    needs = needs_of_plan(made, gpus) if made else needs_with(1)(work)
    sizes = {gpu.index: gpu.usable_bytes for gpu in gpus}
    if needs is not None and all(size <= sizes[index] for index, size in needs.items()):
        return placement, left_beside(work)
    told = _told(options)
    try:
        report = _tried(architecture, gpus, given, told)
        raise_if_unusable(report)
    except DoesNotFitError as error:
        asked = replace(work, image_size=options.workload.image_size)
        for visitors in () if made else VISITORS:
            way = longest_that_fits(shape, asked, needs_with(visitors), gpus)
            shorter = {**told, "context": way.values.get("context")}
            if shorter["context"] and _tried(architecture, gpus, given, shorter).works:
                error.advise(code="ways_out", ways=(way,))
                break
        raise
    said = [] if made else [each for each in report.notes if each.code == "context_shortened"]
    if not said:
        return placement, left_beside(work)
    seen = replace(options.workload, context=report.context)
    placement = replace(
        placement,
        notes=(*placement.notes, *said),
        image_size=image_size_of(shape, seen),
    )
    return placement, left_beside(replace(_work(placement, options), context=report.context))


def _work(placement: Placement, options: PlacementOptions) -> Workload:
    return replace(
        options.workload,
        dtype=placement.dtype,
        quantize=placement.quantize,
        fp8=placement.fp8,
        image_size=placement.image_size,
    )


def _tried(
    architecture: Architecture, gpus: Sequence[GPU], given: GivenMap, options: Mapping[str, Any]
) -> DryRunReport:
    from glm4v_magic.virtual_gpus import active

    virtual = active()
    with nullcontext() if virtual is None else virtual.paused():  # it has some of its own
        return dry_run(architecture, gpus, given, **options)


def _told(options: PlacementOptions) -> dict[str, Any]:
    """Return the options that a dry run takes, as far as they are given."""
    known = {each.name for each in of_python("dry_run")}
    return {
        each.name: getattr(options, each.name)
        for each in fields(options)
        if each.name in known
        and each.name != "gpus"
        and getattr(options, each.name) != OPTIONS[each.name].default
    }
