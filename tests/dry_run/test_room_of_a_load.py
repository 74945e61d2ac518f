"""A load by a map or a plan refuses what a dry run of it refuses, and says what would fit."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from functools import cache

import any_split
import golden
import pytest
import tiny_compressed
import tiny_fp8
import tiny_native
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DoesNotFitError, OutOfMemoryError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.remarks import PYTHON, worded
from glm4v_magic.dry_run.room import require_room
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.dry_run.text import raise_if_unusable
from glm4v_magic.engines import local
from glm4v_magic.hardware import usable
from glm4v_magic.planning.decision import decide, make_plan
from glm4v_magic.planning.needs import needs_of_map
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

MIB = 2**20
MAP = {"model.vision": 0, "model.language_model": 0, "lm_head": 1}
PARTS = {**MAP, "model.language_model.layers.1.mlp": 1}


@pytest.fixture(scope="module")
def demo():
    return architecture("demo")


def outcome(function, *arguments):
    try:
        function(*arguments)
    except DoesNotFitError as error:
        return error.what
    return ""


def need(demo, given, total=600 * MIB, **options):
    """Bytes that the fullest of two GPUs, of `total` bytes each, needs by prices."""
    asked = PlacementOptions(**options)
    gpus = [GPU(index, "GPU", total) for index in range(2)]
    placed = decide(demo, asked, gpus, given)
    return max(needs_of_map(demo.shape(), asked.workload, placed.device_map, gpus).values())


@pytest.mark.parametrize("given", [MAP, PARTS], ids=["modules", "within a layer"])
@pytest.mark.parametrize("missing", [-2, 60])  # MiB
def test_what_check_refuses_load_refuses_in_the_same_words(demo, given, missing):
    gpus = [GPU(index, "GPU", need(demo, given) - missing * MIB) for index in range(2)]
    placed = decide(demo, PlacementOptions(), gpus, given)
    load = outcome(require_room, demo, placed, PlacementOptions(), given, gpus)
    assert load == outcome(raise_if_unusable, dry_run(demo, gpus, given))
    assert bool(load) == (missing == 60)


def test_a_plan_on_gpus_with_less_memory(demo):
    made = make_plan(demo, PlacementOptions(gpus="1x1GiB"))
    (stage,) = made.stages
    for size in (stage.total_bytes + MIB, stage.total_bytes - 8 * MIB):
        gpus = [GPU(0, "GPU", 2**30, free_bytes=size)]
        placed = decide(demo, PlacementOptions(), gpus, made)
        load = outcome(require_room, demo, placed, PlacementOptions(), made, gpus)
        assert load == outcome(raise_if_unusable, dry_run(demo, gpus, made))
        assert bool(load) == (size < stage.total_bytes)


def test_the_way_out_of_a_load_can_be_taken(demo, monkeypatch):
    total = need(demo, MAP)
    size = need(demo, MAP, total, context=512) + MIB // 4  # prices are above what is measured
    gpus = tuple(GPU(index, "GPU", total, free_bytes=size) for index in range(2))
    monkeypatch.setattr(usable, "usable_gpus", lambda *_, **__: gpus)
    session = Session()
    with pytest.raises(DoesNotFitError, match="would not run on this placement") as caught:
        session.load("demo", device_map=MAP)
    assert session.status().info is None
    (way,) = caught.value.values["ways"]
    context = way.values["context"]
    assert f"(context={context};" in worded(way, PYTHON)
    assert 512 <= context < demo.shape().max_context
    asked = PlacementOptions(context=context)
    placed = decide(demo, asked, gpus, MAP)
    assert not outcome(require_room, demo, placed, asked, MAP, gpus)
    assert dry_run(demo, gpus, MAP, context=context).works


def test_virtual_gpus_are_judged_as_the_gpus_they_stand_for(demo):
    size = need(demo, MAP) - 60 * MIB
    said = outcome(raise_if_unusable, dry_run(demo, [GPU(k, "GPU", size) for k in (0, 1)], MAP))
    session = Session().load("demo", device_map="cpu")
    engine = session.engine
    with VirtualGPUs([size, size]) as gpus:
        mine = torch.ones(2, device="cuda:1")
        with pytest.raises(DoesNotFitError) as caught:
            session.load("demo", device_map=MAP)
        assert caught.value.what == said
        assert session.engine is engine
        assert session.ask("Hello?", max_tokens=2).text
        assert (mine + 1).tolist() == [2, 2]  # they are there again, with what was on them
        assert gpus.live_bytes == (0, mine.nbytes)


RANDOM_WORK = 40  # of each type; a sample by day
TYPES = [golden.CHECKPOINT.name, *tiny_native.KINDS]
SAMPLED = [("glm4v", 0), ("glm4v_moe", 17)]


def cases():
    for kind in TYPES:
        for seed in range(RANDOM_WORK if kind != "glm5_next" else 4):
            by_day = (kind, seed) in SAMPLED
            yield pytest.param(kind, seed, marks=() if by_day else pytest.mark.nightly)


@pytest.fixture(scope="module")
def model(native):
    @cache
    def found(kind):
        folder = golden.CHECKPOINT if kind == golden.CHECKPOINT.name else native(kind)
        return resolve(folder).architecture

    return found


def any_map(found, rng):
    """Modules and single weights anywhere, or a few runs of whole units."""
    tree, units = found.module_tree(), found.shape().units
    if rng.random() < 0.5:
        return any_split.mixed_map(tree, rng.randrange(10**6))
    count = rng.randint(2, 4)
    modules = [module for unit in units for module in unit.modules]
    placed = {module: at * count // len(modules) for at, module in enumerate(modules)}
    for tensor in tree.tensors:
        if not any(f"{tensor}.".startswith(f"{module}.") for module in placed):
            placed[tensor] = rng.randrange(count)
    for name, first in tree.ties.items():
        if name in placed and first in placed:
            placed[name] = placed[first]
    return placed, count


def any_work(kind, given, most, rng):
    is_ours = kind == golden.CHECKPOINT.name
    kinds = [None] if kind == "glm5_next" or "cpu" in given.values() else [None, "4bit", "8bit"]
    quantize = rng.choice(kinds)
    return {
        "images": rng.randint(0, 1 if is_ours else 3),
        "batch": rng.randint(1, 3),
        "quantize": quantize,
        "dtype": rng.choice(["float16", "bfloat16", *([] if quantize else ["float32"])]),
        "context": rng.randint(200, most if kind != "glm5_next" else 400),
    }


@pytest.mark.parametrize(("kind", "seed"), list(cases()))
def test_a_load_goes_on_by_prices_only_where_a_dry_run_needs_less(model, kind, seed):
    rng, found = random.Random(seed), model(kind)
    given, count = any_map(found, rng)
    options = any_work(kind, given, found.shape().max_context, rng)
    asked, gpus = PlacementOptions(**options), [GPU(k, "GPU", 2**33) for k in range(count)]
    placed = decide(found, asked, gpus, given)
    work = replace(
        asked.workload,
        dtype=placed.dtype,
        quantize=placed.quantize,
        image_size=placed.image_size,
    )
    most = needs_of_map(found.shape(), work, placed.device_map, gpus)
    measured = dry_run(found, gpus, given, **options)
    assert measured.problems == ()
    assert (most is None) == bool(measured.offloaded)  # those are tried in any case
    for gpu in measured.gpus if most else ():
        assert gpu.total_bytes <= most.get(gpu.gpu, 0), (gpu, given, options)


PRECISE = {"context": 40, "images": 0}
TEXT = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [4, 2, 2],
    },
    "head_dim": 32,
}
ARRIVING = [
    # what a layer is joined of
    ("glm4v_moe", "", {}, "load"),
    ("glm4v_moe", "", {"dtype": "bfloat16"}, "load"),
    ("glm4v_moe", "", {"dtype": "bfloat16", "quantize": "8bit"}, "load"),
    ("glm4v_moe", "FP8", {}, "load"),
    ("glm4v_moe", "FP8", {"dtype": "bfloat16"}, "load"),
    pytest.param("glm5_next", "", {}, "load", marks=pytest.mark.nightly),
    # a matrix before it is quantised, or restored
    ("glm_ocr", "", {"dtype": "bfloat16", "quantize": "8bit"}, "load"),
    ("glm_ocr", "pack-quantized", {"dtype": "bfloat16"}, "load"),
    ("glm_ocr", "float-quantized", {"dtype": "bfloat16"}, "load"),
    ("glm4v_moe", "pack-quantized", {"dtype": "bfloat16"}, "load"),
    # nothing of the kind
    ("glm_ocr", "", {"dtype": "bfloat16"}, "prefill"),
]
IN_FP8 = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [32, 32],
    "modules_to_not_convert": ["lm_head", "model.visual"],
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folder of a checkpoint whose weights are far larger than what a short prompt needs."""

    @cache
    def written(kind, form):
        folder = tmp_path_factory.mktemp(kind) / "c"
        if not form:
            text = TEXT if kind != "glm5_next" else {"hidden_size": 256}
            experts = {"moe_intermediate_size": 128} if kind != "glm_ocr" else {}
            return tiny_native.write(kind, folder, text=text | experts)
        if form == "FP8":
            shutil.copytree(written(kind, ""), folder)
            tiny_fp8.restored_by_hand(written(kind, ""), folder, IN_FP8)
        else:
            pytest.importorskip("compressed_tensors")
            tiny_compressed.compressed(written(kind, ""), folder, form)
        return folder

    return written


