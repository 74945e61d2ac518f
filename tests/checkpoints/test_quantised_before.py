"""Checkpoints that were quantised before they were published: loaded, priced, or named."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import sys

import golden
import pytest
import tiny_native
import torch
from safetensors.torch import load_file, save_file
from tiny_compressed import GROUPS, compressed
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import (
    CheckpointError,
    DeviceMapError,
    DoesNotFitError,
    OptionError,
    PlacementError,
)
from glm4v_magic.core.events import Finished
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.remarks import PYTHON, worded
from glm4v_magic.doctor import diagnose, gather
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.engines import local
from glm4v_magic.planning.decision import Placement, decide, make_plan
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

pytest.importorskip("bitsandbytes")
pytestmark = [
    pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]

FOUR = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
FORMS = {
    "4bit": FOUR | {"bnb_4bit_quant_type": "nf4"},
    "4bit, twice": FOUR | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "4bit, fp4": FOUR | {"bnb_4bit_quant_type": "fp4"},
    "4bit, as bfloat16": FOUR | {"bnb_4bit_quant_storage": torch.bfloat16},
    "8bit": {"load_in_8bit": True},
    "8bit, text alone": {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head", "visual"]},
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint whose layers have multiples of 64 inputs, as 4 bits on the CPU need."""
    return with_whole_blocks("glm4v", tmp_path_factory.mktemp("wide") / "full")


def with_whole_blocks(kind, folder):
    plain = tiny_native.config

    def config(kind, words):
        described = plain(kind, words)
        described["text_config"]["intermediate_size"] = 128
        described["vision_config"] |= {"hidden_size": 64, "intermediate_size": 128}
        return described

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_native, "config", config)
        return tiny_native.write(kind, folder)


@pytest.fixture(scope="module")
def saved(wide, tmp_path_factory):
    """Folder of a checkpoint that transformers has quantised and saved."""
    made = {}

    def folder(form):
        if form not in made:
            made[form] = tmp_path_factory.mktemp("saved") / "c"
            whole(wide, form).save_pretrained(made[form])
            for name in (*TOKENIZER, "preprocessor_config.json"):
                if (wide / name).exists():
                    shutil.copy(wide / name, made[form])
        return made[form]

    return folder


def whole(folder, form=None):
    how = {} if form is None else {"quantization_config": BitsAndBytesConfig(**FORMS[form])}
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, device_map={"": "cpu"}, **how
    )


def answer(engine):
    chat = Conversation((Message("user", "What is it?", (tiny_native.image(90, 70),)),))
    events = engine.stream([Request(chat, Sampling(8, temperature=0, repetition_penalty=1.0))])
    return next(each.generation.text for each in events if isinstance(each, Finished))


@pytest.mark.parametrize("form", FORMS)
def test_loaded_as_transformers_loads_it(saved, form):
    checkpoint = resolve(saved(form))
    placement = decide(checkpoint.architecture, PlacementOptions(), ())
    expected, found = whole(saved(form)), local.load(checkpoint, placement)
    weights = dict(expected.named_parameters())
    for name, weight in found.model.named_parameters():
        assert type(weight) is type(weights[name]), name
        assert torch.equal(weight.view(torch.uint8), weights[name].view(torch.uint8)), name
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert torch.equal(found.model(ids).logits, expected(ids).logits)
    assert answer(found)
    assert any("quantised by bitsandbytes" in note for note in found.info.notes)


@pytest.mark.parametrize("form", FORMS)
def test_priced_by_the_bytes_in_its_files(saved, wide, form):
    shape, full = architecture(saved(form)).shape(), architecture(wide).shape()
    options = PlacementOptions(gpus="2x1GiB", images=0, context=512)
    made = make_plan(architecture(saved(form)), options)
    planned = sum(stage.weight_bytes for stage in made.stages)
    assert shape.values == full.values
    stored = sum(each.nbytes for each in resolve(saved(form)).tensors.values())
    small = 64 * len(load_file(saved(form) / "model.safetensors"))  # descriptions of formats
    assert stored - small <= planned <= stored
    assert planned < 4 * full.values
    assert "scheme_stays" in [note.code for note in made.notes]
    facts = gather(parse_gpus("1x1GiB"), model=str(saved(form)))
    said = {each.subject: each for each in diagnose(facts)}
    assert said["model"].verdict == "ok"
    assert (facts.fault, facts.shape) == (None, shape)


