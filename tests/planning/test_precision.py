"""Which dtype a plan and a load take: what the GPUs can compute with, unless one is asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.gpu_spec import CPU, parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.remarks import PYTHON, worded
from glm4v_magic.doctor import diagnose, gather
from glm4v_magic.notebook.draft import draw
from glm4v_magic.planning.costs import price
from glm4v_magic.planning.decision import decide, make_plan
from glm4v_magic.planning.files import plan_from_json

SHORT = {"context": 4096}


@pytest.mark.parametrize("model", ["GLM-4V-9B", "GLM-4.1V-9B-Thinking"])
@pytest.mark.parametrize(
    ("gpus", "dtype"),
    [
        ("2xT4-16GB", "float16"),
        ("2xTesla V100-SXM2-32GB", "float16"),
        ("A100-16GB+T4-16GB", "float16"),
        ("2xT4-16GB+A100-40GB", "bfloat16"),
        ("1xA100-40GB", "bfloat16"),
        ("2x16GiB", "bfloat16"),
    ],
)
def test_gpus_without_bfloat16_compute_in_float16(model, gpus, dtype):
    known, options = architecture(model), PlacementOptions(gpus=gpus, **SHORT)
    made = make_plan(known, options)
    assert made.workload.dtype == dtype
    told = [worded(note, PYTHON) for note in made.notes]
    assert sum("cannot compute in bfloat16" in each for each in told) == (dtype == "float16")
    overflows = dtype == "float16" and model == "GLM-4V-9B"
    assert sum("has been seen to overflow" in each for each in told) == overflows
    assert plan_from_json(made.to_json()) == made
    placement = decide(known, options, parse_gpus(gpus))
    assert placement.dtype == dtype
    assert len(placement.notes) == (dtype == "float16") + overflows
    given = decide(known, PlacementOptions(), parse_gpus(gpus), made)
    assert (given.dtype, given.notes) == (placement.dtype, placement.notes)


def test_idle_gpus_do_not_decide_on_the_dtype():
    known, gpus = architecture("GLM-4V-9B"), parse_gpus("1xT4+1xA100")
    options = PlacementOptions(**SHORT)
    made = make_plan(known, options, gpus)
    for given in (None, made, {"": 1}):
        placed = decide(known, PlacementOptions() if given else options, gpus, given)
        assert (placed.dtype, placed.notes) == ("bfloat16", ()), given
    assert decide(known, options, gpus, {"transformer.vision": 0, "": 1}).dtype == "float16"
    assert draw(known, options, gpus)[1] == made.to_json()
    asked = make_plan(known, replace(options, dtype="float16"), gpus)
    assert [note.code for note in asked.notes][:1] == ["float16_overflows"]
    assert asked.workload.dtype == "float16"
    (found,) = (each for each in diagnose(gather(gpus)) if each.subject == "model")
    assert found.found.startswith("GLM-4V-9B in bfloat16 fits")


def test_only_a_tower_that_was_seen_to_overflow_is_said_to():
    placement = decide(architecture("demo"), PlacementOptions(), parse_gpus("2xT4-16GB"))
    assert (placement.dtype, placement.notes) == ("float16", ())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_dtype_that_is_asked_for_is_kept(dtype):
    known = architecture("GLM-4.1V-9B-Thinking")
    options = PlacementOptions(gpus="4xT4-16GB", dtype=dtype, **SHORT)
    assert make_plan(known, options).workload.dtype == dtype
    assert "in float16" not in str(make_plan(known, options).notes)
    placement = decide(known, options, parse_gpus("4xT4-16GB"))
    assert (placement.dtype, placement.notes) == (dtype, ())


def test_a_map_on_such_gpus_takes_float16_too():
    gpus = tuple(replace(gpu, capability=(7, 0)) for gpu in parse_gpus("2x32GiB"))
    known = architecture("GLM-4V-9B")
    assert decide(known, PlacementOptions(), gpus, {"": 0}).dtype == "float16"
    assert decide(known, PlacementOptions(), gpus, {"": "cpu"}).dtype == "float32"


FAST = CPU("avx512_bf16")


@pytest.mark.parametrize(
    ("model", "options", "dtype"),
    [
        ("GLM-OCR", {}, "bfloat16"),
        ("GLM-4V-9B", {}, "bfloat16"),
        ("GLM-OCR", {"dtype": "float32"}, "float32"),
        ("GLM-OCR", {"quantize": "8bit"}, "float32"),
        ("demo", {}, "float32"),
        ("demo-4.6v", {}, "float32"),
    ],
)
def test_a_cpu_takes_the_dtype_that_it_is_faster_in(model, options, dtype):
    known = architecture(model)
    given = PlacementOptions(gpus="cpu", context=256, images=0, **options)
    made = make_plan(known, given, cpu=FAST)
    assert made.workload.dtype == dtype
    (stage,) = made.stages
    whole = price(known.shape(), Workload(256, images=0, dtype=dtype, quantize=given.quantize))
    assert stage.weight_bytes == sum(unit.weight_bytes for unit in whole)
    codes = ["bfloat16_on_cpu"] if dtype == "bfloat16" else []
    placed = decide(known, given, (), cpu=FAST, loads=False)
    assert placed.dtype == dtype
    assert [note.code for note in placed.notes] == [note.code for note in made.notes] == codes
    by_map = decide(known, replace(given, context=None), (), {"": "cpu"}, cpu=FAST, loads=False)
    assert by_map.dtype == dtype
    slower = decide(known, given, (), loads=False)
    assert slower.dtype == options.get("dtype", "float32")


def test_the_doctor_says_it():
    found = {each.subject: each for each in diagnose(gather(parse_gpus("2xT4-16GB")))}
    assert "float16" in found["model"].found
