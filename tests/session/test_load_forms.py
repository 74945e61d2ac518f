"""Device maps, dtypes and sizes in the forms that people write them, and plans kept in files."""

from __future__ import annotations

import json
import os
from typing import ClassVar

import golden
import numpy as np
import pytest
import torch
from PIL import Image

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DeviceMapError, EngineError, Glm4vError, OptionError
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.planning.decision import decide, make_plan
from glm4v_magic.planning.device_map import settle
from glm4v_magic.planning.files import plan_from_json, read_given
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

QUESTION = {"text": "What?", "temperature": 0, "max_tokens": 4}
TEXT = "model.language_model"
ARCHITECTURE = resolve(golden.CHECKPOINT).architecture
PUBLISHED = {
    "transformer.embedding": 0,
    "transformer.rotary_pos_emb": 0,
    "transformer.encoder": 0,
    "transformer.output_layer": 0,
    "transformer.vision": 1,
}
LAYERS = {f"transformer.encoder.layers.{index}": np.int64(index % 2) for index in range(4)}
WEIGHT_MAP = {name: index % 3 for index, name in enumerate(resolve(golden.CHECKPOINT).tensors)}


@pytest.fixture(scope="module")
def photo():
    return Image.linear_gradient("L").resize((64, 48)).convert("RGB")


@pytest.fixture(scope="module")
def on_one_cpu(photo):
    return Session().load(golden.CHECKPOINT).ask(images=photo, **QUESTION).text


@pytest.fixture
def gpus():
    with VirtualGPUs("3x1GiB") as gpus:
        yield gpus


def test_a_model_whose_virtual_gpus_are_gone_says_so_and_can_be_loaded_again(photo, on_one_cpu):
    session = Session()
    with VirtualGPUs("3x1GiB", available=True):
        session.load(golden.CHECKPOINT)
        session.ask(images=photo, **QUESTION)
    with pytest.raises(EngineError, match=r"block has ended\. Load it again\.$"):
        session.ask(images=photo, **QUESTION)
    session.unload()
    assert session.load(golden.CHECKPOINT).ask(images=photo, **QUESTION).text == on_one_cpu


@pytest.mark.parametrize(
    ("device_map", "devices"),
    [
        pytest.param(PUBLISHED, ("cuda:0", "cuda:1"), id="published"),
        pytest.param(WEIGHT_MAP, ("cuda:0", "cuda:1", "cuda:2"), id="weight map"),
        pytest.param(
            {
                **LAYERS,
                "transformer.embedding.word_embeddings": 0,
                "transformer.encoder.final_layernorm": 1,
                "transformer.output_layer": "cuda:1",
                "transformer.vision": torch.device("cuda", 2),
            },
            ("cuda:0", "cuda:1", "cuda:2"),
            id="published layers",
        ),
        pytest.param(
            {"base_model.model.model": 1, "module.lm_head": "1"}, ("cuda:1",), id="wrapped"
        ),
        pytest.param({"transformer": 1}, ("cuda:1",), id="transformer"),
        pytest.param(
            {
                f"{TEXT}.embed_tokens.weight": 1,
                f"{TEXT}.layers": 0,
                f"{TEXT}.norm": 0,
                "model.vision": 0,
                "lm_head": 0,
            },
            ("cuda:0", "cuda:1"),
            id="embedding by its weight",
        ),
        ({"": 0}, ("cuda:0",)),
        (0, ("cuda:0",)),
        ("1", ("cuda:1",)),
        ("cuda:2", ("cuda:2",)),
        (torch.device("cuda"), ("cuda:0",)),
        (np.int32(2), ("cuda:2",)),
        ("cpu", ("cpu",)),
        (torch.device("cpu"), ("cpu",)),
        ("auto", ("cuda:0",)),
        ("balanced", ("cuda:0",)),
    ],
)
def test_every_way_to_say_where_a_model_goes(gpus, photo, on_one_cpu, device_map, devices):
    session = Session().load(golden.CHECKPOINT, device_map=device_map)
    info = session.status().info
    assert info.devices == devices
    assert session.ask(images=photo, **QUESTION).text == on_one_cpu
    assert gpus.problems == ()
    foreign = isinstance(device_map, dict) and not any(
        name.startswith(("model", "lm_head")) or not name for name in device_map
    )
    assert any("names of the published files" in note for note in info.notes) == foreign