@pytest.mark.parametrize(("kind", "form", "options", "phase"), ARRIVING)
def test_a_load_takes_no_more_than_its_dry_run_and_prices_say(stored, kind, form, options, phase):
    if "quantize" in options:
        pytest.importorskip("bitsandbytes")
    found = resolve(stored(kind, form))
    given = {"model.visual": 0, "model.language_model": 1, "lm_head": 0}
    with VirtualGPUs("2xH100-1GiB", available=True) as gpus:  # which compute in FP8
        machine = gpus.gpus
        placed = decide(
            found.architecture, PlacementOptions(**PRECISE, **options), machine, given, loads=False
        )
        engine = local.load(found, placed)
        rest = gpus.live_bytes[1]
        peak = torch.cuda.max_memory_allocated(1)
        engine.close()
    assert placed.fp8 == (form == "FP8" and not options)
    measured = dry_run(found.architecture, machine, given, decode_steps=1, **PRECISE, **options)
    used = measured.gpus[1]
    assert used.phase == phase
    assert peak <= used.peak_bytes + 2**10  # buffers
    if phase == "load":
        assert rest < peak
        assert ("experts" in used.module) == (kind != "glm_ocr" and "pack" not in form)
        # what other threads bring later may not be there yet
        share = 3 if form == "pack-quantized" else 2
        assert used.peak_bytes < rest + share * (peak - rest)
    work = replace(
        PlacementOptions(**PRECISE).workload,
        dtype=placed.dtype,
        quantize=placed.quantize,
        fp8=placed.fp8,
    )
    shape = found.architecture.shape()
    most = needs_of_map(shape, work, placed.device_map, machine, visitors=0)
    assert used.total_bytes <= most[1] + 2**16  # buffers


