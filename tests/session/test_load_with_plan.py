"""Loading by plan or by map onto virtual GPUs: what is decided, what is refused, what is left."""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import weakref
from dataclasses import replace

import golden
import pytest
import torch
from following import follow
from PIL import Image

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.errors import (
    ConversationError,
    DeviceMapError,
    DoesNotFitError,
    GPUDescriptionError,
    OptionError,
    OutOfMemoryError,
    PlacementError,
)
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model import LoadProgress
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dispatch import arrival
from glm4v_magic.engines import local
from glm4v_magic.hardware import host, usable
from glm4v_magic.hardware.gpus import FoundGPU
from glm4v_magic.notebook.render.pace import Rate
from glm4v_magic.notebook.render.progress import loading_line, progress_bundle
from glm4v_magic.notebook.render.status import status_rows
from glm4v_magic.planning import decision
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

GIB = 2**30
SPLIT = {"model.vision": 0, "model.language_model": 1, "lm_head": 2}
QUESTION = {"text": "What?", "temperature": 0, "max_tokens": 4}
ARCHITECTURE = resolve(golden.CHECKPOINT).architecture


@pytest.fixture(scope="module")
def photo():
    return Image.linear_gradient("L").resize((64, 48)).convert("RGB")


@pytest.fixture(scope="module")
def on_one_cpu(photo):
    session = Session().load(golden.CHECKPOINT)
    assert session.plan is None
    assert session.status().info.devices == ("cpu",)
    return session.ask(images=photo, **QUESTION).text


@pytest.fixture
def gpus():
    with VirtualGPUs("3x1GiB") as gpus:
        yield gpus


def test_a_plan_is_made_followed_and_told(gpus, photo, on_one_cpu):
    seen = []
    session = Session()
    loading = session.stream_load(golden.CHECKPOINT, objective="balance")
    follow(loading, loading=seen.append)
    plan = session.plan
    assert [len(stage.units) > 0 for stage in plan.stages] == [True] * 3
    assert gpus.live_bytes == tuple(stage.weight_bytes + extra(stage) for stage in plan.stages)
    hooked = [name for name, m in session.engine.model.named_modules() if hasattr(m, "_hf_hook")]
    assert len([name for name in hooked if ".layers." in name]) == 2  # the first of each stage
    assert session.ask(images=photo, **QUESTION).text == on_one_cpu
    assert gpus.problems == ()
    info = session.status().info
    assert (info.devices, info.dtype) == (("cuda:0", "cuda:1", "cuda:2"), "float32")
    rows = dict(status_rows("x", info, None))
    assert rows["cuda:0"] == "vision, embedding; 0.27 of 0.97 GiB planned"
    assert {progress.device for progress in seen} == {"", "cuda:0", "cuda:1", "cuda:2"}
    assert session.unload()
    assert gpus.live_bytes == (0, 0, 0)


def extra(stage):
    """Buffers, which a plan does not count: the frequencies of the rotary embedding, twice."""
    return 32 if "embedding" in stage.units else 0


@pytest.mark.parametrize(
    ("options", "devices"),
    [
        ({"gpus": "1x1GiB"}, ("cuda:0",)),
        ({"gpus": "cpu"}, ("cpu",)),
        ({}, ("cuda:0",)),
        ({"objective": "fewest"}, ("cuda:0",)),
        ({"objective": "balance"}, ("cuda:0", "cuda:1", "cuda:2")),
        ({"max_memory": (0.51, 0.6, 0.1)}, ("cuda:1",)),
        ({"device_map": {"": "cuda:2"}}, ("cuda:2",)),
        ({"device_map": {"model": 1, "lm_head": 0}}, ("cuda:0", "cuda:1")),
    ],
)
def test_options_decide_which_gpus_are_used(gpus, options, devices):
    session = Session().load(golden.CHECKPOINT, **options)
    assert session.status().info.devices == devices
    used = tuple(f"cuda:{gpu}" for gpu, held in enumerate(gpus.live_bytes) if held)
    assert used == tuple(device for device in devices if device != "cpu")


