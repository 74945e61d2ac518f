"""Dry runs: what they find in a placement, and how they say it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path

import golden
import pytest
import tiny_glm4v
import tiny_native
import torch
from any_json import changed_somewhere, taken_or_refused
from hypothesis import given
from hypothesis import strategies as st

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.glm_native.architecture import NativeArchitecture
from glm4v_magic.core.errors import (
    DeviceMapError,
    DoesNotFitError,
    Glm4vError,
    OptionError,
    PlacementError,
)
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dry_run.files import report_from_json, report_to_json
from glm4v_magic.dry_run.quantised import put_stand_ins
from glm4v_magic.dry_run.report import GPUUse, HopUse
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.dry_run.text import (
    copy_rows,
    findings,
    gpu_rows,
    main_findings,
    raise_if_unusable,
    report_text,
    title,
    verdict,
)
from glm4v_magic.notebook.render.plans.dry_run import dry_run_bundle, dry_run_html
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.plan import plan
from glm4v_magic.virtual_gpus import VirtualGPUs

TINY = architecture(golden.CHECKPOINT)
NATIVE = NativeArchitecture("tiny GLM-4.1V", tiny_glm4v.CONFIG, "config.json")
SPLIT = {"model.vision": 0, "model.language_model": 1, "lm_head": 1}
MIB = 2**20


class Naive(NativeArchitecture):
    """A model that does not say which of its layers must stay whole."""

    def build_meta(self, dtype, **options):
        model = super().build_meta(dtype, **options)
        model._no_split_modules = []
        return model


@cache
def published(device_map):
    model = architecture("GLM-4V-9B")
    if device_map == "spread":
        gpus = parse_gpus("8x16GiB")
        device_map = plan(model.shape(), gpus, objective="balance", split_vision=False)
    return dry_run(model, "8x16GiB", device_map, decode_steps=1)


@cache
def naive():
    return dry_run(Naive("naive", tiny_glm4v.CONFIG, "config.json"), "4x1GiB", "auto", context=500)


@cache
def overfull():
    return dry_run(TINY, "2x128MiB", SPLIT)


def hops(report):
    return {(hop.source, hop.target): hop for hop in report.copies}


def test_a_plan_for_the_published_model_runs_on_eight_gpus():
    report = published("spread")
    raise_if_unusable(report)
    assert report.works
    assert report.problems == ()
    assert all(gpu.weight_bytes and gpu.peak_bytes for gpu in report.gpus)
    stored = sum(gpu.weight_bytes for gpu in report.gpus)
    inv_freq = 2 * 2 * 32  # a buffer and its copy, in bfloat16
    assert stored == 27_812_641_792 + inv_freq
    entries = 8192 + 1599
    assert report.prompt_tokens == entries - 1
    assert sum(gpu.kv_bytes for gpu in report.gpus) == 40 * 1024 * entries
    hidden = hops(report)["cuda:3", "cuda:4"]
    assert (hidden.prefill_copies, hidden.decode_copies) == (1, 1)
    assert hidden.prefill_bytes == report.prompt_tokens * 4096 * 2
    assert hidden.decode_bytes == 4096 * 2
    assert report.gpu_copies()[1] <= 2 * report.decode_hops
    assert report.gpus[3].phase == "prefill"
    assert report.gpus[3].module.startswith("model.language_model.layers.")


def test_the_automatic_map_of_the_published_model_leaves_gpus_empty_but_runs():
    report = published("auto")
    assert report.placement == "auto"
    assert report.problems == ()  # this package's own model aligns what that map separates
    assert [gpu.gpu for gpu in report.gpus if not gpu.peak_bytes] == [6, 7]
    idle = "cuda:7 GPU     0.00   0.00    0.00   0.00   0.00  16.00    0%  idle"
    assert idle in report_text(report)


def test_idle_gpus_do_not_decide_on_the_dtype_of_the_automatic_map():
    known = NativeArchitecture("tiny", {**tiny_glm4v.CONFIG, "dtype": "bfloat16"}, "config.json")
    older, newer = parse_gpus("1xT4+1xA100")
    full = replace(older, free_bytes=0)
    for gpus, dtype in (((older, newer), "float16"), ((full, newer), "bfloat16")):
        report = dry_run(known, gpus, "auto", context=256)
        assert (report.works, report.dtype) == (True, dtype)
        assert (report.gpus[0].weight_bytes > 0) == (dtype == "float16")


def test_a_model_that_mixes_devices_is_told_where():
    report = naive()
    assert not report.works
    by_module = {problem.module: problem for problem in report.problems}
    gate = by_module["model.language_model.layers.1.mlp"]
    assert gate.operation == "aten.mul.Tensor"
    assert set(gate.devices) == {"cuda:0", "cuda:1"}
    assert gate.message == (
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"{gate.devices[0]} and {gate.devices[1]}!"
    )
    assert gate.source.startswith("transformers/models/glm4v/modeling_glm4v.py:")
    assert gate.source.endswith(" in forward")
    assert "*" in gate.code
    assert {problem.phase: problem.count for problem in report.problems} == {
        "prefill": 1,
        "decode": 2,
    }


def test_what_would_not_run_is_raised_as_one_line():
    with pytest.raises(PlacementError) as refused:
        raise_if_unusable(naive())
    assert str(refused.value).startswith(
        f"naive would not run on this placement ({len(naive().problems) - 1} more): prefill: "
        "Expected all tensors to be on the same device"
    )
    assert "in model.language_model.layers.1" in str(refused.value)
    assert "A plan of ours keeps together what must be." in str(refused.value)
    model, gpus = Naive("naive", tiny_glm4v.CONFIG, "config.json"), parse_gpus("4x1GiB")
    ours = plan(model.shape(), gpus, Workload(context=500), objective="balance", reserve=0)
    assert len(set(ours.device_map().values())) > 1
    raise_if_unusable(dry_run(model, gpus, ours, context=500))
    with pytest.raises(DoesNotFitError, match=r"out of memory: cuda:0 needs .* Use a plan of ours"):
        raise_if_unusable(overfull())
    planned = replace(overfull(), placement="plan")
    with pytest.raises(DoesNotFitError, match=r"\. Use more or larger GPUs"):
        raise_if_unusable(planned)


def test_gpus_that_are_too_small():
    report = overfull()
    assert [gpu.gpu for gpu in report.overfull] == [0, 1]
    gpu = report.overfull[1]
    assert gpu.short_bytes == gpu.total_bytes - 128 * MIB > 128 * MIB
    assert report.fullest.fullness > 2
    assert verdict(report) == "It would not run: 2 GPUs too small."
    assert "cuda:1 needs 0.25 GiB and has 0.12, so 0.13 GiB are short" in findings(report)[1]


def test_other_programs_leave_less_of_a_gpu():
    gpus = [GPU(0, "GPU", 2**30, free_bytes=200 * MIB), GPU(1, "GPU", 2**30)]
    report = dry_run(TINY, gpus, SPLIT)
    assert [gpu.gpu for gpu in report.overfull] == [0]


def test_a_gpu_that_other_programs_have_filled():
    report = dry_run(TINY, [GPU(0, "GPU", 2**30, free_bytes=0)], {"": 0})
    assert report.overfull == report.gpus
    assert "  999%  " in report_text(report)
    assert report.gpus[0].fullness > 9.99
    assert "rgba(234, 67, 53" in dry_run_html(report)


def test_modules_of_a_map_that_wait_in_host_memory_visit_the_gpu_of_the_embedding():
    report = dry_run(TINY, "2x1GiB", {**SPLIT, "lm_head": "cpu"})
    assert report.offloaded == ("lm_head",)
    head = 320 * 64 * 4
    assert hops(report)["cpu", "cuda:1"].decode_bytes == head
    assert ("cpu", "cuda:0") not in hops(report)
    assert report.works
    assert report_text(report).endswith("1 module waits in host memory, first lm_head.")


def test_a_plan_with_offloading_is_the_same_from_a_file(tmp_path):
    made = plan(TINY.shape(), parse_gpus("1x2MiB"), overhead=0, reserve=0, offload=True)
    report = dry_run(TINY, "1x1GiB", made)
    assert set(report.offloaded) == set(made.stages[0].offloaded)
    assert any(name.startswith("model.vision.") for name in report.offloaded)
    path = tmp_path / "plan.json"
    path.write_text(made.to_json())
    assert dry_run(TINY, "1x1GiB", path) == dry_run(TINY, "1x1GiB", str(path)) == report


def test_a_map_that_uses_no_gpu():
    report = dry_run(TINY, "1x1GiB", {"": "cpu"})
    (gpu,) = report.gpus
    assert (gpu.total_bytes, gpu.phase) == (0, "")
    assert report.works
    assert report.decode_hops == 0


@pytest.mark.parametrize("model", [TINY, NATIVE], ids=["GLM-4V-9B", "GLM-4.1V"])
def test_every_option_changes_what_runs(model):
    run = partial(dry_run, model, "2x4GiB", decode_steps=1)
    one = run(text_tokens=20)
    assert one.works
    assert title(one).endswith("with 1 image, then 1 decode step")
    assert title(run(text_tokens=20, context=30)) == title(one)  # fills what it takes
    shared = title(replace(one, prompt_tokens=43, context=30))
    assert "43 tokens (29 of the context, where visual tokens share positions) with 1 " in shared

    more = dry_run(model, "2x4GiB", text_tokens=20, decode_steps=2)
    assert more.prompt_tokens == one.prompt_tokens
    assert sum(c.kv_bytes for c in more.gpus) > sum(c.kv_bytes for c in one.gpus)

    rows = run(text_tokens=20, batch=3)
    assert (rows.batch, rows.problems) == (3, ())
    assert ", batch of 3, " in title(rows)
    assert sum(c.kv_bytes for c in rows.gpus) == 3 * sum(c.kv_bytes for c in one.gpus)

    text = run(context=100, images=0)
    assert (text.prompt_tokens, text.images) == (99, 0)

    small = run(text_tokens=20, dtype="bfloat16")
    weights, halved = (sum(c.weight_bytes for c in report.gpus) for report in (one, small))
    assert (small.dtype, 2 * halved) == ("bfloat16", weights)


# Each type in the dtype of its files, and one in all three; the other pairs in `make nightly`.
TYPES_IN_DTYPES = [
    pytest.param(
        kind,
        dtype,
        marks=() if dtype == "bfloat16" or kind == "glm4v" else pytest.mark.nightly,
    )
    for kind in tiny_native.KINDS
    for dtype in ("bfloat16", "float16", "float32")
]


@pytest.mark.parametrize(("kind", "dtype"), TYPES_IN_DTYPES)
def test_every_model_type_in_every_dtype(kind, dtype):
    config = tiny_native.config(kind, tiny_native.tokenizer(kind))
    known = NativeArchitecture(kind, config, "config.json")
    report = dry_run(known, "2x2GiB", dtype=dtype, text_tokens=8, image_size=112)
    raise_if_unusable(report)
    assert report.problems == ()


def test_several_images_of_one_row():
    one, two = (dry_run(NATIVE, "1x1GiB", context=2048, images=n, image_size=560) for n in (1, 2))
    assert one.prompt_tokens == two.prompt_tokens == 2046
    assert two.images == 2
    assert two.gpus[0].peak_bytes > one.gpus[0].peak_bytes
    larger = dry_run(NATIVE, "1x1GiB", context=2048, images=1, image_size=840)
    assert larger.gpus[0].peak_bytes > one.gpus[0].peak_bytes


@pytest.mark.parametrize(
    ("gpus", "options", "message"),
    [
        ("cpu", {}, "A dry run needs at least one GPU"),
        ((), {}, "A dry run needs at least one GPU"),
        ("1x1GiB", {"decode_steps": 0}, "decode_steps is 0, but must be at least 1"),
        ("1x1GiB", {"context": 300}, "300 tokens is longer than .* allows \\(256\\)"),
        ("1x1GiB", {"context": 2}, "too short for 1 image"),
        ("1x1GiB", {"context": 5}, "5 tokens has no room for text beside 1 image"),
        ("1x1GiB", {"images": 2}, "takes 1 image, not 2"),
        ("1x1GiB", {"text_tokens": 0}, "5 tokens has no room for text"),
        ("1x1GiB", {"dtype": "int4"}, "Unknown dtype 'int4'"),
        ("0x1GiB", {}, "'0x1GiB' has a count below one"),
        ("1x100MiB", {}, "does not fit on 0.09 GiB"),
    ],
)
def test_dry_runs_that_make_no_sense(gpus, options, message):
    with pytest.raises(Glm4vError, match=message) as caught:
        dry_run(TINY, gpus, **options)
    assert "\n" not in str(caught.value)


def test_plans_and_maps_that_do_not_suit():
    other = plan(NATIVE.shape(), parse_gpus("1x1GiB"))
    with pytest.raises(DeviceMapError, match=r"is of another model than .*: it says tiny GLM-4.1V"):
        dry_run(TINY, "1x1GiB", other)
    with pytest.raises(DeviceMapError, match="on GPU 1, but there is GPU 0 only"):
        dry_run(TINY, "1x1GiB", SPLIT)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "demo-4.6v",
        pytest.param("GLM-4V-9B", marks=pytest.mark.nightly),
        pytest.param("GLM-4.1V-9B-Thinking", marks=pytest.mark.nightly),
    ],
)
def test_quantised_layers_are_tried_with_the_bytes_that_are_planned(name, quantize):
    known, gpus = architecture(name), "1x12GiB+1x24GiB"
    given = {"objective": "balance", "context": min(4096, known.shape().max_context)}
    made = make_plan(known, PlacementOptions(gpus=gpus, quantize=quantize, **given))
    full = make_plan(known, PlacementOptions(gpus="2x24GiB", **given))
    report = dry_run(known, gpus, made)
    assert (report.works, report.quantize) == (True, quantize)
    assert f"{made.workload.dtype}, {quantize}, as planned" in title(report)
    used = [stage for stage in made.stages if stage.units]
    for stage in used:
        gpu = report.gpus[stage.gpu]
        assert gpu.capacity_bytes == stage.capacity_bytes
        assert 0 <= gpu.weight_bytes - stage.weight_bytes < 2000  # rotary frequencies
        assert 0.99 * stage.total_bytes < gpu.total_bytes < 1.0005 * stage.total_bytes
    assert sum(g.weight_bytes for g in report.gpus) < 0.8 * sum(s.weight_bytes for s in full.stages)
    assert report_from_json(report_to_json(report)) == report


def test_an_automatic_map_with_quantised_layers_in_host_memory_is_refused():
    model = architecture("GLM-4V-9B")
    with pytest.raises(DeviceMapError, match="quantised layers cannot be offloaded"):
        dry_run(model, "1x6GiB", "auto", quantize="8bit", context=512)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantised_layers_refuse_mixed_devices_and_other_models(quantize):
    layer = "model.language_model.layers.0"
    split = {"model.visual": 0, "model.language_model": 1, "lm_head": 1}
    with VirtualGPUs("2x1GiB", values="none", on_mismatch="collect") as virtual:
        model = NATIVE.build_meta("float32")
        put_stand_ins(model, NATIVE.shape(), quantize)
        virtual.without_data(model)
        linear = model.get_submodule(f"{layer}.mlp.gate_up_proj")
        linear.to("cuda:1")
        linear(torch.zeros(1, 2, 64, device="cuda:0"))
    assert len(virtual.problems) > 0
    assert dry_run(NATIVE, "2x1GiB", split, quantize=quantize, text_tokens=4, images=0).works
    automatic = dry_run(NATIVE, "2x1GiB", "auto", quantize=quantize, text_tokens=4, images=0)
    assert (automatic.works, automatic.quantize) == (True, quantize)
    with pytest.raises(DeviceMapError, match="quantised layers cannot be offloaded"):
        dry_run(NATIVE, "2x1GiB", {**split, "model.language_model": "cpu"}, quantize=quantize)


def test_what_is_all_on_the_cpu_needs_no_gpu():
    on_cpu = make_plan(TINY, PlacementOptions(gpus="cpu"))
    for gpus in ((), "1x1GiB"):
        for placed in ("cpu", {"": "cpu"}, on_cpu):
            report = dry_run(TINY, gpus, placed)
            assert (report.works, report.is_on_cpu, report.offloaded) == (True, True, ())
            assert "would run on the CPU" in verdict(report)
            assert verdict(report) in dry_run_bundle(report)["text/plain"]
            assert verdict(report) in dry_run_html(report)
            assert report_from_json(report_to_json(report)) == report
    with pytest.raises(OptionError, match="needs at least one GPU"):
        dry_run(TINY, ())


def test_a_plan_may_use_what_it_was_allowed():
    """As in the plan: what --max-memory, --reserve and other programs leave."""
    options = PlacementOptions(gpus="2x16GiB", max_memory=1.0, reserve=0.1)
    made = make_plan(TINY, options)
    for asked in ({"device_map": made}, {"max_memory": 1.0, "reserve": 0.1}):
        found = dry_run(TINY, "2x16GiB", **asked)
        planned = {stage.gpu: stage.capacity_bytes for stage in made.stages}
        assert {gpu.gpu: gpu.capacity_bytes for gpu in found.gpus} == planned
        assert planned[0] < 2**30
    by_map = dry_run(TINY, "2x16GiB", {"": 0})
    assert by_map.gpus[0].capacity_bytes == 16 * 2**30


def test_a_plan_that_fills_its_gpu_runs_on_larger_ones():
    made = make_plan(TINY, PlacementOptions(gpus="1x1GiB"))
    (stage,) = made.stages
    full = replace(made, stages=(replace(stage, capacity_bytes=stage.total_bytes + 2**20),))
    assert [dry_run(TINY, gpus, full).works for gpus in ("1x1GiB", "1x24GiB")] == [True, True]


@pytest.mark.parametrize("make", [naive, overfull], ids=["refused", "too small"])
def test_reports_survive_json(make):
    report = make()
    text = report_to_json(report)
    assert report_from_json(text) == report
    content = json.loads(text)
    assert content["works"] is False
    assert content["findings"] == list(findings(report))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: [], "not the report of a dry run"),
        (lambda content: {**content, "version": 2}, "has version 2; this one reads 1"),
        (lambda content: {k: v for k, v in content.items() if k != "gpus"}, "lacks 'gpus'"),
        (lambda content: {**content, "gpus": [{"gpu": 0}]}, r"lacks 'gpus\[0\].name'"),
    ],
)
def test_texts_that_are_no_report(change, message):
    content = json.loads(report_to_json(overfull()))
    with pytest.raises(DeviceMapError, match=message):
        report_from_json(json.dumps(change(content)))
    with pytest.raises(DeviceMapError, match="The report is not valid JSON"):
        report_from_json("{")


@given(st.data())
def test_a_report_with_anything_in_any_place_is_taken_or_refused_in_one_line(data):
    content = changed_somewhere(json.loads(report_to_json(naive())), data)
    taken_or_refused(lambda: report_text(report_from_json(json.dumps(content))))


def large():
    """A report whose names and numbers are as long as they get."""
    module = "model.language_model.layers.45.mlp.experts"
    name = "NVIDIA RTX 6000 Ada Generation"
    sizes = (123 << 30, 12 << 30, 100 << 30)
    gpus = [GPUUse(n, name, 141 << 30, *sizes, 0, "prefill", module) for n in range(8, 12)]
    copies = tuple(HopUse(f"cuda:{n}", f"cuda:{n + 1}", 1, 4 << 30, 1, 1 << 20) for n in (8, 9))
    return replace(
        naive(),
        model="~/models/" + "a-long-name/" * 10,
        problems=naive().problems * 9,
        gpus=tuple(gpus),
        copies=copies,
    )


def test_the_text_is_100_columns_wide_and_aligned():
    text = report_text(large())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    table = [line for line in lines if line.startswith("cuda:") and "prefill" in line]
    assert len(table) == 4
    assert len({line.index("prefill") for line in table}) == 1
    assert all(line.endswith("  …45.mlp.experts") for line in table)
    assert text.count("- prefill") + text.count("- decode") == 12
    more = len(findings(large())) - 12
    assert f"- and {more} more" in lines
    copies = [line for line in lines if " -> cuda:" in line]
    assert len({len(line) for line in copies}) == 1
    assert all("1  4.00 GiB" in line and line.endswith("1  1.00 MiB") for line in copies)


class Tags(HTMLParser):
    """Collects tags, and cells of tables."""

    def __init__(self):
        super().__init__()
        self.tags = []
        self.text = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_shows_all_of_it():
    report = large()
    page = Tags()
    page.feed(dry_run_html(report).replace("<wbr>", ""))
    for row in [*gpu_rows(report), *copy_rows(report)]:
        assert {cell for cell in row if cell} <= set(page.text)
    assert verdict(report) in page.text
    assert main_findings(report)[0] in page.text
    assert page.tags.count("table") == 2
    assert page.tags.count("tr") == 2 + len(report.gpus) + len(report.copies)
    assert "the GPU ends here" in dry_run_html(overfull())
    assert "the GPU ends here" not in dry_run_html(published("spread"))
    assert "rgba(234, 67, 53" not in dry_run_html(published("spread"))
    offloaded = replace(report, offloaded=("model.visual",))
    assert "<li>model.visual</li>" in dry_run_html(offloaded)


def test_bars_are_to_one_scale():
    sizes = [4 * 2**30, 2**30, 0]
    gpus = [GPUUse(i, "GPU", size, weight_bytes=2**30) for i, size in enumerate(sizes)]
    html = dry_run_html(replace(large(), gpus=tuple(gpus)))
    bars = re.findall(r'role="group".*? aria-label="(.*?)" style=".*?width:([0-9.]+)%', html)
    assert bars == [
        ("cuda:0 GPU, 25% full", "100.00"),
        ("cuda:1 GPU, 100% full", "25.00"),
        ("cuda:2 GPU, 999% full", "6.25"),
    ]
    assert html.count('title="weights: 1.00 GiB"') == 3
    assert html.count("the GPU ends here") == 1


def test_names_cannot_become_markup_or_steer_a_terminal():
    evil = '<img src=x onerror="alert(1)">\x1b[2J'
    problem = replace(naive().problems[0], message=evil, module=evil, source=evil)
    gpu = replace(overfull().gpus[0], name=evil, module=evil)
    report = replace(
        overfull(),
        model=evil,
        problems=(problem,),
        gpus=(gpu,),
        copies=(HopUse(evil, evil, 1, 1, 1, 1),),
        offloaded=(evil,),
    )
    bundle = dry_run_bundle(report)
    assert "<img" not in bundle["text/html"]
    assert "&lt;img" in bundle["text/html"]
    assert all("\x1b" not in part for part in bundle.values())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_long_contexts_of_padded_batches_take_no_memory_to_speak_of_here():
    """The mask of all pairs of tokens would be 16 GiB."""

    def status(name):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = status("VmRSS")
    work = {"context": 65_536, "batch": 4}
    report = dry_run(architecture("GLM-OCR"), "1x80GiB", **work, decode_steps=1)
    assert report.works
    assert report.gpus[0].activation_bytes > 16 * 2**30
    assert status("VmHWM") - before < 2**30
