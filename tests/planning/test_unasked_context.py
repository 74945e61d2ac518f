"""A plan for which nobody named a context: the model's longest, or the longest that fits."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import tiny_native

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DoesNotFitError
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.remarks import PYTHON, worded
from glm4v_magic.doctor import diagnose, gather
from glm4v_magic.dry_run.room import require_room
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.planning.decision import decide, make_plan
from glm4v_magic.planning.held import USEFUL_CONTEXT
from glm4v_magic.planning.machines import machines
from glm4v_magic.planning.seen import image_size_of

OCR = architecture("GLM-OCR")
THINKING = architecture("GLM-4.1V-9B-Thinking")


def planned(model, gpus, **options):
    return make_plan(model, PlacementOptions(gpus=gpus, **options))


def said(notes):
    return " ".join(worded(note, PYTHON) for note in notes)


@pytest.mark.parametrize(
    ("model", "gpus", "options"),
    [
        (OCR, "4GiB", {}),
        (OCR, "8GiB", {}),
        (OCR, "12GiB", {}),
        (OCR, "T4", {}),
        (THINKING, "24GiB", {}),
        (THINKING, "12GiB", {"quantize": "4bit"}),
        (THINKING, "T4", {"quantize": "8bit"}),
        (OCR, "8GiB", {"images": 4, "image_size": 2000}),
        (OCR, "8GiB", {"images": 20}),
    ],
)
def test_the_longest_context_that_fits(model, gpus, options):
    made = planned(model, gpus, **options)
    context, longest = made.workload.context, model.shape().max_context
    assert USEFUL_CONTEXT <= context < longest
    assert made.fullness <= 1
    with pytest.raises(DoesNotFitError):
        planned(model, gpus, context=context + 256, **options)
    assert f"{context:,} tokens of context: the {longest:,} of the model do not fit" in said(
        made.notes
    )
    asked = planned(model, gpus, context=context, **options)
    assert asked.stages == made.stages
    assert "do not fit" not in said(asked.notes)


def test_the_models_own_where_it_fits():
    made = planned(OCR, "24GiB")
    assert made.workload.context == OCR.shape().max_context
    assert "do not fit" not in said(made.notes)


def test_a_context_that_was_asked_for_is_kept():
    with pytest.raises(DoesNotFitError):
        planned(OCR, "8GiB", context=OCR.shape().max_context)


def test_a_refusal_is_that_of_the_shortest():
    """So that 4 bit is not said to be too large where it fits."""
    with pytest.raises(DoesNotFitError) as short:
        planned(THINKING, "12GiB")
    with pytest.raises(DoesNotFitError) as same:
        planned(THINKING, "12GiB", context=USEFUL_CONTEXT)
    # Where no context was asked for, the ways out say which one they are for.
    said = str(short.value).replace(f" at {USEFUL_CONTEXT:,} tokens", "")
    assert said == str(same.value) != str(short.value)
    assert 'quantize="4bit"' in str(short.value)


def test_offloading_is_for_no_longer_context_than_useful():
    made = planned(THINKING, "8GiB", offload=True)
    assert made.workload.context == USEFUL_CONTEXT
    assert any(stage.offloaded for stage in made.stages)
    whole = planned(OCR, "8GiB", offload=True)
    assert not any(stage.offloaded for stage in whole.stages)


def test_weights_in_fp8_beside_a_gpu_without_it():
    shape = THINKING.shape()
    units = tuple(replace(unit, fp8_values=unit.linear_values) for unit in shape.units)
    in_fp8 = replace(shape, fp8=True, units=units)

    class Published:
        name, max_images = "FP8", None

        def shape(self):
            return in_fp8

    alone, beside = (planned(Published(), gpus) for gpus in ("L4", "L4+2GiB"))
    assert alone.workload.fp8
    assert beside.workload == alone.workload
    assert USEFUL_CONTEXT < alone.workload.context < shape.max_context


def test_doctor_table_load_and_dry_run_say_the_same():
    gpus = parse_gpus("8GiB")
    context = planned(OCR, "8GiB").workload.context
    (fit,) = machines(OCR, PlacementOptions(), [("", "8GiB")])
    assert (fit.context, fit.quantize) == (context, None)
    findings = diagnose(gather(gpus, model="GLM-OCR"))
    finding = next(each for each in findings if each.subject == "model")
    assert finding.verdict == "ok"
    assert f"fits: {context:,} tokens of context" in finding.found
    load = decide(OCR, PlacementOptions(), gpus)
    assert load.plan.workload.context == context
    assert "do not fit" in said(load.notes)


def test_a_dry_run_without_a_context_tries_the_planned_one():
    model = architecture("demo-4.6v")
    shape = model.shape()
    report = dry_run(model, "1GiB")
    assert report.context == shape.max_context
    tried = dry_run(OCR, "8GiB")
    assert tried.context == planned(OCR, "8GiB").workload.context
    assert tried.works
    assert "do not fit" in said(tried.notes)


@pytest.mark.parametrize(("gib", "verdict"), [(32, "warn"), (8, "warn"), (2, "fail")])
def test_the_doctor_on_a_cpu(gib, verdict):
    facts = replace(gather((), model="GLM-OCR"), host_bytes=gib * 2**30)
    finding = next(each for each in diagnose(facts) if each.subject == "model")
    assert finding.verdict == verdict
    told = int(finding.found.split(" with ")[1].split()[0].replace(",", ""))
    longest = OCR.shape().max_context
    assert (told == longest) == (gib == 32)
    assert (told == USEFUL_CONTEXT) == (gib == 2)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A tiny model that reads 65,536 tokens."""
    folder = tiny_native.write("glm4v", tmp_path_factory.mktemp("long"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 65_536
    (folder / "config.json").write_text(json.dumps(config))
    return architecture(folder)


def needed(model, context):
    report = dry_run(model, "1x80GiB", {"": 0}, context=context)
    return report.gpus[0].total_bytes - report.gpus[0].overhead_bytes


def gpu_with(nbytes):
    """Return a GPU with so much room beside its overhead, whose size tells that, too."""
    gpu = GPU(0, "small", nbytes, context_bytes=0)
    return (replace(gpu, total_bytes=nbytes + gpu.overhead_bytes),)


@pytest.mark.parametrize("given", [{"": 0}, "auto"])
def test_a_map_without_a_context_is_judged_as_a_plan_is(long, given):
    sizes = {context: needed(long, context) for context in (8192, 65_536)}
    between = gpu_with(sum(sizes.values()) // 2)
    report = dry_run(long, between, given)
    assert report.works
    assert 8192 < report.context < 65_536
    told = f"Planned for {report.context:,} tokens of context: the 65,536 of the model do not fit."
    assert said(report.notes) == told
    assert report.fullest.fullness > 0.9  # no much longer one would fit
    whole = dry_run(long, gpu_with(2 * sizes[65_536]), given)
    assert (whole.works, whole.context, whole.notes) == (True, 65_536, ())
    small = dry_run(long, gpu_with(sizes[8192] - 2**20), given)
    assert (small.works, small.context) == (False, 8192)
    for options in ({"context": 65_536}, {"text_tokens": 65_000, "images": 0}):
        asked = dry_run(long, between, given, **options)
        assert not asked.works
        assert "do not fit" not in said(asked.notes)


def test_so_is_a_map_that_is_loaded(long):
    asked, given = PlacementOptions(), {"": 0}
    sizes = {context: needed(long, context) for context in (8192, 65_536)}
    for gpus, context in (
        (gpu_with(sum(sizes.values()) // 2), None),
        (gpu_with(2 * sizes[65_536]), 65_536),
    ):
        decided = decide(long, asked, gpus, given)
        placed, left = require_room(long, decided, asked, given, gpus)
        report = dry_run(long, gpus, given)
        assert placed.notes == report.notes
        assert context in (None, report.context)
        seen = Workload(context=report.context)
        assert placed.image_size == image_size_of(long.shape(), seen)
        # What is kept of prompts finds room beside that context.
        assert left is not None
        assert left.size_bytes <= gpus[0].usable_bytes - needed(long, report.context)
        assert bool(left.size_bytes) == (context is not None)
    gpus = gpu_with(sizes[8192] - 2**20)
    with pytest.raises(DoesNotFitError) as caught:
        require_room(long, decide(long, asked, gpus, given), asked, given, gpus)
    shorter = re.search(r"context=([0-9]+)", str(caught.value))
    assert shorter is not None
    asked = PlacementOptions(context=int(shorter[1]))
    assert require_room(long, decide(long, asked, gpus, given), asked, given, gpus)[0].notes == ()