def test_a_translated_map_has_few_names_and_one_line_tells(gpus):
    session = Session().load(golden.CHECKPOINT, device_map=PUBLISHED)
    info = session.status().info
    assert info.device_map == {"model.vision": 1, TEXT: 0, "lm_head": 0}
    assert info.notes == (
        "The device map has names of the published files (5); they are put into those here: "
        f"transformer.embedding is {TEXT}.embed_tokens.weight",
    )


@pytest.mark.parametrize(
    ("device_map", "said"),
    [
        ("disk", "disk is not supported; use cpu"),
        ({"": "disk"}, "disk is not supported; use cpu"),
        ("sequential", "is a way of transformers .* Leave device_map out, and take objective="),
        ("balanced_low_0", "Leave device_map out, and give GPU 0 less by max_memory"),
        (1.5, "1.5 is not a device"),
        ([1], r"\[1\] is not a device"),
        (True, "True is not a device"),
        (torch.device("mps"), "the whole model on mps, but there are GPUs 0 to 2"),
        (torch.device("xpu"), "is not a device"),
        ("no such file", "cannot be read: No such file"),
        (7, "puts the whole model on GPU 7, but there are GPUs 0 to 2"),
        ({"transformer.vision": 0}, r"gives 'model.language_model' and 1 more no device"),
        ({**PUBLISHED, "transformer.visionn": 0}, "'transformer.visionn', which the model does"),
        (
            {**PUBLISHED, "lm_head": 2},
            "has 'lm_head' under two names, and on several devices",
        ),
        ({**PUBLISHED, "transformer.vision": 5}, "'transformer.vision' on GPU 5, but there are"),
        ({"metadata": {}, "weight_map": {}}, "is the index of a checkpoint"),
        ({"format": "glm4v_magic.plan"}, "has version null"),
        ({"format": "glm4v_magic.plan", "version": 1, (): 1}, "is not what a JSON file"),
    ],
)
def test_what_is_no_map_is_said_alike_and_the_model_stays(gpus, device_map, said):
    session = Session().load(golden.CHECKPOINT, device_map=0)
    engine = session.engine
    with pytest.raises(DeviceMapError, match=said) as by_load:
        session.load(golden.CHECKPOINT, device_map=device_map)
    assert "\n" not in str(by_load.value)
    assert session.engine is engine
    with pytest.raises(DeviceMapError) as by_check:
        dry_run(ARCHITECTURE, "3x1GiB", device_map)
    assert str(by_check.value) == str(by_load.value)


def test_transformers_types_are_named_as_in_old_and_new_files(native):
    model = architecture(native("glm4v"))
    given = {"visual": 1, "model.layers": 0, "model.embed_tokens": 0, "model.norm.weight": 0}
    placement = decide(
        model, PlacementOptions(), VirtualGPUs("2x1GiB").gpus, {**given, "lm_head": 0}
    )
    assert placement.device_map == {"model.visual": 1, TEXT: 0, "lm_head": 0}
    assert [note.code for note in placement.notes] == ["names_translated"]


def test_experts_that_are_named_one_by_one_stay_together(native):
    model = architecture(native("glm4v_moe"))
    tree = model.module_tree()
    experts = f"{TEXT}.layers.1.mlp.experts"
    index = [f"{experts}.{n}.{part}.weight" for n in range(8) for part in ("gate_proj", "up_proj")]
    index += [f"{experts}.{n}.down_proj.weight" for n in range(8)]
    others = {name: 0 for name in tree.tensors if experts not in name}
    given = others | {name: int(".0." not in name) for name in index}
    found, notes = settle(given, tree, VirtualGPUs("2x1GiB").gpus, model.own_names)
    assert found[experts] == 1
    assert [note.code for note in notes] == ["names_translated", "experts_together"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dtype": torch.float16}, "float16"),
        ({"dtype": "torch.bfloat16"}, "bfloat16"),
        ({"dtype": "fp16"}, "float16"),
        ({"dtype": "auto"}, "float32"),
    ],
)
def test_dtypes_as_torch_has_them(gpus, options, expected):
    assert Session().load(golden.CHECKPOINT, **options).status().info.dtype == expected


@pytest.mark.parametrize(
    ("max_memory", "devices"),
    [
        ({0: "10GiB", "cpu": "30GiB"}, ("cuda:0",)),
        ({1: "0.8GiB", 2: 2**28}, ("cuda:1",)),
        ({np.int64(2): "900MB"}, ("cuda:2",)),
        (["0.1GiB", 1, 1], ("cuda:1",)),
    ],
)
def test_sizes_as_accelerate_has_them(gpus, max_memory, devices):
    session = Session().load(golden.CHECKPOINT, max_memory=max_memory)
    assert session.status().info.devices == devices