def test_cut_where_the_plan_says(saved):
    """Where bitsandbytes computes, there is no virtual GPU; the decision is all there is to see."""
    known = resolve(saved("8bit")).architecture
    options = PlacementOptions(context=2048, objective="balance")
    placement = decide(known, options, parse_gpus("2x1GiB"))
    assert set(placement.device_map.values()) == {0, 1}
    made = placement.plan
    assert [s.weight_bytes for s in made.stages] == [
        s.weight_bytes for s in make_plan(known, options, parse_gpus("2x1GiB")).stages
    ]


def test_sizes_that_the_cpu_does_not_compute_are_refused_before_anything_is_released(
    native, tmp_path
):
    folder = tmp_path / "c"
    whole(native("glm4v"), "4bit").save_pretrained(folder)  # whose MLP has 96 inputs
    for name in (*TOKENIZER, "preprocessor_config.json"):
        if (native("glm4v") / name).exists():
            shutil.copy(native("glm4v") / name, folder)
    known = architecture(folder)
    matrices = [each for unit in known.shape().units for each in unit.packed]
    assert {(each.rows * each.columns, each.block) for each in matrices} == {
        (each.values, 64) for each in matrices
    }
    session = Session().load("demo", gpus="cpu")
    engine = session.engine
    for attempt in (
        lambda: make_plan(known, PlacementOptions(gpus="cpu")),
        lambda: decide(known, PlacementOptions(), ()),
        lambda: dry_run(known, "1x1GiB", {"": "cpu"}, context=512, images=0),
        lambda: session.load(folder, gpus="cpu"),
        lambda: session.load(folder, device_map="cpu"),
    ):
        with pytest.raises(OptionError, match=r"inputs, and 4bit on the CPU .* Use a GPU, or full"):
            attempt()
    assert session.engine is engine
    (found,) = (
        each for each in diagnose(gather("cpu", model=str(folder))) if each.subject == "model"
    )
    assert (found.verdict, found.next_step) == ("fail", "Use a GPU, or full weights.")
    assert "4bit on the CPU needs multiples of 64" in found.reason
    # As it says: on a GPU, or the weights that were quantised.
    assert decide(known, PlacementOptions(), parse_gpus("1x1GiB")).device_map
    session.load(native("glm4v"), gpus="cpu")
    session.unload()


def test_not_quantised_again_and_not_offloaded(saved):
    known = architecture(saved("8bit"))
    with pytest.raises(OptionError, match="published quantised by bitsandbytes"):
        decide(known, PlacementOptions(quantize="4bit"), parse_gpus("1x1GiB"))
    text = "model.language_model"
    places = {f"{text}.{name}": 0 for name in ("embed_tokens", "norm", "rotary_emb")}
    places |= {f"{text}.layers.{index}": "cpu" if index == 1 else 0 for index in range(4)}
    places |= {"model.visual": 0, "lm_head": 0}
    with pytest.raises(DeviceMapError, match="quantised layers cannot be offloaded"):
        decide(known, PlacementOptions(), parse_gpus("1x1GiB"), places)
    options = PlacementOptions(max_memory=0.2659, images=0, context=256)
    with pytest.raises(DoesNotFitError) as caught:
        make_plan(known, options, parse_gpus("1x1GiB"))
    assert "4-bit weights" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_tried_with_the_bytes_in_its_files(saved, form):
    known = architecture(saved(form))
    made = make_plan(known, PlacementOptions(gpus="2x1GiB", context=512, objective="balance"))
    report = dry_run(known, "2x1GiB", made)
    assert report.works
    for gpu, stage in zip(report.gpus, sorted(made.stages, key=lambda s: s.gpu), strict=True):
        assert 0 <= gpu.weight_bytes - stage.weight_bytes < 2000  # rotary frequencies
        own = gpu.total_bytes - gpu.overhead_bytes
        assert own <= 1.01 * (stage.total_bytes - stage.overhead_bytes)
    assert "scheme_stays" in [note.code for note in report.notes]


