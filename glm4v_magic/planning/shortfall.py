"""The error for a model that does not fit: which GPU is short by how much, and the ways out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from glm4v_magic.core.errors import DoesNotFitError, OptionError
from glm4v_magic.core.options import Quantization
from glm4v_magic.core.remarks import Remark, remark
from glm4v_magic.core.wording import one_unit, sized
from glm4v_magic.planning.costs import price
from glm4v_magic.planning.precision import INT8_FROM, any_below
from glm4v_magic.planning.search import (
    Split,
    Task,
    best_split,
    bus_of_offloaded,
    can_fit,
    fullest,
    offloadable,
    offloaded_split,
)
from glm4v_magic.planning.seen import image_size_of

__all__ = ["does_not_fit", "refused", "say_context"]

_CONTEXT_STEP = 256
_NO_WAYS = frozenset(
    {
        "no_context_fits",
        "no_shorter_context_fits",
        "four_bit_still_short",
        "four_bit_does_not_fit",
        "offloading_does_not_fit",
        "host_allows_less",
    }
)
"""Codes of what was tried and does not help."""


def does_not_fit(
    task: Task, split: Split | None, offload: bool, image_size: int | None
) -> DoesNotFitError:
    """Return the error for the best split, which is over-full (``None``: no usable GPU).

    Args:
        task: the task.
        split: the best split.
        offload: whether offloading was allowed already, and did not help.
        image_size: image size that was asked for; the task has that of its context without one.
    """
    what = f"{task.shape.name} does not fit on {_gpus(task)}: "
    if split is None:
        gpu = max(task.gpus, key=lambda each: each.usable_bytes)
        return DoesNotFitError(
            f"{what}no GPU has memory left. Of {sized(gpu.total_bytes)} {gpu.device} may use "
            f"{sized(gpu.usable_bytes)}, the reserve included.",
            "Free memory on the GPUs, allow more of it, or lower the reserve.",
        )
    gpu, needed, capacity = fullest(task, split)
    what += (
        f"in the best split {gpu.device} needs {sized(needed)} and may use "
        f"{sized(capacity)}, so {sized(needed - capacity)} are short."
    )
    ways = (_shorter_context(task, offload, image_size), *_quantised(task), _offload(task, offload))
    return refused(what, ways)


def say_context(error: DoesNotFitError, context: int) -> None:
    """Let the ways out say for which context their figures are, where nobody has asked for it.

    What they name leaves it open, too, and the plan is then for the longest that fits.
    """
    told = remark("at_context", context=context)
    ways = error.values.get("ways")
    if isinstance(ways, tuple):
        error.values["ways"] = tuple(
            replace(each, values={**each.values, "at": told}) if "at" in each.values else each
            for each in ways
        )


def refused(what: str, tried: Sequence[Remark]) -> DoesNotFitError:
    """Return the error that numbers what helps, and says behind it what does not."""
    ways = tuple(each for each in tried if each.code not in _NO_WAYS)
    reasons = tuple(each for each in tried if each.code in _NO_WAYS)
    if not ways:
        return DoesNotFitError(what, code="no_way_out", reasons=reasons)
    if not reasons:
        return DoesNotFitError(what, code="ways_out", ways=ways)
    return DoesNotFitError(what, code="some_ways_out", ways=ways, reasons=reasons)


def _gpus(task: Task) -> str:
    """Return the GPUs with their usable memory: ``2 x 7.76 GiB``."""
    sizes = one_unit(*(max(budget.capacity, 0) for budget in task.budgets))
    unit = sizes[-1].partition(" ")[2]
    groups = [(size, len(list(group))) for size, group in groupby(x.split()[0] for x in sizes)]
    parts = [f"{count} x {size}" if count > 1 else size for size, count in groups]
    return f"{' + '.join(parts)} {unit}"


def _shorter_context(task: Task, offload: bool, image_size: int | None) -> Remark:
    """Return the longest context that fits, or that none does; from 256 tokens on in steps of 256.

    Args:
        task: the task.
        offload: whether offloading is allowed.
        image_size: image size that was asked for; without one, images shrink with the context.
    """
    asked = task.workload.context or task.shape.max_context

    def shortened(context: int) -> Task:
        work = replace(task.workload, context=context, image_size=image_size)
        return replace(task, workload=replace(work, image_size=image_size_of(task.shape, work)))

    def fitting(context: int) -> Split | None:
        try:
            shorter = shortened(context)
            split = best_split(shorter) if can_fit(shorter) else None
        except OptionError:  # too short for the images, whatever the GPUs
            return None
        return _offloaded(shorter) if split is None and offload else split

    def is_possible(context: int) -> bool:
        try:
            shorter = shortened(context)
            away = frozenset(offloadable(shorter)) if offload else frozenset()
            return can_fit(shorter, away)
        except OptionError:
            return True

    low, high = 0, asked  # low fits or is too short; high does not fit
    while low + 1 < high:
        middle = (low + high) // 2
        if is_possible(middle):
            low = middle
        else:
            high = middle
    # The step below may be too short for the images where the longest is not.
    for longest in (low // _CONTEXT_STEP * _CONTEXT_STEP, low):
        split = fitting(longest) if longest else None
        if split is not None:
            return remark("shorter_context_fits", context=longest, fullness=split.percent)
    return _no_context(task)


def _no_context(task: Task) -> Remark:
    weights = sum(unit.weight_bytes for unit in price(task.shape, task.workload))
    if weights > sum(budget.capacity for budget in task.budgets):
        return remark("no_shorter_context_fits", weights=sized(weights))
    return remark("no_context_fits")


def _quantised(task: Task) -> tuple[Remark, ...]:
    """Return the mildest quantisation that fits, or what 4-bit weights lack.

    Empty if they are in use already or impossible.
    """
    if task.workload.quantize == "4bit" or not task.shape.quantizable:
        return ()
    return (_eight_bit(task) or _four_bit(task),)


def _eight_bit(task: Task) -> Remark | None:
    if task.workload.quantize is not None:
        return None
    quantised, after, before = _with_weights_in(task, "8bit")
    split = best_split(quantised)
    if split is None or not split.fits:
        return None
    if any_below(INT8_FROM, (task.gpus[place] for place in split.stages)):  # idle ones do not count
        return None
    return remark("eight_bit_fits", size=after, before=before, fullness=split.percent, at="")


def _four_bit(task: Task) -> Remark:
    quantised, after, before = _with_weights_in(task, "4bit")
    split = best_split(quantised)
    if split is None:
        return remark("four_bit_does_not_fit", size=after, before=before)
    if split.fits:
        return remark("four_bit_fits", size=after, before=before, fullness=split.percent, at="")
    offloaded = _offloaded(quantised)
    if offloaded is not None:
        away = sized(_away_bytes(offloaded))
        return remark(
            "four_bit_and_offloading_fit",
            size=after,
            before=before,
            away=away,
            fullness=offloaded.percent,
            at="",
        )
    _, needed, capacity = fullest(quantised, split)
    short = sized(needed - capacity)
    return remark("four_bit_still_short", size=after, before=before, short=short)


def _with_weights_in(task: Task, quantize: Quantization) -> tuple[Task, str, str]:
    """Return the task with quantised weights, their size, and that of the weights before."""
    quantised = replace(task, workload=replace(task.workload, quantize=quantize))
    after, before = one_unit(
        *(
            sum(unit.weight_bytes for unit in price(each.shape, each.workload))
            for each in (quantised, task)
        )
    )
    return quantised, after, before


def _offload(task: Task, tried: bool) -> Remark:
    """Return what offloading would cost, or that it does not help."""
    # Weights that are offloaded do not stay in FP8.
    split = None if tried else offloaded_split(_restored(task))
    if split is None:
        return remark("offloading_does_not_fit")
    per_token = sum(unit.weight_bytes for unit in split.away if not unit.in_tower)
    total = _away_bytes(split)
    if not _has_room(task, split):
        allowed = sized(task.host_bytes or 0)
        return remark("host_allows_less", size=sized(total), allowed=allowed)
    bus = bus_of_offloaded(task, split)
    seconds = bus.seconds(per_token or total)
    if per_token:
        crossing, size = one_unit(per_token, total)
        return remark(
            "offloading_fits", size=size, per_token=crossing, seconds=seconds, bus=bus.name, at=""
        )
    return remark("offloading_tower_fits", size=sized(total), seconds=seconds, bus=bus.name, at="")


def _offloaded(task: Task) -> Split | None:
    """Return the split with offloaded layers; ``None`` if none fits, or the host has no room."""
    split = offloaded_split(task)
    return split if split is not None and _has_room(task, split) else None


def _has_room(task: Task, split: Split) -> bool:
    """Tell whether host memory may hold what a split offloads."""
    return task.host_bytes is None or _away_bytes(split) <= task.host_bytes


def _away_bytes(split: Split) -> int:
    return sum(unit.weight_bytes for unit in split.away)


def _restored(task: Task) -> Task:
    return replace(task, workload=replace(task.workload, fp8=False))