def test_gpus_that_accelerates_dict_leaves_out_have_no_room():
    options = PlacementOptions(gpus="3x40GiB", max_memory={1: "40GiB"})
    made = make_plan(architecture("GLM-4V-9B"), options)
    assert [stage.capacity_bytes for stage in made.stages if not stage.units] == [0, 0]


def test_host_memory_of_accelerates_dict_is_a_limit():
    model = architecture("GLM-4V-9B")
    options = {"gpus": "1x16GiB", "context": 2048}
    made = make_plan(model, PlacementOptions(**options, max_memory={0: "16GiB", "cpu": "40GiB"}))
    assert made.stages[0].offloaded
    with pytest.raises(Glm4vError, match=r"in host memory, but max_memory allows 2 GiB"):
        make_plan(model, PlacementOptions(**options, max_memory={0: "16GiB", "cpu": "2GiB"}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_memory": {0: 10}}, 'Write "10GiB"'),
        ({"max_memory": {5: "1GiB"}}, "names GPU 5, which is not there"),
        ({"max_memory": {0: "9GiB", "0": "8GiB"}}, r"names a device twice: GPU 0\. Give each"),
        ({"max_memory": {torch.device("cuda:1"): 2**31, 1: 2**30}}, "names a device twice: GPU 1"),
        ({"max_memory": {"cpu": "9GiB", torch.device("cpu"): "8GiB"}}, "device twice: cpu"),
        ({"max_memory": ((0, 9.0), (0, 8.0))}, r"max_memory is \(\(0, 9.0\), \(0, 8.0\)\), but"),
        ({"max_memory": {"disk": "1GiB"}}, "disk, which is not supported"),
        ({"max_memory": {0: "nan"}}, "'nan' for 0, which is not a size"),
        ({"max_memory": {"cpu": "1KiB"}}, "'1KiB' for 'cpu', which is less than any model needs"),
        ({"max_memory": {0: -1}}, "-1 for 0, which is not a size"),
        ({"max_memory": {"gpu": 1}}, "'gpu', which is not a device"),
        ({"max_memory": {True: "1GiB"}}, "True, which is not a device"),
        ({"max_memory": float("nan")}, "max_memory is nan, but must be"),
        ({"max_memory": [1, float("inf"), 1]}, r"max_memory is \(1, inf, 1\)"),
        ({"max_memory": 10**400}, "max_memory is 1000.*, but must be"),
        ({"max_memory": {}}, "max_memory is"),
        ({"reserve": float("nan")}, "reserve is nan"),
        ({"reserve": 1e300}, "no GPU has memory left"),
        ({"reserve": -1}, "reserve is -1"),
        ({"dtype": torch.int8}, "Unknown dtype 'int8'"),
        ({"dtype": 1}, "Unknown dtype 1"),
        ({"pin": [("vision", 0), ("vision", 1)]}, "'vision' is pinned twice"),
        ({"pin": {"vision": 1.5}}, "pin is .* but must be"),
        ({"pin": {"foo": 1}}, "has no unit 'foo' to pin"),
        ({"pin": {"foo": 1}, "gpus": "cpu"}, "has no unit 'foo' to pin"),
        ({"pin": {"vision": 9}}, "cuda:9, which is not there"),
    ],
)
def test_sizes_and_pins_that_are_none(gpus, options, said):
    session = Session().load(golden.CHECKPOINT)
    engine = session.engine
    with pytest.raises(Glm4vError, match=said) as caught:
        session.load(golden.CHECKPOINT, **options)
    assert "\n" not in str(caught.value)
    assert session.engine is engine


def test_what_has_no_effect_without_gpus_is_said():
    options = {"pin": {"vision": 0}, "offload": True, "max_memory": {0: "1GiB"}}
    session = Session().load(golden.CHECKPOINT, gpus="cpu", **options)
    said = "Without GPUs these have no effect: max_memory, offload, pin"
    assert said in session.status().info.notes
    made = make_plan(ARCHITECTURE, PlacementOptions(gpus="cpu", **options))
    assert f"{said}." in " ".join(str(made).split())
    session.load(golden.CHECKPOINT, gpus="cpu", context=5, batch=2)
    notes = session.status().info.notes
    assert "Without GPUs these have no effect: context, batch" in notes