def test_a_map_and_a_plan_from_files(gpus, tmp_path, photo, on_one_cpu):
    plan = decision.make_plan(ARCHITECTURE, PlacementOptions(objective="balance"), gpus.gpus)
    files = tmp_path / "plan.json", tmp_path / "map.json"
    files[0].write_text(plan.to_json())
    files[1].write_text(json.dumps(plan.device_map()))
    for file in files:
        session = Session().load(golden.CHECKPOINT, device_map=file)
        assert session.plan == (plan if file is files[0] else None)
        assert session.ask(images=photo, **QUESTION).text == on_one_cpu
        session.unload()
    assert gpus.problems == ()


@pytest.mark.parametrize(
    "given", [1, {"model": 1, "lm_head": 0}, {"model.vision": 2, "model": 1, "lm_head": 0}]
)
def test_a_map_keeps_no_more_than_the_gpus_that_it_uses_have_room_for(gpus, given):
    session = Session().load(golden.CHECKPOINT, device_map=given)
    room = 2 * session.status().kept.budget_bytes
    free = gpus.gpus[1].usable_bytes - gpus.live_bytes[1]  # which has all layers
    assert free / 2 < room < free
    session.load(golden.CHECKPOINT, device_map=given, keep=room / 2**30 - 0.01)
    with pytest.raises(
        OptionError, match=r"but the map leaves room for .* on cuda:1\. Ask for less"
    ):
        session.load(golden.CHECKPOINT, device_map=given, keep=room / 2**30 + 0.01)
    session.unload()
    if isinstance(given, dict):  # of a map with parts on the CPU the room is not known
        session.load(golden.CHECKPOINT, device_map={**given, "lm_head": "cpu"})
        assert session.status().kept.budget_bytes == 2**30
        session.unload()


def test_a_plan_for_larger_gpus_keeps_no_more_than_these_have_room_for(gpus):
    plan = decision.make_plan(
        ARCHITECTURE, PlacementOptions(objective="balance"), parse_gpus("3x80GiB")
    )
    fresh = Session().load(golden.CHECKPOINT, objective="balance")
    wanted, rows = fresh.status().kept.budget_bytes, status_rows("x", fresh.status().info, None)
    fresh.unload()
    session = Session().load(golden.CHECKPOINT, device_map=plan)
    assert session.status().kept.budget_bytes == wanted
    assert status_rows("x", session.status().info, None) == rows
    with pytest.raises(OptionError, match=r"keep is 40 GiB, but the plan leaves room for \d\.\d"):
        session.load(golden.CHECKPOINT, device_map=plan, keep=40)
    assert session.status().info.devices == ("cuda:0", "cuda:1", "cuda:2")


def test_a_plan_that_knew_nothing_of_old_gpus_is_followed_in_float16(monkeypatch):
    shape = replace(ARCHITECTURE.shape(), dtype="bfloat16")
    monkeypatch.setattr(type(ARCHITECTURE), "shape", lambda self: shape)
    plan = decision.make_plan(ARCHITECTURE, PlacementOptions(), parse_gpus("2x16GiB"))
    assert plan.workload.dtype == "bfloat16"
    with VirtualGPUs("2xT4"):
        info = Session().load(golden.CHECKPOINT, device_map=plan).status().info
    assert info.dtype == "float16"
    assert sum("cannot compute in bfloat16" in note for note in info.notes) == 1


def test_an_offloaded_layer_waits_in_host_memory(gpus, photo, on_one_cpu):
    text = "model.language_model"
    device_map = {"model.vision": 0, f"{text}.embed_tokens": 0, f"{text}.rotary_emb": 0}
    device_map |= {f"{text}.layers.{index}": 1 for index in range(4)}
    device_map |= {f"{text}.norm": 1, "lm_head": 1, f"{text}.layers.2": "cpu"}
    session = Session().load(golden.CHECKPOINT, device_map=device_map)
    rows = dict(status_rows("x", session.status().info, None))
    assert rows["cpu"] == f"{text}.layers.2"
    assert rows["cuda:1"] == f"{text}.layers.0-1, {text}.layers.3, {text}.norm, lm_head"
    assert session.ask(images=photo, **QUESTION).text == on_one_cpu


