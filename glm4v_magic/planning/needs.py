"""What a given map or plan needs of each GPU at most, from prices alone.

A dry run measures the same, in seconds; this tells in milliseconds where it is not needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.core.placement import DeviceMap, Place
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.remarks import Remark, remark
from glm4v_magic.core.room import Room, room_beside
from glm4v_magic.planning.costs import Unit, price
from glm4v_magic.planning.device_map import place_of
from glm4v_magic.planning.partition import needed
from glm4v_magic.planning.search import item_of
from glm4v_magic.planning.seen import image_size_of

__all__ = ["VISITORS", "longest_that_fits", "needs_of_map", "needs_of_plan", "room_of_map"]

VISITORS = (0.1, 1.0)
"""Shares for `needs_of_map`: usually the first is enough."""

_CONTEXT_STEP = 256


def needs_of_map(
    shape: ModelShape,
    work: Workload,
    device_map: DeviceMap,
    gpus: Sequence[GPU],
    *,
    visitors: float = 1.0,
) -> dict[int, int] | None:
    """Return the bytes that each GPU needs at most; ``None`` if a part of it is offloaded.

    Args:
        shape: sizes of the model.
        work: what is to fit, with its dtype.
        device_map: a map that `device_map.settle` has passed.
        gpus: the GPUs.
        visitors: share of what the hungriest unit works with that any GPU may hold besides its
            own: what crosses from GPU to GPU within a layer, and the inputs and scores of
            ``generate``. In random maps of all types it was 0.61 at most.

    Raises:
        OptionError: if the context or the images do not suit the model.
    """
    if "cpu" in device_map.values():
        return None
    units = price(shape, work)
    beside = int(visitors * max(unit.transient_bytes for unit in units))
    places = [set(_places(unit, device_map)) for unit in units]
    found = {}
    for gpu in gpus:
        mine = [
            item_of(unit) for unit, each in zip(units, places, strict=True) if gpu.index in each
        ]
        if mine:
            found[gpu.index] = needed(mine) + beside + gpu.overhead_bytes
    return found


def room_of_map(
    shape: ModelShape, work: Workload, device_map: DeviceMap, gpus: Sequence[GPU]
) -> Room | None:
    """Return the room that a map leaves for the prefix cache; ``None`` as `needs_of_map` does.

    Arguments and errors are those of `needs_of_map`.
    """
    needs = needs_of_map(shape, work, device_map, gpus)
    if needs is None:
        return None
    kept: Counter[Place | None] = Counter()
    for unit in price(shape, work):
        kept[place_of(device_map, unit.modules[0])] += unit.kv_bytes
    return room_beside(
        {
            f"cuda:{gpu.index}": gpu.usable_bytes - needs[gpu.index]
            for gpu in gpus
            if kept[gpu.index]
        },
        {f"cuda:{gpu.index}": kept[gpu.index] for gpu in gpus if kept[gpu.index]},
    )


def needs_of_plan(made: Plan, gpus: Sequence[GPU]) -> dict[int, int]:
    """Return the bytes that each GPU needs by a plan, with the overhead of the GPUs here."""
    overheads = {gpu.index: gpu.overhead_bytes for gpu in gpus}
    return {
        stage.gpu: stage.total_bytes
        - stage.overhead_bytes
        + overheads.get(stage.gpu, stage.overhead_bytes)
        for stage in made.stages
        if stage.gpu is not None and stage.units
    }


def longest_that_fits(
    shape: ModelShape,
    work: Workload,
    needs: Callable[[Workload], Mapping[int, int] | None],
    gpus: Sequence[GPU],
) -> Remark:
    """Return the longest context for which a map fits, or that none does.

    Args:
        shape: sizes of the model.
        work: what does not fit; images shrink with the context unless it has their size.
        needs: `needs_of_map` of a workload.
        gpus: the GPUs.
    """
    fullness: dict[int, float] = {}

    def fits(context: int) -> bool:
        shorter = replace(work, context=context)
        try:
            shorter = replace(shorter, image_size=image_size_of(shape, shorter))
            found = needs(shorter)
        except OptionError:  # too short for the images
            return False
        if found is None:
            return False
        fullness[context] = max(
            found[gpu.index] / max(gpu.usable_bytes, 1) for gpu in gpus if gpu.index in found
        )
        return fullness[context] <= 1

    asked = shape.max_context if work.context is None else work.context
    steps = range(_CONTEXT_STEP, asked, _CONTEXT_STEP)
    low, high = -1, len(steps)  # of what is long enough for the images, the shorter fit
    while low + 1 < high:
        middle = (low + high) // 2
        if fits(steps[middle]) or not _is_long_enough(shape, work, steps[middle]):
            low = middle
        else:
            high = middle
    if low < 0 or not fits(steps[low]):
        return remark("no_context_fits")
    return remark(
        "shorter_context_fits", context=steps[low], fullness=f"{fullness[steps[low]]:.0%}"
    )


def _is_long_enough(shape: ModelShape, work: Workload, context: int) -> bool:
    try:
        shorter = replace(work, context=context)
        price(shape, replace(shorter, image_size=image_size_of(shape, shorter)))
    except OptionError:
        return False
    return True


def _places(unit: Unit, device_map: DeviceMap) -> Iterator[Place]:
    """Yield the places of a unit's modules, and of what a map names inside them."""
    for module in unit.modules:
        around = place_of(device_map, module)
        if around is not None:
            yield around
        yield from (place for name, place in device_map.items() if name.startswith(f"{module}."))
