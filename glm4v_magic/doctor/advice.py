"""Findings of the planner: whether the model fits, and how the plan could be better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from glm4v_magic.core.errors import DoesNotFitError, OptionError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.core.options import OBJECTIVES, QUANTIZATIONS
from glm4v_magic.core.remarks import Remark, remark
from glm4v_magic.core.stage import Stage
from glm4v_magic.core.wording import counted, readable_bytes
from glm4v_magic.doctor.facts import Facts
from glm4v_magic.doctor.finding import Finding
from glm4v_magic.planning.costs import price
from glm4v_magic.planning.held import USEFUL_CONTEXT, held_plan, longest_context
from glm4v_magic.planning.plan import Plan, plan
from glm4v_magic.planning.precision import Precision, precision
from glm4v_magic.planning.search import HEADROOM, Task, best_split, offloaded_split
from glm4v_magic.planning.seen import planned_image

__all__ = ["REVIEWED_FROM", "fit", "review"]

REVIEWED_FROM = 6
"""Fewest GPUs for which a plan is reviewed; GLM-4V-9B fits on fewer of almost any size."""

_MOST_GPUS = 16  # that are proposed
_SHORTEST_CONTEXT = 256  # tokens
_QUICK_ON_CPU = 2**30  # bytes; the demo model takes far less, a published one far more

_SUBJECT = "model"
_NO_FASTER = (
    "Layers run one after another, so more GPUs are no faster: each hop adds a copy and a wait to "
    "every token."
)


def fit(facts: Facts) -> Finding:
    """Judge whether the model fits in the context that a load plans for, or what would help."""
    shape = facts.shape
    model = _model(shape, _held(facts))
    if not facts.gpus and facts.found_gpus:
        why = "No GPU tells its size, so nothing can be planned."
        step = remark("describe_gpus_with_size")
        return Finding(_SUBJECT, "warn", model, why, step)
    if not facts.gpus:
        return _on_cpu(facts)
    try:
        found, held = held_plan(shape, facts.gpus, Workload(), cpu=facts.cpu)
    except DoesNotFitError as error:
        return _does_not_fit(facts, model, error)
    fits = f"{_model(shape, held)} fits: {_summary(found)}"
    return Finding(_SUBJECT, "ok", fits, (*held.notes, *found.notes))


def _model(shape: ModelShape, held: Precision) -> str:
    return f"{shape.name} in {held.dtype}{', weights in FP8' if held.fp8 else ''}"


def _held(facts: Facts) -> Precision:
    """Return how weights are held that are on all GPUs."""
    return precision(facts.shape, facts.gpus, cpu=facts.cpu)


def _workload(facts: Facts) -> Workload:
    """Return the least that a plan without options is for."""
    held = _held(facts)
    context = min(facts.shape.max_context, USEFUL_CONTEXT)
    return Workload(context, dtype=held.dtype, fp8=held.fp8)


def _summary(found: Plan) -> str:
    gpus = counted(len(_used(found)), "GPU")
    context = f"{found.workload.context or 0:,} tokens of context"
    return f"{context} on {gpus}, the fullest at {found.fullness:.0%}"


def _used(found: Plan) -> list[Stage]:
    return [stage for stage in found.stages if stage.units]


def _on_cpu(facts: Facts) -> Finding:
    shape, work, host = facts.shape, _workload(facts), facts.host_bytes

    def needed(context: int) -> int:
        stages = plan(shape, (), replace(work, context=context)).stages
        return sum(stage.total_bytes for stage in stages)

    try:
        size = needed(shape.max_context)
    except OptionError as error:
        found = f"{shape.name} does not run on this CPU"
        return Finding(_SUBJECT, "fail", found, error.what, error.hint)
    context = shape.max_context
    if host is not None and size > host:
        least = work.context or context
        context = least
        if needed(least) <= host:
            context = longest_context(least, shape.max_context, lambda n: needed(n) <= host)
        size = needed(context)
    found = (
        f"{shape.name} in {work.dtype} takes {readable_bytes(size)} on the CPU with {context:,} "
        "tokens of context"
    )
    if size < _QUICK_ON_CPU:
        return Finding(_SUBJECT, "ok", found)
    step = remark("demo_or_describe_gpus")
    if host is None:
        return Finding(_SUBJECT, "warn", found, "The host's memory is not known.", step)
    told = f"The host has {readable_bytes(host)}"
    if size > host:
        return Finding(_SUBJECT, "fail", found, f"{told}.", step)
    return Finding(_SUBJECT, "warn", found, f"{told}; a CPU is slow.", step)


def _does_not_fit(facts: Facts, model: str, error: DoesNotFitError) -> Finding:
    shape, gpus = facts.shape, facts.gpus
    steps: list[str | Remark] = [error.hint, Remark(error.code, error.values)]
    work = _workload(facts)
    enough = _enough_gpus(shape, gpus, work)
    if enough:
        steps.append(f"{enough} would do without any of that.")
    step = tuple(steps)
    if _fits_somehow(facts):
        return Finding(_SUBJECT, "warn", f"{model} does not fit as it is", error.what, step)
    return Finding(_SUBJECT, "fail", f"{model} does not fit", error.what, step)


def _fits_somehow(facts: Facts) -> bool:
    """Tell whether a shorter context, quantisation or offloading makes the model fit."""
    shape, gpus = facts.shape, facts.gpus
    work = _workload(facts)
    positions = planned_image(shape, replace(work, context=_SHORTEST_CONTEXT)).positions
    shortest = min(shape.max_context, max(_SHORTEST_CONTEXT, positions))
    quantized = [replace(work, quantize=kind) for kind in QUANTIZATIONS if shape.quantizable]
    workloads = [replace(work, context=shortest), *quantized]
    if any(_fits(shape, gpus, workload) for workload in workloads):
        return True
    full = replace(work, fp8=False)
    for workload in (full, *(replace(full, quantize=each.quantize) for each in quantized)):
        offloaded = offloaded_split(_task(shape, gpus, workload))
        if offloaded is not None:
            away = sum(unit.weight_bytes for unit in offloaded.away)
            if facts.host_bytes is None or away < facts.host_bytes:
                return True
    return False


def _fits(shape: ModelShape, gpus: Sequence[GPU], workload: Workload) -> bool:
    # If it does not fit, `plan` works out alternatives, which takes seconds.
    split = best_split(_task(shape, gpus, workload))
    return split is not None and split.fits


def _task(shape: ModelShape, gpus: Sequence[GPU], workload: Workload) -> Task:
    return Task(
        shape,
        tuple(gpus),
        workload,
        OBJECTIVES[0],
        reserve=None,
        overhead=None,
        pin={},
        any_order=True,
        split_vision=None,
    )


def _enough_gpus(shape: ModelShape, gpus: Sequence[GPU], work: Workload) -> str:
    """Return ``3 GPUs of 16.00 GiB``, as many of the largest as would do; empty if too many."""
    size = max(gpu.total_bytes for gpu in gpus)
    weights = sum(unit.weight_bytes for unit in price(shape, work))
    for count in range(weights // size + 1, _MOST_GPUS + 1):
        if _fits(shape, [GPU(index, "GPU", size) for index in range(count)], work):
            return f"{counted(count, 'GPU')} of {readable_bytes(size)}"
    return ""


def review(facts: Facts) -> Iterator[Finding]:
    """Judge the plan for six or more GPUs: whole parts, hops, idle GPUs."""
    shape, gpus = facts.shape, facts.gpus
    if len(gpus) < REVIEWED_FROM:
        return
    forms = {False, shape.keeps_fp8}
    if not any(_fits(shape, gpus, replace(_workload(facts), fp8=form)) for form in forms):
        return
    try:
        found, _ = held_plan(shape, gpus, Workload())
        fewest, _ = held_plan(shape, gpus, Workload(), objective="fewest")
    except DoesNotFitError:  # it would in FP8, which not all of them compute with
        return
    yield _parts(found)
    yield _hops(found, fewest)
    idle = [stage.device for stage in found.stages if not stage.units]
    if idle:
        yield Finding("idle GPUs", "ok", ", ".join(idle), _NO_FASTER, "Leave them to others.")


def _parts(found: Plan) -> Finding:
    """Say which parts stay whole: layers always, the vision tower if it fits."""
    tower = [stage for stage in _used(found) if stage.units[0].partition(".")[0] == "vision"]
    if not tower:
        where = "no vision tower"
    elif len(tower) == 1:
        where = f"vision tower whole on {tower[0].device}"
    else:
        where = f"vision tower on {counted(len(tower), 'GPU')}, cut between its layers"
    layers = sum(any(unit.startswith("layer.") for unit in stage.units) for stage in found.stages)
    where += f"; decoder layers on {counted(layers, 'GPU')}"
    return Finding("parts", "ok", where, "No layer is ever cut.")


def _hops(found: Plan, fewest: Plan) -> Finding:
    hops = f"{counted(found.hops, 'hop')} per token"
    if fewest.hops >= found.hops:
        return Finding("hops", "ok", hops, "It does not fit on fewer GPUs.")
    if found.fullness > HEADROOM:
        return Finding("hops", "ok", hops, "Fewer GPUs would be fuller.")
    return Finding("hops", "ok", hops, "Fewer GPUs would leave less than a fifth of each free.")