def test_without_its_backend_before_anything_is_released(saved, monkeypatch):
    session = Session().load(golden.CHECKPOINT)
    engine, folder = session.engine, saved("8bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(OptionError, match=r"pip install 'glm4v_magic\[quantize\]'"):
        session.load(folder)
    assert session.engine is engine
    session.unload()
    facts = gather((), model=str(folder))
    assert facts.fault is not None
    assert "need bitsandbytes" in facts.fault[0]
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.46.0")
    with pytest.raises(OptionError, match=r"need bitsandbytes .* or newer; 0\.46\.0"):
        session.load(folder)


def test_by_the_names_of_the_weights_where_the_config_says_nothing(saved, tmp_path):
    folder = shutil.copytree(saved("4bit"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    assert answer(local.load(resolve(folder))) == answer(local.load(resolve(saved("4bit"))))


def test_weights_that_are_missing_are_said_before(saved, tmp_path):
    folder = shutil.copytree(saved("8bit"), tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    del weights["model.language_model.layers.0.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"holds .* weights .*, but its config.json"):
        resolve(folder)


def configure(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("form", GROUPS)
def test_compressed_tensors_are_restored_and_planned_so(wide, tmp_path, monkeypatch, form):
    pytest.importorskip("compressed_tensors")
    folder = tmp_path / "c"
    meant = compressed(wide, folder, form)
    loaded = resolve(folder).load(dtype=torch.float32, device_map={"": "cpu"})
    for name, weight in loaded.model.state_dict().items():
        if name in meant:
            torch.testing.assert_close(weight, meant[name], atol=1e-6, rtol=0)
    assert answer(local.load(resolve(folder)))
    made = make_plan(architecture(folder), PlacementOptions(gpus="1x1GiB", images=0, context=512))
    codes = [note.code for note in made.notes]
    assert "scheme_restored" in codes
    assert f"compressed-tensors ({form})" in worded(made.notes[0], PYTHON)
    size = {"float32": 4, "bfloat16": 2}[made.workload.dtype]
    assert sum(s.weight_bytes for s in made.stages) == size * architecture(wide).shape().values
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(OptionError, match=r"pip install 'glm4v_magic\[compressed\]'"):
        resolve(folder).require_usable()


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A checkpoint with experts."""
    return with_whole_blocks("glm4v_moe", tmp_path_factory.mktemp("experts") / "full")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", ["4bit", "8bit", *GROUPS])
@pytest.mark.parametrize("family", ["glm4v", "glm4v_moe"])
def test_what_is_not_quantised_has_the_dtype_of_the_load(
    request, saved, tmp_path, family, form, dtype
):
    """Files have float32, and their packages leave what they do not know as it is."""
    source = request.getfixturevalue("wide" if family == "glm4v" else "experts")
    folder = tmp_path / "c"
    if form in GROUPS:
        pytest.importorskip("compressed_tensors")
        compressed(source, folder, form)
    elif family == "glm4v":
        folder = saved(form)
    else:
        whole(source, form).save_pretrained(folder)
        for name in (*TOKENIZER, "preprocessor_config.json"):
            shutil.copy(source / name, folder)
    loaded = resolve(folder).load(dtype=getattr(torch, dtype), device_map={"": "cpu"})
    dtypes = {name: weight.dtype for name, weight in loaded.model.named_parameters()}
    others = {name for name, each in dtypes.items() if each not in (torch.int8, torch.uint8)}
    assert {dtypes[name] for name in others} == {getattr(torch, dtype)}
    assert (len(others) < len(dtypes)) == (form not in GROUPS)


SCHEMES = [
    ({"quant_method": "gptq", "bits": 4}, "qweight", "GPTQ (4 bits)"),
    ({"quant_method": "awq"}, "qweight", "AWQ,"),
    ({"quant_method": "awq", "bits": 4}, "qweight", "awq"),
    ({"quant_method": "hqq"}, "W_q", "hqq"),
    (None, "qweight", "AWQ"),
    (None, "g_idx", "GPTQ"),
]


@pytest.mark.parametrize(("config", "ending", "scheme"), SCHEMES)
@pytest.mark.parametrize("family", ["glm4v", "GLM-4V-9B"])
def test_others_are_named_with_the_way_out(native, tmp_path, family, config, ending, scheme):
    source = golden.CHECKPOINT if family == "GLM-4V-9B" else native(family)
    folder = shutil.copytree(source, tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    name = next(each for each in weights if (".layers.0." in each and "dense" in each)
                or "layers.0.mlp.down_proj.weight" in each)  # fmt: skip
    weights[name.replace("weight", ending)] = torch.zeros(4, 4, dtype=torch.int32)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    configure(folder, quantization_config=config)
    said = f"quantised by {scheme}"
    for look in (resolve, architecture, lambda path: gather((), model=str(path))):
        with pytest.raises(CheckpointError) as caught:
            look(folder)
        assert said.lower() in str(caught.value).lower()
        assert 'Take the original checkpoint; quantize="4bit"' in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_original_is_made_as_small_as_it_is_loaded(wide, tmp_path):
    folder = shutil.copytree(wide, tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    name = next(each for each in weights if each.endswith("layers.0.mlp.down_proj.weight"))
    del weights[name]
    weights[name.replace("weight", "qweight")] = torch.zeros(4, 4, dtype=torch.int32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = 'Take the original checkpoint; quantize="4bit" makes it as small as it is loaded.'
    with pytest.raises(CheckpointError, match=re.escape(said)):
        resolve(folder)
    session = Session().load(wide, quantize="4bit")
    assert session.status().info.quantize == "4bit"
    session.unload()


def test_those_of_bitsandbytes_for_glm_4v_9b_are_named(tmp_path):
    folder = shutil.copytree(golden.CHECKPOINT, tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    name = "transformer.encoder.layers.0.self_attention.dense.weight"
    weights[name] = weights[name].to(torch.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    configure(folder, quantization_config={"load_in_8bit": True, "quant_method": "bitsandbytes"})
    with pytest.raises(CheckpointError, match="quantised by bitsandbytes"):
        resolve(folder)


@pytest.mark.parametrize("given", [{"quant_method": "gptq", "bits": 4}, {"load_in_4bit": True}])
@pytest.mark.parametrize("family", ["glm4v", "GLM-4V-9B"])
def test_what_is_left_over_on_full_weights_is_said_once(native, tmp_path, family, given):
    source = golden.CHECKPOINT if family == "GLM-4V-9B" else native(family)
    folder = shutil.copytree(source, tmp_path / "c")
    in_text = {} if family == "GLM-4V-9B" else {**resolve(folder).config["text_config"]}
    if "bits" in given and in_text:
        configure(folder, text_config={**in_text, "quantization_config": given})
    else:
        configure(folder, quantization_config=given)
    assert not architecture(folder).shape().scheme
    assert "quantization_config" not in str(resolve(folder).config)
    notes = local.load(resolve(folder)).info.notes
    assert sum("says that the weights are quantised" in note for note in notes) == 1


@pytest.mark.parametrize("form", ["8bit", "4bit", "4bit, as bfloat16"])
def test_adapters_of_quantised_bases_are_refused_with_the_way_out(saved, wide, tmp_path, form):
    peft = pytest.importorskip("peft")
    model = peft.PeftModel(whole(wide), peft.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({**described, "base_model_name_or_path": str(saved(form))}))
    for look in (resolve, architecture, lambda path: gather((), model=str(path))):
        with pytest.raises(CheckpointError, match="an adapter is merged into full ones") as caught:
            look(tmp_path / "a")
        assert f"quantised by bitsandbytes ({form[0]} bits)" in str(caught.value)
        assert (
            'Name the original checkpoint in its place, by base="FOLDER" where the adapter itself '
            'is the model; quantize="4bit" makes it as small'
        ) in str(caught.value)
    for look in (resolve, architecture):
        with pytest.raises(CheckpointError, match="checkpoint in its place"):
            look(saved(form), lora=tmp_path / "a")
    for follow in ({"base": wide, "text": tmp_path / "a"}, {"lora": tmp_path / "a", "text": wide}):
        text = follow.pop("text")
        assert resolve(text, **follow).load(dtype=torch.float32, quantize="4bit").model
    with pytest.raises(OptionError) as refused:
        resolve(saved(form), lora=tmp_path / "a", base=wide)
    assert str(refused.value) == (
        f"The adapter is merged into {saved(form)}, and not into {wide}. Leave base out, or name "
        "that model in place of this one."
    )


@pytest.mark.parametrize(
    ("method", "ending"),
    [("gptq", ".qweight"), ("awq", ".qweight"), ("compressed-tensors", ".weight_packed")],
)
def test_so_are_adapters_of_bases_whose_weights_have_other_names(
    saved, wide, tmp_path, method, ending
):
    peft = pytest.importorskip("peft")
    model = peft.PeftModel(whole(wide), peft.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "a")
    folder = shutil.copytree(wide, tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    packed = [name for name in weights if name.endswith("q_proj.weight")]
    for name in packed:
        del weights[name]
        weights[name.replace(".weight", ending)] = torch.zeros(8, 64, dtype=torch.int32)
    save_file(weights, folder / "model.safetensors")
    configure(folder, quantization_config={"quant_method": method, "bits": 4})
    for look in (resolve, architecture):
        with pytest.raises(
            CheckpointError, match=f"(?i)quantised by {method}.*into full"
        ) as caught:
            look(folder, lora=tmp_path / "a")
        assert 'base="FOLDER"' in str(caught.value)


@pytest.mark.parametrize(("form", "kind"), [("4bit", "nf4"), ("4bit, fp4", "fp4")])
def test_the_kind_of_4_bits_is_told_by_the_weights_where_the_config_does_not(
    saved, tmp_path, form, kind
):
    folder = shutil.copytree(saved(form), tmp_path / "c")
    configure(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    stored = architecture(folder).stored
    assert stored.config["bnb_4bit_quant_type"] == kind


LAYER = "model.language_model.layers.0.mlp.down_proj.weight"
STATE = f"{LAYER}.quant_state.bitsandbytes__nf4"


def looks(folder, said):
    """Plan, load and doctor refuse a folder in one line."""
    for look in (resolve, architecture, lambda path: gather((), model=str(path))):
        with pytest.raises(CheckpointError, match=said) as caught:
            look(folder)
        assert "\n" not in str(caught.value)


def written(**changes):
    """Return a description of bitsandbytes with some of its values replaced."""
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [64, 128]}
    return torch.tensor(list(json.dumps({**state, **changes}).encode()), dtype=torch.uint8)


DAMAGED = {
    "zeros": ({STATE: torch.zeros(80, dtype=torch.uint8)}, "is not valid JSON"),
    "a list": ({STATE: torch.tensor(list(b"[]"), dtype=torch.uint8)}, "not a JSON object"),
    "an odd dtype": ({STATE: written(dtype="float31")}, "'dtype'"),
    "no size of blocks": ({STATE: written(blocksize=0)}, "'blocksize'"),
    "another shape": ({STATE: written(shape=[64, 64])}, "its quant_state describes 4,096"),
    "no state": ({STATE: None}, "lacks its quant_state"),
    "no scales": ({f"{LAYER}.absmax": None}, "lacks 128 values in absmax"),
    "too few levels": ({f"{LAYER}.quant_map": torch.ones(4)}, "lacks 16 values in quant_map"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_descriptions_of_4_bits_are_found_by_all(saved, tmp_path, how):
    changes, said = DAMAGED[how]
    folder = shutil.copytree(saved("4bit"), tmp_path / "c")
    weights = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: weight for name, weight in weights.items() if weight is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    looks(folder, said)
    with pytest.raises(CheckpointError) as caught:
        resolve(folder)
    if caught.value.hint == (
        "The files are damaged, or were saved in part; download or save them again."
    ):
        shutil.copy(saved("4bit") / "model.safetensors", folder)
        resolve(folder)


def test_scales_of_8_bits_that_are_cut_short(saved, tmp_path):
    folder = shutil.copytree(saved("8bit"), tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    name = f"{LAYER.removesuffix('.weight')}.SCB"
    save_file({**weights, name: weights[name][:3].clone()}, folder / "model.safetensors")
    looks(folder, "lacks 64 values in SCB")


INCOMPLETE = {
    "no targets": ({"g": {"weights": {"num_bits": 8}}}, r"lacks 'config_groups\.g"),
    "odd bits": ({"g": {"targets": ["Linear"], "weights": {"num_bits": "x"}}}, "num_bits"),
    "odd groups": ({"g": 3}, "has 3 for 'config_groups.g"),
}


@pytest.mark.parametrize("how", INCOMPLETE)
def test_incomplete_groups_of_compressed_tensors_are_found_by_all(wide, tmp_path, how):
    pytest.importorskip("compressed_tensors")
    groups, said = INCOMPLETE[how]
    folder = tmp_path / "c"
    compressed(wide, folder, "float-quantized")
    given = json.loads((folder / "config.json").read_text())["quantization_config"]
    configure(folder, quantization_config={**given, "config_groups": groups})
    looks(folder, said)


def test_what_only_compressed_tensors_itself_refuses_comes_before_a_release(wide, tmp_path):
    pytest.importorskip("compressed_tensors")
    folder = tmp_path / "c"
    compressed(wide, folder, "float-quantized")
    given = json.loads((folder / "config.json").read_text())["quantization_config"]
    group = {**given["config_groups"]["group_0"], "format": "x"}
    configure(folder, quantization_config={**given, "config_groups": {"g": group}})
    with pytest.raises(CheckpointError, match=r"quantization_config of weights .* cannot be read"):
        resolve(folder).require_usable()
    weights = load_file(folder / "model.safetensors")
    del weights[f"{LAYER}_scale"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    looks(folder, "down_proj.weight lacks its weight_scale")


@pytest.mark.parametrize("family", ["glm4v", "GLM-4V-9B"])
def test_weights_in_fp8_that_no_config_names_are_found_by_all(native, tmp_path, family):
    source = golden.CHECKPOINT if family == "GLM-4V-9B" else native(family)
    folder = shutil.copytree(source, tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    name = next(each for each in weights if ("layers.0." in each and "dense" in each)
                or each == LAYER)  # fmt: skip
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    looks(folder, "is of dtype F8_E4M3" if family == "glm4v" else "cannot be loaded here")


def test_a_method_with_a_line_ending_is_one_line(native, tmp_path):
    folder = shutil.copytree(native("glm4v"), tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    weights[LAYER] = weights[LAYER].to(torch.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    configure(folder, quantization_config={"quant_method": "a\nb"})
    looks(folder, r"quantised by a\\nb, which")


@pytest.mark.parametrize("form", [None, *FORMS])
def test_virtual_gpus_refuse_what_only_real_ones_hold(saved, wide, form):
    """In one line, before anything is released; what the line advises works."""
    name, how = (wide, {"quantize": "4bit"}) if form is None else (saved(form), {})
    said = "cannot be put on virtual GPUs: its layers are not PyTorch's own"
    way = 'a dry run tries such layers with stand-ins; device_map="cpu" loads them on the CPU.'
    with VirtualGPUs("2x1GiB"):
        session = Session().load(golden.CHECKPOINT)
        engine = session.engine
        for device_map in (None, "cuda:1"):
            with pytest.raises(PlacementError) as caught:
                session.load(name, device_map=device_map, **how)
            assert said in str(caught.value)
            assert str(caught.value).endswith(way)
            assert session.engine is engine
        placement = Placement(device_map={"": 0}, quantize=how.get("quantize"))
        with pytest.raises(PlacementError, match=said):
            local.load(resolve(name), placement)
        assert Session().load(name, device_map="cpu", **how).engine.info.devices == ("cpu",)
    assert dry_run(architecture(name), "1x1GiB", context=512, **how).works


@pytest.mark.parametrize("device_map", [None, "cpu"])
def test_what_becomes_8_bit_is_put_on_virtual_gpus(wide, device_map):
    on_cpu = answer(Session().load(wide, quantize="8bit").engine)
    with VirtualGPUs("2x1GiB") as virtual:
        how = {"objective": "balance"} if device_map is None else {"device_map": device_map}
        engine = Session().load(wide, quantize="8bit", **how).engine
        assert engine.info.devices == (("cuda:0", "cuda:1") if device_map is None else ("cpu",))
        layers = [each for each in engine.model.modules() if type(each).__name__ == "Linear8bitLt"]
        assert {each.weight.dtype for each in layers} == {torch.int8}
        assert answer(engine) == on_cpu
    assert virtual.problems == ()
