"""A plan on other GPUs than those that it was made for: what it takes of them, and its dtype."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DoesNotFitError, OptionError
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.room import room_for_kept
from glm4v_magic.planning.decision import decide, make_plan
from glm4v_magic.planning.files import plan_from_json
from glm4v_magic.planning.followed import capacities, planned_gpus

GIB = 2**30
MODEL = architecture("GLM-4.1V-9B-Thinking")


def made(gpus: str, **options):
    return make_plan(MODEL, PlacementOptions(gpus=gpus, context=8192, **options))


def on(gpus: str | tuple[GPU, ...], plan, **options):
    found = parse_gpus(gpus) if isinstance(gpus, str) else gpus
    return decide(MODEL, PlacementOptions(**options), found, plan)


def sizes(plan):
    return {stage.gpu: stage.capacity_bytes for stage in plan.stages}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reserve": 0.5},
        {"reserve": 0},
        {"max_memory": 15},
        {"max_memory": (15, 14)},
        {"max_memory": ((0, 15), (1, 14))},
        {"objective": "fewest"},
    ],
)
def test_on_the_gpus_it_was_made_for_a_plan_is_what_it_was(options):
    plan = made("2x24GiB", **options)
    assert on("2x24GiB", plan).plan == plan
    assert capacities(plan, parse_gpus("2x24GiB")) == sizes(plan)


def test_the_split_of_a_model_that_does_not_fit_keeps_its_limits():
    options = {"max_memory": 9.0, "reserve": 0.5}
    with pytest.raises(DoesNotFitError) as caught:
        made("2x24GiB", **options)
    plan = caught.value.plan
    assert (plan.limits.max_memory, plan.limits.reserve) == (9.0, 0.5)
    assert set(capacities(plan, parse_gpus("2x24GiB")).values()) == {9 * GIB}


def test_smaller_gpus_leave_less_for_kept_prompts():
    plan, smaller = made("2x80GiB", objective="balance"), made("2x16GiB", objective="balance")
    placed = on("2x16GiB", plan).plan
    assert sizes(placed) == sizes(smaller)
    assert room_for_kept(placed.stages) == room_for_kept(smaller.stages)
    assert [stage.overhead_bytes for stage in placed.stages] == [512 * 2**20] * 2
    assert [stage.overhead_bytes for stage in plan.stages] == [848 * 2**20] * 2


def test_so_does_memory_that_others_have_taken_since():
    plan = made("2x24GiB", objective="balance")
    taken = tuple(replace(gpu, free_bytes=18 * GIB) for gpu in parse_gpus("2x24GiB"))
    placed = on(taken, plan).plan
    assert set(sizes(placed).values()) == {18 * GIB - int(24 * GIB * 0.03)}
    assert room_for_kept(placed.stages).size_bytes < room_for_kept(plan.stages).size_bytes


def test_of_larger_gpus_a_plan_takes_what_was_planned():
    plan = made("2x24GiB", objective="balance")
    placed = on("2x80GiB", plan).plan
    grown = (848 - 640) * 2**20
    assert sizes(placed) == {gpu: size + grown for gpu, size in sizes(plan).items()}
    assert room_for_kept(placed.stages) == room_for_kept(plan.stages)
    # a dry run says how full the GPU is
    assert capacities(plan, parse_gpus("2x80GiB")) == sizes(made("2x80GiB"))


def test_what_a_new_plan_would_leave_free_is_used_where_it_is_needed():
    plan = made("24GiB")
    (stage,) = plan.stages
    just = GPU(0, "GPU", stage.total_bytes + 64 * 2**20)
    assert int(just.total_bytes * 0.03) > 64 * 2**20
    placed = on((just,), plan).plan
    assert sizes(placed) == capacities(plan, (just,)) == {0: just.total_bytes}
    assert 0 < placed.fullness <= 1


def test_limits_of_a_plan_hold_on_other_gpus():
    plan = made("2x24GiB", objective="balance", max_memory=(20, 18), reserve=1)
    for gpus in ("2x24GiB", "2x80GiB", "3x80GiB"):
        assert capacities(plan, parse_gpus(gpus)) == {0: 19 * GIB, 1: 17 * GIB}


def test_names_and_speed_are_those_of_the_gpus_here():
    plan = made("2xRTX-3090", objective="balance")
    placed = on("2xRTX-4090", plan).plan
    assert {stage.name for stage in placed.stages} == {"RTX-4090"}
    assert placed.speed == made("2xRTX-4090", objective="balance").speed != plan.speed


@pytest.mark.parametrize("planned", ["2x16GiB", "2xRTX-3090", "2xA100-80GB"])
def test_a_dtype_that_was_chosen_for_other_gpus_is_chosen_again(planned):
    plan = made(planned, objective="balance")
    assert plan.workload.dtype == "bfloat16"
    for gpus in ("2xT4", "2xV100-32GB", "T4+RTX-3090"):
        placed = on(gpus, plan_from_json(plan.to_json()))
        fresh = decide(MODEL, PlacementOptions(objective="balance", context=8192), parse_gpus(gpus))
        assert (placed.dtype, placed.notes) == ("float16", fresh.notes)
        assert placed.plan.workload.dtype == "float16"
        assert [note.code for note in placed.plan.notes].count("float16_instead") == 1
    assert on("2xL4", plan).dtype == on("T4+2xL4", plan, dtype="bfloat16").dtype == "bfloat16"


def test_a_dtype_that_was_asked_for_is_kept():
    plan = made("2x16GiB", dtype="bfloat16")
    assert (plan.limits.dtype, made("2x16GiB").limits.dtype) == ("bfloat16", None)
    placed = on("2xT4", plan_from_json(plan.to_json()))
    assert (placed.dtype, placed.notes) == ("bfloat16", ())
    assert on("2xT4", made("2x16GiB"), dtype="bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("gpus", ["2x24GiB", "2xRTX-3090", "A100-80GB+RTX-3090", "H100+40GiB"])
@pytest.mark.parametrize("options", [{}, {"reserve": 2.0}, {"max_memory": 18}])
def test_without_gpus_a_plan_is_tried_on_gpus_like_those_it_was_made_for(gpus, options):
    plan = made(gpus, objective="balance", **options)
    found = planned_gpus(plan)
    sizes = capacities(plan, found)
    for stage in plan.stages:
        gpu = found[stage.gpu]
        assert 0 <= sizes[gpu.index] - stage.capacity_bytes <= 1
        assert gpu.overhead_bytes == stage.overhead_bytes


@pytest.mark.parametrize(
    ("planned", "same", "other"),
    [
        (
            {"pin": {"vision": 0, "head": 1}},
            [{"pin": {"head": 1, "vision": 0}}],
            [{"pin": {"vision": 0}}, {"pin": {"vision": 1, "head": 0}}],
        ),
        (
            {"max_memory": {0: "20GiB", 1: "20GiB", "cpu": "30GiB"}},
            [{"max_memory": {"cpu": "30GiB", 1: "20GiB", 0: "20GiB"}}],
            [{"max_memory": 20}, {"max_memory": {0: "20GiB", "cpu": "30GiB"}}],
        ),
        (
            {"max_memory": 20},
            [{"max_memory": (20, 20)}, {"max_memory": {1: "20GiB", 0: "20GiB"}}],
            [{"max_memory": 19}, {"max_memory": (20, 19)}],
        ),
        ({}, [], [{"max_memory": 20}, {"pin": {"vision": 0}}]),
    ],
)
def test_an_option_beside_a_plan_may_be_written_in_another_way(planned, same, other):
    plan = made("2x24GiB", **planned)
    for options in same:
        assert on("2x24GiB", plan, **options).plan == plan
    for options in other:
        with pytest.raises(OptionError, match="but the plan was made with"):
            on("2x24GiB", plan, **options)