def test_an_offloaded_tower_reads_images(gpus, photo, on_one_cpu, caplog):
    device_map = {"model.vision": "cpu", "model.language_model": 1, "lm_head": 2}
    session = Session().load(golden.CHECKPOINT, device_map=device_map)
    assert session.ask(images=photo, **QUESTION).text == on_one_cpu
    assert gpus.problems == ()
    assert caplog.messages == []  # accelerate would warn that weights are on meta


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"gpus": "4x1GiB"}, GPUDescriptionError, "describes 4 GPU.*torch sees only 3"),
        ({"gpus": "1x2GiB"}, GPUDescriptionError, "cuda:0 .* has 1.0 GiB, not 2.0 GiB"),
        ({"gpus": "two"}, GPUDescriptionError, "Cannot read 'two'"),
        ({"max_memory": 0.266}, DoesNotFitError, "does not fit on 3 x 0.24 GiB"),
        ({"reserve": 0.9}, DoesNotFitError, "does not fit"),
        ({"context": 257}, OptionError, "257 tokens is longer"),
        ({"images": 2}, OptionError, "takes 1 image, not 2"),
        ({"batch": 0}, OptionError, "batch is 0"),
        (
            {"objective": "fewer"},
            OptionError,
            "fewest, fastest. Did you mean fewest",
        ),
        ({"quantize": "2bit"}, OptionError, "8bit and 4bit"),
        ({"max_memory": 0}, OptionError, "max_memory"),
        ({"max_memory": [1, 1]}, OptionError, "2 sizes for 3 GPUs"),
        ({"reserve": -1}, OptionError, "reserve"),
        ({"device_map": {"model": 0}}, DeviceMapError, "'lm_head' no device"),
        ({"device_map": {"": 3}}, DeviceMapError, "GPU 3, but there are GPUs 0 to 2"),
        ({"device_map": "no.json"}, DeviceMapError, "no.json cannot be read"),
        ({"device_map": {"": 0}, "reserve": 1}, OptionError, "reserve is for making a plan"),
        (
            {"device_map": {**SPLIT, "model.language_model": "cpu"}, "quantize": "8bit"},
            DeviceMapError,
            "keeps model.language_model on the CPU, and quantised layers cannot be offloaded",
        ),
        ({"revision": "main"}, OptionError, "is not a repository"),
    ],
)
def test_what_cannot_be_placed_is_refused_before_progress_is_shown(gpus, options, error, said):
    Session().load(golden.CHECKPOINT).unload()  # a first import is shown, too
    seen = []
    session = Session()
    with pytest.raises(error, match=said):
        follow(session.stream_load(golden.CHECKPOINT, **options), loading=seen.append)
    assert seen == []
    assert session.status().info is None


def test_gpus_that_torch_does_not_see_are_no_gpus(monkeypatch):
    gpu = FoundGPU(0, "T4", "GPU-a", 16 * GIB, 16 * GIB)
    monkeypatch.setattr(usable, "find_gpus", lambda: (gpu,))
    assert usable.gpus_here() == (gpu.gpu,)
    assert usable.usable_gpus(None, ask_torch=False) == (gpu.gpu,)
    assert usable.usable_gpus(None) == ()
    session = Session().load(golden.CHECKPOINT)
    assert session.status().info.devices == ("cpu",)
    with pytest.raises(GPUDescriptionError, match="torch sees none here"):
        session.load(golden.CHECKPOINT, gpus="1x16GiB")


def test_a_description_takes_no_more_than_a_gpu_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus = (
        FoundGPU(0, "T4", "", int(14.6 * GIB), 9 * GIB, 0, 5 * GIB),
        FoundGPU(1, "board"),
    )
    monkeypatch.setattr(usable, "find_gpus", lambda: gpus)
    assert [gpu.usable_bytes for gpu in usable.usable_gpus("2x16GiB")] == [
        gpus[0].gpu.usable_bytes,
        16 * GIB,
    ]
    assert usable.usable_gpus("1x4GiB")[0].usable_bytes == 4 * GIB
    with pytest.raises(PlacementError, match="how much memory"):
        usable.usable_gpus(None)


