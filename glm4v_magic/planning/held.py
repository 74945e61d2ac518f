"""Plans whose precision follows from the GPUs that they use: idle ones have no say in it.

Which GPUs are used depends on the size of the weights, and that on whether weights that were
published in FP8 stay so, which depends on the GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from glm4v_magic.core.errors import DoesNotFitError
from glm4v_magic.core.gpu_spec import ANY_CPU, CPU, GPU
from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.stage import Stage
from glm4v_magic.planning.plan import plan, task_of
from glm4v_magic.planning.precision import Precision, can_fp8, precision, used_by
from glm4v_magic.planning.search import Task, can_fit

__all__ = ["held_plan"]


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

    Args:
        shape: sizes of the model.
        gpus: the GPUs; empty for the CPU.
        workload: what to plan for; its dtype is what was asked for, ``None`` to choose one.
        whole: whether all modules have to be on GPUs, none in host memory.
        cpu: the CPU of the machine.
        offload: as for `plan`.
        of_a_split: further arguments of `plan`.

    Raises:
        DoesNotFitError: if no split fits.
        Glm4vError: as `plan`.
    """

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
