"""What a plan puts on each GPU, taken apart for the view of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DeviceMapError, DoesNotFitError
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.occupancy import occupancy

GIB = 2**30
NINE_B = architecture("GLM-4V-9B")
DEMO = architecture("demo")


def taken_apart(gpus="4x16GiB", cached=0, model=NINE_B, **options):
    plan = make_plan(model, PlacementOptions(gpus=gpus, **options))
    return plan, occupancy(plan, model.shape(), parse_gpus(gpus), cached_tokens=cached)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gpus": "24+16+12GiB", "split_vision": True},
        {"gpus": "3x16GiB", "quantize": "4bit"},
        {"gpus": "2x9GiB", "offload": True, "context": 1024},
        {"gpus": "8x80GiB", "objective": "fewest"},
        {"gpus": "cpu"},
    ],
)
def test_the_parts_of_a_gpu_are_what_the_plan_says(options):
    plan, view = taken_apart(**options)
    for stage, gpu in zip(plan.stages, view.gpus, strict=True):
        weights = [part for part in gpu.parts if part.modules]
        assert sum(part.size_bytes for part in weights) == stage.weight_bytes
        assert tuple(name for part in weights for name in part.modules) == stage.modules
        assert gpu.planned_bytes == stage.total_bytes
        if stage.capacity_bytes is not None:
            assert sum(part.size_bytes for part in gpu.parts) == gpu.total_bytes
            assert gpu.fullness == stage.fullness
    away = sum(part.host_bytes for gpu in view.gpus for part in gpu.parts)
    assert bool(away) == bool(options.get("offload"))
    assert view.notes == plan.notes


def test_layers_that_follow_each_other_are_one_part():
    _, view = taken_apart(objective="balance", split_vision=False)
    names = [[part.name for part in gpu.parts if part.modules] for gpu in view.gpus]
    assert names == [["vision"], ["embedding", "layers 0-11"], ["layers 12-26"],
                     ["layers 27-39", "head"]]  # fmt: skip


def test_the_dtype_of_weights_says_what_is_quantised():
    _, view = taken_apart(quantize="4bit")
    dtypes = {part.kind: part.dtype for gpu in view.gpus for part in gpu.parts if part.dtype}
    assert dtypes["vision"] == dtypes["head"] == "bfloat16"
    assert dtypes["layers"] == "bfloat16, linear layers in 4bit"
    work = "bfloat16, text part in 4bit: 8,192 tokens of context, 1 image"
    assert view.work == work
    assert taken_apart(quantize="4bit", batch=2)[1].work == f"{work}, batch of 2"


def test_the_cache_in_use_is_a_part_of_the_whole():
    entries = 8192 + 1602 - 3
    plan, empty = taken_apart()
    _, half = taken_apart(cached=entries // 2)
    _, full = taken_apart(cached=10 * entries)

    def cache(view, kind):
        parts = [part for gpu in view.gpus for part in gpu.parts if part.kind == kind]
        return sum(part.size_bytes for part in parts)

    whole = sum(stage.kv_bytes for stage in plan.stages)
    assert (cache(empty, "cache"), cache(empty, "room")) == (0, whole)
    assert cache(half, "cache") == pytest.approx(whole / 2, rel=0.001)
    assert cache(half, "cache") + cache(half, "room") == whole
    assert (cache(full, "cache"), cache(full, "room")) == (whole, 0)


def test_what_other_programs_hold_and_what_is_kept_free():
    gpus = [GPU(0, "A", 40 * GIB, 30 * GIB), GPU(1, "B", 40 * GIB)]
    plan = make_plan(NINE_B, PlacementOptions(reserve=2.0), gpus)
    first, second = sorted(occupancy(plan, NINE_B.shape(), gpus).gpus, key=lambda c: c.device)
    sizes = {part.kind: part.size_bytes for part in first.parts}
    assert sizes["others"] == 10 * GIB
    assert sizes["reserve"] == 2 * GIB
    assert "others" not in {part.kind for part in second.parts}


def test_hops_and_the_way_back_of_logits():
    _, view = taken_apart(objective="balance", gpus="24+16+12GiB")
    crossings = [(hop.source, hop.target, hop.what) for hop in view.hops]
    assert crossings == [
        ("cuda:2", "cuda:0", "patches"),
        ("cuda:0", "cuda:1", "hidden state"),
        ("cuda:1", "cuda:2", "logits"),
    ]
    assert [hop.token_bytes for hop in view.hops] == [0, 2 * 4096, 2 * 151_552]
    assert view.hops[0].image_bytes is None
    _, view = taken_apart(objective="balance", split_vision=False)
    assert (view.hops[0].what, view.hops[0].image_bytes) == (
        "visual tokens",
        1602 * 4096 * 2,
    )
    _, alone = taken_apart(gpus="1x80GiB")
    assert alone.hops == ()


def test_a_dry_run_sees_these_bytes_cross():
    """With what else crosses once per step: rotary tables and ids, which are small."""
    gpus = parse_gpus("3x600MiB")
    plan = make_plan(DEMO, PlacementOptions(context=256, objective="balance"), gpus)
    hops = occupancy(plan, DEMO.shape(), gpus).hops
    report = dry_run(DEMO, gpus, plan, context=256, decode_steps=2)
    seen = {(hop.source, hop.target): hop.decode_bytes for hop in report.copies}
    per_token = [hop for hop in hops if hop.token_bytes]
    assert per_token
    for hop in per_token:
        measured = seen[hop.source, hop.target]
        assert hop.token_bytes <= measured <= hop.token_bytes + 200


def test_a_plan_that_does_not_fit_has_a_view_too():
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(NINE_B, PlacementOptions(gpus="2x9GiB"))
    plan = caught.value.plan
    view = occupancy(plan, NINE_B.shape(), parse_gpus("2x9GiB"), problem=str(caught.value))
    assert view.fullest.fullness > 1.5
    assert {part.kind for part in view.fullest.parts} & {"free"} == set()
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(NINE_B, PlacementOptions(gpus="1x1GiB", reserve=2))
    assert caught.value.plan is None


@pytest.mark.parametrize("free", [30, 20, 12])
def test_what_others_have_taken_since_is_not_free(free):
    plan = make_plan(NINE_B, PlacementOptions(context=2048), [GPU(0, "A", 80 * GIB, 60 * GIB)])
    (gpu,) = occupancy(plan, NINE_B.shape(), [GPU(0, "A", 80 * GIB, free * GIB)]).gpus
    sizes = {part.kind: part.size_bytes for part in gpu.parts}
    assert sizes["others"] == (80 - free) * GIB
    taken = gpu.planned_bytes
    if taken <= free * GIB:
        assert sum(sizes.values()) == 80 * GIB
    else:
        assert "free" not in sizes
        assert sum(sizes.values()) == taken + sizes["others"]


def test_a_plan_of_another_model_is_refused():
    """It may be from a file that was edited: the map was checked, names of units were not."""
    plan = make_plan(DEMO, PlacementOptions(gpus="2x1GiB"))
    first = replace(plan.stages[0], units=("layer.99",))
    edited = replace(plan, stages=(first, *plan.stages[1:]))
    with pytest.raises(DeviceMapError, match=r"a unit 'layer.99'"):
        occupancy(edited, DEMO.shape())
    empty = replace(plan, stages=tuple(replace(stage, units=()) for stage in plan.stages))
    assert occupancy(empty, DEMO.shape()).hops == ()


def test_views_of_the_same_are_equal():
    assert taken_apart()[1] == taken_apart()[1]
    assert taken_apart()[1] != replace(taken_apart()[1], loaded=True)
