"""Idle GPUs have no say in whether weights that were published in FP8 stay so."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DoesNotFitError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.doctor import diagnose, gather
from glm4v_magic.planning.held import held_plan
from glm4v_magic.planning.precision import can_fp8, used_by


def in_fp8() -> ModelShape:
    """Sizes of a published model, were its linear layers published in FP8."""
    full = architecture("GLM-4.1V-9B-Thinking").shape()
    units = (replace(unit, fp8_values=unit.linear_values) for unit in full.units)
    return replace(full, fp8=True, units=tuple(units))


SHAPE = in_fp8()
WORK = Workload(context=8192)


@pytest.mark.parametrize(
    ("gpus", "options", "stays", "idle"),
    [
        ("H100-80GB", {}, True, []),
        ("H100-80GB+T4", {}, True, [1]),
        ("T4+H100-80GB", {}, True, [0]),
        ("L4+T4", {}, True, [1]),  # restored, both would be in use
        ("2xT4+H100-80GB+24GiB", {}, True, [0, 1, 3]),  # nothing is known of the last
        ("A100-80GB+L4", {}, False, [1]),  # the emptiest is one without FP8
        ("H100-80GB+T4", {"objective": "balance"}, False, []),
        ("H100-80GB+T4", {"pin": {"vision": 1}}, False, []),
        ("H100-80GB+T4", {"pin": {"vision": 0}}, True, [1]),
        # For both GPUs, or as headroom is looked for: but restored weights do not fit.
        ("L4+6GiB", {"objective": "balance", "reserve": 0}, True, [1]),
        ("2xT4", {}, False, []),
    ],
)
def test_weights_stay_in_fp8_where_the_gpus_in_use_compute_with_it(gpus, options, stays, idle):
    described = parse_gpus(gpus)
    work = replace(WORK, context=40960) if "6GiB" in gpus else WORK
    made, held = held_plan(SHAPE, described, work, **options)
    used = used_by(made, described)
    assert (held.fp8, made.workload.fp8) == (stays, stays)
    assert can_fp8(used) == stays
    assert held.dtype == made.workload.dtype
    assert {stage.gpu for stage in made.stages} == {gpu.index for gpu in described}
    assert sorted(stage.gpu for stage in made.stages if not stage.units) == idle
    assert all(stage.capacity_bytes for stage in made.stages)
    alone, _ = (
        held_plan(SHAPE, described, replace(work, dtype=held.dtype), **options)
        if (not stays)
        else held_plan(SHAPE, used, work)
    )
    weights = [sum(stage.weight_bytes for stage in each.stages) for each in (made, alone)]
    assert weights[0] == weights[1]


def test_a_unit_that_is_pinned_to_an_older_gpu_is_not_taken_from_it():
    with pytest.raises(DoesNotFitError):
        held_plan(
            SHAPE, parse_gpus("L4+6GiB"), replace(WORK, context=40960), pin={"head": 1}, reserve=0
        )


@pytest.mark.parametrize("gpus", ["H100-80GB+T4", "6xT4+H100-80GB"])
def test_the_doctor_says_so(monkeypatch, gpus):
    known = SimpleNamespace(shape=lambda: SHAPE)
    monkeypatch.setattr("glm4v_magic.checkpoints.architecture.architecture", lambda *_, **__: known)
    found = {each.subject: each for each in diagnose(gather(parse_gpus(gpus)))}
    assert found["model"].found.startswith(f"{SHAPE.name} in bfloat16, weights in FP8 fits")
    if "6x" in gpus:
        assert found["idle GPUs"].found == ", ".join(f"cuda:{index}" for index in range(6))
