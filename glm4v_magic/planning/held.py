"""Plans whose precision follows from the GPUs that they use: idle ones have no say in it.

Which GPUs are used depends on the size of the weights, and that on whether weights that were
published in FP8 stay so, which depends on the GPUs.

A plan without a context is for the model's longest, unless only a shorter one fits: models that
read 131,072 tokens are asked about a page or two, on GPUs that hold them well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from glm4v_magic.core.errors import DoesNotFitError
from glm4v_magic.core.gpu_spec import ANY_CPU, CPU, GPU
from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.remarks import remark
from glm4v_magic.core.stage import Stage
from glm4v_magic.planning.plan import plan, task_of
from glm4v_magic.planning.precision import Precision, can_fp8, precision, used_by
from glm4v_magic.planning.search import Task, can_fit
from glm4v_magic.planning.seen import SHARE, planned_image
from glm4v_magic.planning.shortfall import say_context

__all__ = ["CONTEXT_STEP", "USEFUL_CONTEXT", "held_plan", "least_context", "longest_context"]

CONTEXT_STEP = 256
"""Tokens; contexts that nobody asked for are multiples of it."""

USEFUL_CONTEXT = 8192
"""Shortest context that is planned for unasked, in tokens: three quarters of it hold the largest
image of every family, and the rest a question and a long answer.
"""


def held_plan(
    shape: ModelShape,
    gpus: Sequence[GPU],
    workload: Workload,
    *,
    whole: bool = True,
    cpu: CPU = ANY_CPU,
    offload: bool = False,
    **of_a_split: Any,
) -> tuple[Plan, Precision]:
    """Plan a model, and return how the GPUs that the plan uses hold its weights.

    Weights that were published in FP8 stay so if the plan for them uses only GPUs that compute
    with it. Otherwise the plan is for restored ones; where it uses only such GPUs after all, or
    restored weights do not fit, those GPUs alone are tried with weights in FP8.

    If the model's longest context does not fit, and none was asked for, the plan is for the longest
    that does, from `USEFUL_CONTEXT` on, and has a note. Layers are offloaded for the model's
    longest or for `USEFUL_CONTEXT`, never to make the context between them longer.

    Args:
        shape: sizes of the model.
        gpus: the GPUs; empty for the CPU.
        workload: what to plan for; its dtype is what was asked for, ``None`` to choose one; its
            context, too.
        whole: whether all modules have to be on GPUs, none in host memory.
        cpu: the CPU of the machine.
        offload: as for `plan`.
        of_a_split: further arguments of `plan`.

    Raises:
        DoesNotFitError: if no split fits; without a context, it is that of `USEFUL_CONTEXT`.
        Glm4vError: as `plan`.
    """

    def planned(work: Workload) -> tuple[Plan, Precision]:
        return _held_plan(
            shape, gpus, work, whole=whole, cpu=cpu, offload=offload, of_a_split=of_a_split
        )

    try:
        return planned(workload)
    except DoesNotFitError:
        least = least_context(shape, workload)
        if workload.context is not None or least >= shape.max_context:
            raise
    try:
        made, chosen = planned(replace(workload, context=least))
    except DoesNotFitError as error:
        say_context(error, least)
        raise
    if not any(stage.offloaded for stage in made.stages):
        these = tuple(gpu for gpu in gpus if not chosen.fp8 or can_fp8([gpu]))
        whole_work = replace(made.workload, image_size=workload.image_size)

        def holds(context: int) -> bool:
            work = replace(whole_work, context=context)
            return can_fit(task_of(shape, these, work, **of_a_split))

        longest = longest_context(least, shape.max_context, holds)
        if longest > least:
            made, chosen = planned(replace(workload, context=longest))
    shorter = remark("context_shortened", context=made.workload.context, longest=shape.max_context)
    return replace(made, notes=(shorter, *made.notes)), chosen


def longest_context(least: int, most: int, holds: Callable[[int], bool | None]) -> int:
    """Return the longest context that fits, a multiple of `CONTEXT_STEP`, or `least`.

    Args:
        least: a context that is short enough.
        most: one that is not.
        holds: tells whether a context fits; ``None`` if it is too short to tell.
    """
    low, high = least // CONTEXT_STEP, most // CONTEXT_STEP + 1
    while low + 1 < high:
        middle = (low + high) // 2
        if holds(middle * CONTEXT_STEP) is False:
            high = middle
        else:
            low = middle
    return max(least, low * CONTEXT_STEP)


def least_context(shape: ModelShape, workload: Workload) -> int:
    """Return the shortest context that is planned for unasked: longer for images of a size."""
    image = planned_image(shape, replace(workload, context=USEFUL_CONTEXT))
    steps = ceil(workload.images * image.positions / SHARE / CONTEXT_STEP)
    return max(USEFUL_CONTEXT, steps * CONTEXT_STEP)


def _held_plan(
    shape: ModelShape,
    gpus: Sequence[GPU],
    workload: Workload,
    *,
    whole: bool,
    cpu: CPU,
    offload: bool,
    of_a_split: Mapping[str, Any],
) -> tuple[Plan, Precision]:
    """Plan a model for a context, as `held_plan`."""

    def held(used: Sequence[GPU]) -> Precision:
        return precision(shape, used, workload.dtype, workload.quantize, whole=whole, cpu=cpu)

    def made_for(some: Sequence[GPU], chosen: Precision) -> Plan:
        work = replace(workload, dtype=chosen.dtype, fp8=chosen.fp8)
        return plan(shape, some, work, **of_a_split, offload=offload)

    able = tuple(gpu for gpu in gpus if can_fp8([gpu]))
    in_fp8, work = held(able), replace(workload, fp8=True)
    is_mixed = in_fp8.fp8 and len(able) < len(gpus)
    if is_mixed and can_fit(task_of(shape, gpus, work, **of_a_split)):
        made = made_for(gpus, in_fp8)
        if can_fp8(used_by(made, gpus)):
            return made, in_fp8
    pinned = set(dict(of_a_split.get("pin") or {}).values())
    can_leave_out = (
        is_mixed
        and pinned <= {gpu.index for gpu in able}
        and can_fit(task_of(shape, able, work, **of_a_split))
    )
    try:
        made = made_for(gpus, held(gpus))
        used = used_by(made, gpus)
    except DoesNotFitError:
        if not can_leave_out:
            raise
        used = able
    if can_leave_out and can_fp8(used):
        task = task_of(shape, gpus, work, **of_a_split)
        return _beside_idle(made_for(able, in_fp8), task), in_fp8
    chosen = held(used)
    # float16 and bfloat16 have the same size.
    return replace(made, workload=replace(made.workload, dtype=chosen.dtype)), chosen


def _beside_idle(made: Plan, task: Task) -> Plan:
    """Return a plan for some of the GPUs of a task as one for all, the others idle."""
    planned = {stage.gpu for stage in made.stages}
    idle = (
        Stage(gpu.index, gpu.name, budget.capacity)
        for gpu, budget in zip(task.gpus, task.budgets, strict=True)
        if gpu.index not in planned
    )
    return replace(made, stages=(*made.stages, *idle))