@pytest.mark.parametrize("room", [2**19, -(2**19)])
def test_room_for_the_prompt_alone_is_not_enough_for_the_load(stored, monkeypatch, room):
    """Gates and what is above them are stacked, and both joined, on the GPU of their layer."""
    folder = stored("glm4v_moe", "")
    found = resolve(folder).architecture
    given = {"model.visual": 0, "model.language_model": 0, "lm_head": 0}
    used = dry_run(found, "1x1GiB", given, decode_steps=1, **PRECISE).gpus[0]
    gpu = GPU(0, "GPU", 2**30, free_bytes=used.total_bytes + room)
    # What is read is freed a little earlier or later.
    with VirtualGPUs([used.peak_bytes + 4 * room]):
        monkeypatch.setattr(usable, "usable_gpus", lambda *_, **__: (gpu,))
        if room > 0:
            assert Session().load(folder, device_map=given, **PRECISE).status().info
            return
        with pytest.raises(DoesNotFitError, match=r"short \(load, .*experts\)"):
            Session().load(folder, device_map=given, **PRECISE)
        placed = decide(found, PlacementOptions(**PRECISE), (GPU(0, "GPU", 2**33),), given)
        with pytest.raises(OutOfMemoryError):  # as it would have been
            local.load(resolve(folder), placed)