class TestArrival:
    def test_a_weight_elsewhere_is_named(self):
        model = resolve(golden.CHECKPOINT).load(dtype=torch.float32).model
        with pytest.raises(PlacementError, match=r"boi was to be on cuda:0, but arrived on cpu"):
            arrival.verify_places(model, {"model.vision.boi": 0, "": "cpu"})
        arrival.verify_places(model, {"": "cpu"})

    def test_other_bytes_than_planned_are_told(self, gpus):
        session = Session().load(golden.CHECKPOINT, objective="balance")
        stages = session.plan.stages
        changed = replace(stages[1], weight_bytes=stages[1].weight_bytes + 1)
        plan = replace(session.plan, stages=(stages[0], changed, *stages[2:]))
        with pytest.raises(PlacementError, match=r"are on cuda:1, where the plan has"):
            arrival.verify_bytes(session.engine.model, plan)


def test_after_a_bug_of_the_loader_it_is_loaded_again_or_with_another_map(gpus, monkeypatch):
    session, loads = Session(), local.dispatch

    def astray(model, places, *rest):
        """Hang the hooks as always, and leave the parts of one GPU on another."""
        loads(model, places, *rest)
        if places == SPLIT:
            with torch.no_grad():
                model.lm_head.weight.data = model.lm_head.weight.data.to("cuda:1")

    monkeypatch.setattr(local, "dispatch", astray)
    with pytest.raises(PlacementError, match="load it again, or with another map") as caught:
        session.load(golden.CHECKPOINT, device_map=SPLIT)
    assert "lm_head.weight was to be on cuda:2, but arrived on cuda:1" in str(caught.value)
    assert session.engine is None
    for other in ({"": 1}, {**SPLIT, "lm_head": 1}, None):
        session.load(golden.CHECKPOINT, device_map=other)
        assert session.ask(**QUESTION).text
    monkeypatch.setattr(local, "dispatch", loads)  # a bug of a moment
    session.load(golden.CHECKPOINT, device_map=SPLIT)
    assert session.ask(**QUESTION).text
    session.unload()


def models_in_memory():
    return [thing for thing in gc.get_objects() if type(thing).__name__.startswith("Glm4v9bFor")]


@pytest.mark.parametrize("weight", [1, 20, -1])
@pytest.mark.parametrize("how", ["interrupt", "error"])
def test_a_load_that_ends_early_leaves_nothing(gpus, weight, how, interrupt):
    session = Session()
    weights = len(resolve(golden.CHECKPOINT).tensors)
    gc.collect()
    before = {id(model) for model in models_in_memory()}
    models, seen = [], []

    def stop(progress):
        seen.append(progress)
        if len(seen) == (weight if weight > 0 else weights - 1):
            new = (model for model in models_in_memory() if id(model) not in before)
            models.extend(map(weakref.ref, new))
            if how == "error":
                raise ZeroDivisionError
            interrupt()

    with pytest.raises((KeyboardInterrupt, ZeroDivisionError)) as caught:
        follow(session.stream_load(golden.CHECKPOINT, objective="balance"), loading=stop)
    assert len(models) == (len(seen) > 1)
    assert caught.value.__traceback__ is not None  # and yet holds nothing:
    assert [model() for model in models] == [None] * len(models)
    assert gpus.live_bytes == (0, 0, 0)
    assert session.status().info is None
    assert not session.status().busy
    if weight == 20:
        session.load(golden.CHECKPOINT)
        assert session.unload()
        assert gpus.live_bytes == (0, 0, 0)


def test_advice_names_the_length_that_the_plan_was_for(gpus):
    session = Session().load(golden.CHECKPOINT, context=32, objective="balance")
    assert session.plan.workload.context == 32
    before = session.ask(**QUESTION).text
    others = torch.empty(GIB - gpus.live_bytes[1] - 60_000, dtype=torch.uint8, device="cuda:1")
    said = r"cuda:1 ran out .*shorten the prompt or load it for this length \(context=\d+\): "
    with pytest.raises(OutOfMemoryError, match=said + "the plan is for 32 tokens"):
        session.ask("word " * 40)
    assert session.ask(**QUESTION).text == before
    del others