class TestPlans:
    OPTIONS: ClassVar[dict[str, object]] = {
        "context": 128,
        "batch": 2,
        "dtype": "bfloat16",
        "reserve": 0.1,
        "max_memory": {0: "0.75GiB", 1: "0.75GiB"},
        "pin": {"vision": 1},
        "objective": "balance",
    }

    def plan(self):
        return make_plan(ARCHITECTURE, PlacementOptions(gpus="3x1GiB", **self.OPTIONS))

    def test_a_plan_carries_its_options_through_a_file(self, gpus, tmp_path, photo):
        made = self.plan()
        file = made.save(tmp_path / "plan.json")
        assert read_given(file) == made == plan_from_json(made.to_json())
        assert made.limits.max_memory == ((0, 0.75), (1, 0.75))
        texts = []
        for given in (made, file, os.fspath(file), json.loads(file.read_text())):
            session = Session().load(golden.CHECKPOINT, device_map=given)
            assert (session.plan, session.status().info.dtype) == (made, "bfloat16")
            texts.append(session.ask(images=photo, **QUESTION).text)
        assert len(set(texts)) == 1

    def test_a_plan_is_checked_with_its_options(self, tmp_path):
        file = self.plan().save(tmp_path / "plan.json")
        report = dry_run(ARCHITECTURE, "3x1GiB", file)
        assert (report.batch, report.dtype) == (2, "bfloat16")
        for batch in (1, 3):
            assert dry_run(ARCHITECTURE, "3x1GiB", file, batch=batch).batch == batch

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"dtype": "float16"}, "dtype is float16, but the plan was made with bfloat16"),
            ({"quantize": "8bit"}, "quantize is 8bit, but the plan was made without"),
            ({"context": 64}, "context is 64, but the plan was made with 128"),
            ({"reserve": 0.2}, "reserve is 0.2, but the plan was made with 0.1"),
            ({"pin": {"vision": 0}}, "pin is vision=0, but the plan was made with vision=1"),
            ({"offload": True}, "offload is on, but the plan was made without"),
            ({"split_vision": True}, "split_vision is on, but the plan was made without"),
            ({"objective": "headroom"}, "objective is headroom, but the plan was made with bal"),
            ({"batch": 1}, "batch is 1, but the plan was made with 2"),
        ],
    )
    def test_what_contradicts_a_plan_is_said(self, gpus, options, said):
        with pytest.raises(OptionError, match=said):
            Session().load(golden.CHECKPOINT, device_map=self.plan(), **options)
        if not {"context", "batch"} & {*options}:
            with pytest.raises(OptionError, match=said):
                dry_run(ARCHITECTURE, "3x1GiB", self.plan(), **options)

    def test_what_repeats_a_plan_is_taken(self, gpus):
        for none in ({}, {"dtype": "auto"}, {"pin": {}}, {"image_size": None, "offload": False}):
            options = {**self.OPTIONS, **none}
            session = Session().load(golden.CHECKPOINT, device_map=self.plan(), **options)
            assert session.plan == self.plan()

    def test_a_plan_of_another_model_is_refused(self, gpus):
        made = make_plan(architecture("GLM-4V-9B"), PlacementOptions(gpus="3x16GiB"))
        for refuse in (
            lambda: Session().load(golden.CHECKPOINT, device_map=made),
            lambda: dry_run(ARCHITECTURE, "3x1GiB", made),
        ):
            with pytest.raises(DeviceMapError, match=r"another model than .*: it says GLM-4V-9B"):
                refuse()

    def test_a_plan_of_gpus_that_are_not_there_is_refused(self, gpus):
        made = make_plan(ARCHITECTURE, PlacementOptions(gpus="5x1GiB", pin={"head": 4}))
        with pytest.raises(DeviceMapError, match="uses GPU 4, but there are GPUs 0 to 2"):
            Session().load(golden.CHECKPOINT, device_map=made)

    def test_a_plan_is_shown_in_a_line(self):
        assert repr(self.plan()).startswith(f"<Plan of {golden.CHECKPOINT} on cuda:")

    def test_a_file_that_cannot_be_written_is_one_line(self, tmp_path):
        with pytest.raises(OptionError, match=r"cannot be written to .*: "):
            self.plan().save(tmp_path / "no" / "plan.json")