def test_two_images_are_refused_before_loading(photo):
    seen = []
    session = Session().load(golden.CHECKPOINT)
    session.unload()
    with pytest.raises(ConversationError, match=r"takes one image .* has 2"):
        follow(session.stream("Which?", [photo, photo]), loading=seen.append)
    assert seen == []
    assert session.status().info is None


def test_what_is_wrong_leaves_the_model_before(gpus):
    session = Session().load(golden.CHECKPOINT)
    engine = session.engine
    for options in ({"max_memory": 0.266}, {"device_map": {"model": 0}}, {"gpus": "9x1GiB"}):
        with pytest.raises(PlacementError):
            session.load(golden.CHECKPOINT, **options)
        assert session.engine is engine


def test_eight_bit_on_the_cpu(capfd):
    pytest.importorskip("bitsandbytes")
    session = Session().load(golden.CHECKPOINT, quantize="8bit")
    info = session.status().info
    assert (info.quantize, info.parameters) == ("8bit", 381_840)
    assert dict(status_rows("x", info, None))["dtype"] == "float32, text part in 8bit"
    assert session.ask(**QUESTION).usage.new_tokens == 4
    assert capfd.readouterr() == ("", "")  # bitsandbytes would tell of each layer's cast


def test_four_bit_on_the_cpu(capfd):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    session = Session().load("demo", quantize="4bit")
    layers = session.engine.model.model.language_model.layers
    four_bit = [m for m in layers.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(four_bit) == 6 * len(layers)
    assert {module.weight.dtype for module in four_bit} == {torch.uint8}
    conversation = Conversation((Message("user", "What is there?"),))
    inputs = session.engine.processor([conversation])
    with torch.no_grad():
        rounded = session.engine.model(**inputs).logits
        exact = Session().load("demo").engine.model(**inputs).logits
    assert torch.nn.functional.cosine_similarity(rounded, exact, dim=-1).min() > 0.9
    assert session.ask(**QUESTION).usage.new_tokens == 4
    assert capfd.readouterr() == ("", "")


def test_four_bit_on_the_cpu_needs_whole_blocks(monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(host, "free_host_bytes", lambda: 0)  # no room for a second model
    session = Session().load("demo", device_map="cpu")
    engine = session.engine
    with pytest.raises(OptionError, match=r"layers with 176 inputs, and 4bit .* multiples of 64"):
        session.load(golden.CHECKPOINT, quantize="4bit")
    assert session.engine is engine


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"pip install 'glm4v_magic\[quantize\]'"):
        Session().load(golden.CHECKPOINT, quantize="4bit")


def test_four_bit_plans_with_smaller_weights():
    whole, small = (
        decision.make_plan(ARCHITECTURE, PlacementOptions(gpus="1x1GiB", quantize=kind))
        for kind in (None, "4bit")
    )
    assert small.stages[0].weight_bytes < whole.stages[0].weight_bytes


def test_the_engine_loads_on_the_cpu_without_a_placement():
    assert local.load(resolve(golden.CHECKPOINT)).info.device_map is None


def test_the_bar_tells_rate_time_left_and_gpu():
    line = loading_line("m", GIB, 3 * GIB, device="cuda:1", bytes_per_second=GIB / 2)
    assert line == "Loading m: 1.00 GiB of 3.00 GiB (33 %), 512.0 MiB/s, 4.0 s left, on cuda:1"
    progress = LoadProgress(GIB, 3 * GIB, "head", "cuda:1")
    assert line in progress_bundle("m", progress, bytes_per_second=GIB / 2)["text/html"]


def test_the_bar_tells_which_model_was_released():
    progress = LoadProgress(0, 10, "", released="<other>\x1b")
    line = "Loading m: 0 B of 10 B (0 %), <other> was released to make room"
    bundle = progress_bundle("m", progress)
    assert bundle["text/plain"].replace("\ufffd", "") == line
    assert "<other>" not in bundle["text/html"]


def test_the_rate_begins_with_the_first_weight():
    times = iter([0.0, 5.0, 5.04, 6.0, 8.0])  # and 40 ms are too short for one
    rate = Rate(clock=lambda: next(times))
    amounts = (0, 100, 200, 300, 700)
    assert [rate.so_far(amount) for amount in amounts] == [None, None, None, 200.0, 200.0]
