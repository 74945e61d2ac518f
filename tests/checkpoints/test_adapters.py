"""Adapters: merged as the base is loaded, they are what peft merges into the whole model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import golden
import pytest
import tiny_native
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.glm4v_9b import layout
from glm4v_magic.checkpoints.places import cached_elsewhere
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import CheckpointError, DeviceMapError, OptionError
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.remarks import worded
from glm4v_magic.doctor import diagnose, gather
from glm4v_magic.engines import local
from glm4v_magic.notebook.next_steps import CELL
from glm4v_magic.planning.decision import Placement, decide
from glm4v_magic.planning.files import read_given
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

peft = pytest.importorskip("peft")

# What peft does to whole models in these tests, not what is done to them here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
]

KINDS = ("glm4v", "glm46v", "glm_ocr", "glm4v_moe")
LANGUAGE = ["q_proj", "k_proj", "o_proj", "down_proj"]


def refused_by_all(adapter, said):
    """Hold that a load, a plan and the doctor refuse an adapter in the same words."""
    for look in (resolve, architecture, lambda folder: gather((), model=str(folder))):
        with pytest.raises(CheckpointError) as caught:
            look(adapter)
        assert str(caught.value) == said


def randomize(model):
    """Make an adapter do something: as peft begins, it changes nothing."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if any(each in name for each in ("lora_", "hada_", "lokr_", "ia3_", "magnitude")):
            noise = torch.randn(weight.shape) * 0.2
            weight.data = weight.data * (1 + noise) if "magnitude" in name else noise
        elif weight.requires_grad:
            weight.data = weight.data + torch.randn(weight.shape, dtype=weight.dtype) * 0.1


def full(folder, dtype):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)


def trained(base, config, folder, dtype=torch.float32):
    """Save an adapter of a checkpoint; returns the weights that peft itself makes of both."""
    model = peft.get_peft_model(full(base, dtype), config)
    randomize(model)
    model.save_pretrained(folder)
    file = folder / "adapter_config.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({**described, "base_model_name_or_path": str(base)}))
    again = peft.PeftModel.from_pretrained(full(base, dtype), folder)
    return again.merge_and_unload().state_dict()


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name


def changed(found, base):
    return {name for name, weight in found.items() if not torch.equal(weight, base[name])}


CONFIGS = {
    "plain": {"target_modules": LANGUAGE},
    "scaled by root": {"target_modules": LANGUAGE, "use_rslora": True, "lora_alpha": 5},
    "of magnitudes": {"target_modules": LANGUAGE, "use_dora": True},
    "everywhere": {"target_modules": "all-linear"},
    "ranks by module": {
        "target_modules": r".*language_model.*(q_proj|o_proj)",
        "rank_pattern": {"layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"o_proj": 3},
    },
    "some layers": {"target_modules": LANGUAGE, "layers_to_transform": [1]},
    "with biases": {"target_modules": ["q_proj", "k_proj"], "bias": "lora_only"},
    "whole modules": {"target_modules": LANGUAGE, "modules_to_save": ["lm_head", "embed_tokens"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "some tokens": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [3, 5]},
    },
    "from singular values": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    "orthonormal": {"target_modules": ["q_proj"], "init_lora_weights": "olora", "use_rslora": True},
    "magnitudes of singular values": {
        "target_modules": ["q_proj"],
        "init_lora_weights": "pissa",
        "use_dora": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("how", CONFIGS)
def test_merged_as_peft_merges_into_the_model_of_transformers(native, tmp_path, how):
    base = native("glm4v")
    expected = trained(base, peft.LoraConfig(r=4, **CONFIGS[how]), tmp_path / "adapter")
    found = resolve(tmp_path / "adapter")
    found.require_usable()
    loaded = found.load(dtype=torch.float32)
    same(loaded.model.state_dict(), expected)
    assert changed(expected, resolve(base).load(dtype=torch.float32).model.state_dict())
    assert any("(LORA) is merged into" in note for note in loaded.notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*KINDS, "glmga", "glm5_next"])
def test_every_model_type_in_the_dtype_of_the_load(native, tmp_path, kind, dtype):
    targets = ["q_proj", "v_proj", "o_proj"]
    expected = trained(native(kind), peft.LoraConfig(target_modules=targets), tmp_path, dtype)
    same(resolve(tmp_path).load(dtype=dtype).model.state_dict(), expected)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")
def test_all_linear_of_a_model_with_experts_is_refused_by_what_it_adds(native, tmp_path):
    config = peft.LoraConfig(target_modules="all-linear")
    trained(native("glm4v_moe"), config, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_parameters"]
    with pytest.raises(CheckpointError, match=r"matrices of experts \(target_parameters\), which"):
        resolve(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(r=2, target_modules=["q_proj", "down_proj"]),
        peft.LoKrConfig(r=2, target_modules=["q_proj", "down_proj"]),
        peft.IA3Config(
            target_modules=["q_proj", "k_proj", "down_proj", "proj"],
            feedforward_modules=["down_proj", "q_proj"],
        ),
    ],
    ids=["loha", "lokr", "ia3"],
)
def test_other_kinds_that_can_be_merged(native, tmp_path, config):
    base = shutil.copytree(native("glm4v"), tmp_path / "base")
    (file,) = base.glob("*.safetensors")
    weights = load_file(file)
    noise = {k: torch.randn_like(v) for k, v in weights.items() if k.endswith("bias")}
    save_file({**weights, **noise}, file, {"format": "pt"})
    expected = trained(base, config, tmp_path / "a")
    found = resolve(tmp_path / "a")
    found.require_usable()
    loaded = found.load(dtype=torch.float32)
    same(loaded.model.state_dict(), expected)
    count = len(
        {
            name.rpartition(".")[0]
            for name in changed(expected, full(base, torch.float32).state_dict())
        }
    )
    assert any(note.endswith(f"is merged into {count} modules") for note in loaded.notes)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (peft.LoraConfig(target_modules=LANGUAGE, lora_alpha=0), "(LORA) changes nothing: its "),
        (
            peft.LoraConfig(target_modules=LANGUAGE, lora_alpha=0, use_rslora=True),
            "(LORA) changes nothing: its lora_alpha is 0",
        ),
        (
            peft.LoHaConfig(r=2, target_modules=["q_proj"], alpha=0),
            "(LOHA) changes nothing: its alpha is 0",
        ),
        (
            peft.LoKrConfig(r=2, target_modules=["q_proj"], alpha=0, decompose_both=True),
            "(LOKR) changes nothing: its alpha is 0",
        ),
        (
            peft.LoraConfig(
                target_modules=["q_proj", "o_proj"], lora_alpha=0, alpha_pattern={"o_proj": 3}
            ),
            "is merged into 4 modules, and leaves 4 others unchanged: lora_alpha is 0",
        ),
        (
            peft.LoraConfig(
                target_modules=["q_proj", "o_proj"], alpha_pattern={"layers.1.self_attn.o_proj": 0}
            ),
            "is merged into 7 modules, and leaves 1 other unchanged: lora_alpha is 0",
        ),
        # What is not multiplied by it.
        (
            peft.LoraConfig(target_modules=["q_proj"], lora_alpha=0, modules_to_save=["lm_head"]),
            "is merged into 1 module, and leaves 4 others unchanged: lora_alpha is 0",
        ),
        (
            peft.LoraConfig(
                target_modules=["q_proj"], lora_alpha=0, trainable_token_indices=[3, 5]
            ),
            "is merged into 1 module, and leaves 4 others unchanged: lora_alpha is 0",
        ),
        (
            peft.LoraConfig(target_modules=["q_proj"], lora_alpha=0, use_dora=True),
            "is merged into 4 modules",
        ),
    ],
)
def test_what_an_alpha_of_0_leaves_as_it_is_does_not_count(native, tmp_path, config, said):
    expected = trained(native("glm4v"), config, tmp_path / "a")
    found = resolve(tmp_path / "a")
    found.require_usable()
    loaded = found.load(dtype=torch.float32)
    weights = loaded.model.state_dict()
    same(weights, expected)
    (note,) = (each for each in loaded.notes if "the adapter" in each)
    assert said in note
    assert "," in said or "merged" not in said or note.endswith(said)
    names = changed(weights, full(native("glm4v"), torch.float32).state_dict())
    modules = {name.rpartition(".")[0] for name in names}
    told = re.search(r"merged into (\d+)", note)
    assert len(modules) == (0 if told is None else int(told[1]))


ZERO = "product is 0, as before a training"


@pytest.mark.parametrize(
    ("config", "set_to_0", "said"),
    [
        (peft.LoraConfig(target_modules=["q_proj"]), "lora_B", f"changes nothing: its {ZERO}"),
        (
            peft.LoraConfig(
                target_modules=["q_proj"], alpha_pattern={r"layers\.1\.self_attn\.q_proj": 0}
            ),
            r"layers\.[2-9].*lora_B",
            f"and leaves 3 others unchanged: their {ZERO}",
        ),
        (peft.LoHaConfig(target_modules=["q_proj"]), "hada_w2_a", f"changes nothing: its {ZERO}"),
        (peft.LoKrConfig(target_modules=["q_proj"]), "lokr_w1", f"changes nothing: its {ZERO}"),
        (
            peft.LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"),
            "lora_B",
            "is merged into 4 modules.",
        ),
        (peft.LoraConfig(target_modules=["q_proj"], use_dora=True), "lora_B", "into 4 modules."),
    ],
)
def test_what_no_training_has_changed_does_not_count(
    native, tmp_path, monkeypatch, config, set_to_0, said
):
    whole = randomize

    def trained_in_part(model):
        whole(model)
        for name, weight in model.named_parameters():
            if re.search(set_to_0, name):
                weight.data.zero_()

    monkeypatch.setitem(globals(), "randomize", trained_in_part)
    expected = trained(native("glm4v"), config, tmp_path / "a")
    loaded = resolve(tmp_path / "a").load(dtype=torch.float32)
    weights = loaded.model.state_dict()
    same(weights, expected)
    (note,) = (each for each in loaded.notes if "the adapter" in each)
    assert f"{note}.".endswith(said if said[-1] == "." else f"{said}.")
    names = changed(weights, full(native("glm4v"), torch.float32).state_dict())
    told = re.search(r"merged into (\d+)", note)
    assert len({name.rpartition(".")[0] for name in names}) == (0 if told is None else int(told[1]))


def test_modules_that_transformers_has_renamed(native, tmp_path):
    targets = ["f_a_proj", "f_b_proj", "o_proj"]
    expected = trained(native("glm5_next"), peft.LoraConfig(target_modules=targets), tmp_path)
    assert any("forget_gate.f_a_proj" in name for name in expected)
    same(resolve(tmp_path).load(dtype=torch.float32).model.state_dict(), expected)


OLDER = {
    "model.language_model.": "language_model.model.",
    "model.language_model.layers": "model.layers",
    "model.visual.": "visual.",
    "model.": "model.model.",
}


@pytest.mark.parametrize("present", OLDER)
def test_names_of_other_versions_of_transformers(native, tmp_path, present):
    targets = ["q_proj", "o_proj", "qkv"]
    expected = trained(native("glm4v"), peft.LoraConfig(target_modules=targets), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    start = "base_model.model."
    renamed = {
        name.replace(f"{start}{present}", f"{start}{OLDER[present]}"): weight
        for name, weight in load_file(file).items()
    }
    assert renamed.keys() != load_file(file).keys()
    save_file(renamed, file)
    same(resolve(tmp_path).load(dtype=torch.float32).model.state_dict(), expected)


class Published(torch.nn.Module):
    """Modules under the names of the published code, with a checkpoint's weights."""

    def __init__(self, weights):
        super().__init__()
        for name, weight in weights.items():
            *path, last = name.split(".")
            at = self
            for part in path[:-1]:
                if not hasattr(at, part):
                    at.add_module(part, torch.nn.Module())
                at = getattr(at, part)
            if not hasattr(at, path[-1]):
                module = torch.nn.Module()
                weight_of = weights.get(f"{'.'.join(path)}.weight")
                if weight_of is not None and weight_of.dim() == 2 and "norm" not in path[-1]:
                    is_table = "embedding" in path[-1]
                    kind = torch.nn.Embedding if is_table else torch.nn.Linear
                    sizes = weight_of.shape if is_table else weight_of.shape[::-1]
                    module = kind(*sizes, **({} if is_table else {"bias": False}))
                at.add_module(path[-1], module)
            getattr(at, path[-1]).register_parameter(last, torch.nn.Parameter(weight))


def of_published_names(folder, **options):
    """Save an adapter as people train it on the published code; returns merged weights."""
    weights = load_file(golden.CHECKPOINT / "model.safetensors")
    known = {name: weights[name] for name in weights if "inv_freq" not in name}
    model = peft.get_peft_model(Published(known), peft.LoraConfig(**options))
    randomize(model)
    model.save_pretrained(folder)
    return {**weights, **model.merge_and_unload().state_dict()}


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["query_key_value"]},
        {"target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]},
        {"target_modules": ["dense"], "modules_to_save": ["output_layer"]},
        {"target_modules": ["query_key_value"], "use_dora": True},
        {"target_modules": ["fc1", "fc2"], "r": 3, "lora_alpha": 7},
    ],
)
def test_what_was_trained_on_the_published_code_of_glm_4v_9b(tmp_path, options):
    merged = of_published_names(tmp_path / "adapter", **options)
    whole = shutil.copytree(golden.CHECKPOINT, tmp_path / "merged")
    save_file(
        {name: weight.contiguous() for name, weight in merged.items()}, whole / "model.safetensors"
    )
    expected = resolve(whole).load(dtype=torch.float32).model.state_dict()
    found = resolve(tmp_path / "adapter", base=golden.CHECKPOINT).load(dtype=torch.float32)
    same(found.model.state_dict(), expected)
    assert changed(
        expected, resolve(golden.CHECKPOINT).load(dtype=torch.float32).model.state_dict()
    )


def of_our_modules(folder, targets=("q_proj", "v_proj", "gate_up_proj", "fc1")):
    model = resolve(golden.CHECKPOINT).load(dtype=torch.float32).model
    adapted = peft.PeftModel(model, peft.LoraConfig(target_modules=list(targets)))
    randomize(adapted)
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload().state_dict()


def test_what_was_trained_on_the_modules_here(tmp_path):
    expected = of_our_modules(tmp_path)
    found = resolve(tmp_path, base=golden.CHECKPOINT).load(dtype=torch.float32).model.state_dict()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)
    ours = layout.published_names(resolve(golden.CHECKPOINT).config)
    assert ours.keys() == {name for name in found if "inv_freq" not in name}


def answer(engine, kind="glm4v"):
    chat = Conversation((Message("user", "What is it?", (tiny_native.image(90, 70),)),))
    events = engine.stream([Request(chat, Sampling(8, temperature=0, repetition_penalty=1.0))])
    return next(each.generation.text for each in events if isinstance(each, Finished))


@pytest.mark.parametrize("kind", KINDS)
def test_on_several_gpus_the_answer_is_that_of_the_merged_model(native, tmp_path, kind):
    whole = tmp_path / "merged"
    trained(native(kind), peft.LoraConfig(target_modules=["q_proj", "o_proj"]), tmp_path / "a")
    adapted = peft.PeftModel.from_pretrained(full(native(kind), torch.float32), tmp_path / "a")
    shutil.copytree(native(kind), whole)
    adapted.merge_and_unload().save_pretrained(whole)
    expected = answer(local.load(resolve(whole)))
    assert expected != answer(local.load(resolve(native(kind))))
    found = resolve(native(kind), lora=tmp_path / "a")
    assert answer(local.load(found)) == expected
    with VirtualGPUs("3x1GiB") as gpus:
        options = PlacementOptions(context=2048, dtype="float32", max_memory=0.37)
        placement = decide(found.architecture, options, gpus.gpus)
        assert len(set(placement.device_map.values())) > 1
        engine = local.load(found, placement)
        assert answer(engine) == expected
        engine.close()


def test_on_several_gpus_glm_4v_9b_answers_as_on_the_cpu(adapter):
    def ask(engine):
        chat = Conversation((Message("user", "What is it?", (golden.photo("image0.png"),)),))
        events = engine.stream([Request(chat, Sampling(8, temperature=0))])
        return next(each.generation.text for each in events if isinstance(each, Finished))

    found = resolve(adapter)
    expected = ask(local.load(found))
    assert expected != ask(local.load(resolve(golden.CHECKPOINT)))
    with VirtualGPUs("4x1GiB") as gpus:
        options = PlacementOptions(dtype="float32", objective="balance", split_vision=True)
        placement = decide(found.architecture, options, gpus.gpus)
        assert len(set(placement.device_map.values())) == 4
        engine = local.load(found, placement)
        assert ask(engine) == expected
        engine.close()


def test_merged_before_it_is_quantised(native, tmp_path):
    pytest.importorskip("bitsandbytes")
    trained(native("glm4v"), peft.LoraConfig(target_modules=["q_proj"]), tmp_path / "a")
    whole = shutil.copytree(native("glm4v"), tmp_path / "merged")
    adapted = peft.PeftModel.from_pretrained(full(native("glm4v"), torch.float32), tmp_path / "a")
    adapted.merge_and_unload().save_pretrained(whole)
    states = [
        resolve(folder).load(dtype=torch.float32, quantize="8bit").model.state_dict()
        for folder in (tmp_path / "a", whole)
    ]
    same({k: v for k, v in states[0].items() if hasattr(v, "shape")},
         {k: v for k, v in states[1].items() if hasattr(v, "shape")})  # fmt: skip


def test_plan_and_doctor_price_the_base(tmp_path):
    of_published_names(tmp_path / "a", target_modules=["dense"])
    edit(tmp_path / "a", base_model_name_or_path="THUDM/glm-4v-9b")
    name = str(tmp_path / "a")
    shape = architecture(name).shape()
    assert shape.values == architecture("GLM-4V-9B").shape().values
    assert (shape.name, shape.units) == (name, architecture("GLM-4V-9B").shape().units)
    facts = gather((), model=name)
    assert (facts.shape, facts.is_here, facts.fault) == (shape, False, None)
    edit(tmp_path / "a", base_model_name_or_path=str(golden.CHECKPOINT))
    assert architecture(name).shape().max_context == 256
    facts = gather((), model=name)
    assert (facts.is_here, facts.fault) == (True, None)
    edit(tmp_path / "a", base_model_name_or_path="nobody/nothing")
    with pytest.raises(CheckpointError, match="trained on 'nobody/nothing', which is not here"):
        architecture(name)
    edit(tmp_path / "a", base_model_name_or_path=str(golden.CHECKPOINT))
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        gather((), model=name)


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "a"
    of_published_names(folder, target_modules=["query_key_value"])
    edit(folder, base_model_name_or_path=str(golden.CHECKPOINT))
    return folder


@pytest.fixture
def adapter(saved, tmp_path):
    """An adapter of the tiny checkpoint, which it names by its path."""
    return shutil.copytree(saved, tmp_path / "a")


def test_ways_to_name_both(adapter, monkeypatch):
    expected = resolve(adapter).load(dtype=torch.float32).model.state_dict()
    for found in (
        resolve(golden.CHECKPOINT, lora=adapter),
        resolve(adapter, base=golden.SHARDED),
        resolve(str(adapter), base=str(golden.CHECKPOINT)),
    ):
        same(found.load(dtype=torch.float32).model.state_dict(), expected)
    shutil.copytree(golden.CHECKPOINT, adapter.parent / "base")
    edit(adapter, base_model_name_or_path="base")
    same(resolve(adapter).load(dtype=torch.float32).model.state_dict(), expected)  # beside it
    assert resolve(adapter).name == str(adapter)
    assert resolve(golden.CHECKPOINT, lora=adapter).name == str(golden.CHECKPOINT)


def test_a_session_takes_it_and_notices_when_it_changes(adapter):
    session = Session().load(adapter)
    engine = session.engine
    assert any("is merged into" in note for note in session.status().info.notes)
    session.load(adapter)
    assert session.engine is engine
    plain = Session().load(golden.CHECKPOINT)
    different = plain.load(golden.CHECKPOINT, lora=adapter)
    same(different.engine.model.state_dict(), engine.model.state_dict())
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v * 2 for k, v in weights.items()}, adapter / "adapter_model.safetensors")
    session.load(adapter)
    assert session.engine is not engine
    session.unload()
    plain.unload()


def test_a_server_takes_the_adapter_of_the_model_in_use(adapter, run):
    model = golden.CHECKPOINT
    run(f"%glm4v load {model} --lora {adapter} --gpus cpu")
    try:
        others = "%glm4v serve --engine vllm --print"
        screen = run(others, fails=True)
        assert f"{model} was loaded with --lora {adapter}, which is of our own server." in screen
        assert f"Take --engine own, or name {model} in the line, without it." in screen
        assert f"--lora {adapter}" in run(others.replace("vllm", "own"))
        assert f"vllm serve {model} " in run(others.replace("serve", f"serve {model}"))
    finally:
        run("%glm4v unload")
        run("%glm4v load demo")


def test_what_a_server_could_not_load_is_not_printed(native, adapter, run, tmp_path):
    ours = "%glm4v serve {} --engine own --print"
    other = shutil.copytree(native("glm46v"), tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "qwen2_vl"}))
    alone = shutil.copytree(adapter, tmp_path / "alone")
    edit(alone, base_model_name_or_path="/nowhere/base")
    assert "of type 'qwen2_vl'" in run(ours.format(other), fails=True)
    assert "was trained on '/nowhere/base'" in run(ours.format(alone), fails=True)
    edit(alone, base_model_name_or_path="someone/GLM-4.1V-9B-tuned")
    assert f"server {alone}" in run(ours.format(alone))  # whose base a load downloads
    assert "--base /there" in run(ours.format(f"{alone} --base /there"))  # of another machine
    assert f"demo --lora {tmp_path / 'c'}" in run(ours.format(f"demo --lora {tmp_path / 'c'}"))
    for file in ("config.json", "model.safetensors"):
        assert "Give the folder" in run(ours.format(native("glm46v") / file), fails=True)
    assert "server somebody/else" in run(ours.format("somebody/else"))


def test_other_engines_take_no_adapter_for_a_model(native, run, tmp_path):
    base, adapter, merged = native("glm46v"), tmp_path / "adapter", tmp_path / "merged"
    model = AutoModelForImageTextToText.from_pretrained(base)
    adapted = peft.PeftModel(model, peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(adapter)
    edit(adapter, base_model_name_or_path=str(base))
    for engine, called in (("vllm", "vLLM"), ("sglang", "SGLang")):
        line = f"%glm4v serve {adapter} --engine {engine} --gpus 1x8GiB --print"
        screen = run(line, fails=True)
        assert f"{adapter} is an adapter, which {called} does not take for a model." in screen
        assert "Take --engine own, or merge it into its base (merge_and_unload of peft)" in screen
    assert f"server {adapter}" in run(f"%glm4v serve {adapter} --engine own --print")
    adapted.merge_and_unload().save_pretrained(merged)
    for file in {file.name for file in base.iterdir()} - {file.name for file in merged.iterdir()}:
        shutil.copy(base / file, merged)
    assert f"vllm serve {merged}" in run(
        line.replace(str(adapter), str(merged)).replace("sglang", "vllm")
    )
    resolve(merged).require_usable()


def test_a_plan_keeps_what_its_model_is_made_of(adapter, run, shell, tmp_path):
    file = tmp_path / "plan.json"
    line = f"made = %glm4v plan {golden.CHECKPOINT} --lora {adapter} --gpus 2x1GiB --save {file}"
    run(line)
    made = shell.user_ns["made"]
    assert made.made_of == (("lora", str(adapter)),)
    assert read_given(file) == made
    run("%glm4v load demo --gpus cpu")
    with VirtualGPUs("2x1GiB"):
        for given in (made, file):
            session = Session().load(device_map=given, lora=None, base=None)
            assert any("is merged into" in note for note in session.status().info.notes)
            assert session.plan.made_of == made.made_of
            session.unload()
        for given in ("made", file):
            run(f"%glm4v load --map {given}")
            assert "is merged into" in (said := run("%glm4v status"))
            assert str(golden.CHECKPOINT) in said
            run("%glm4v load demo --gpus cpu")
            run(f"%glm4v load {golden.CHECKPOINT} --map {given}")
            assert "is merged into" in run("%glm4v status")
            assert f"--lora {adapter}" in run(f"%glm4v serve --map {given} --print")
            run("%glm4v load demo --gpus cpu")
    assert str(golden.CHECKPOINT) in run(f"%glm4v check --map {file} --gpus 2x1GiB")
    again = f"%glm4v check --map {file} --gpus 2x1GiB --base {golden.CHECKPOINT}"
    assert str(golden.CHECKPOINT) in run(again)  # its base is what it is merged into
    shutil.rmtree(adapter)
    assert "adapter" in run(f"%glm4v check --map {file} --gpus 2x1GiB", fails=True)
    changed = file.read_text().replace('"lora"', '"lora_"')
    file.write_text(changed)
    with pytest.raises(DeviceMapError, match="made_of"):
        read_given(file)


def test_a_plan_refuses_another_base_however_its_adapter_is_called(
    adapter, run, tmp_path, monkeypatch
):
    moved = shutil.copytree(golden.CHECKPOINT, tmp_path / "moved")
    run(f"made = %glm4v plan {adapter} --base {golden.CHECKPOINT} --gpus 2x1GiB")
    monkeypatch.chdir(adapter.parent)
    for named in (adapter, f"./{adapter.name}"):
        check = f"%glm4v check {named} --gpus 2x1GiB --map made"
        said = f"--base is {moved}, but the plan was made with {golden.CHECKPOINT}."
        assert said in run(f"{check} --base {moved}", fails=True)
        for base in (golden.CHECKPOINT, os.path.relpath(golden.CHECKPOINT)):
            run(f"{check} --base {base}")
    run(f"%glm4v check {moved} --gpus 2x1GiB --map made")  # the base of another model


def test_a_plan_with_an_adapter_on_lines_that_name_the_model(adapter, run, tmp_path, monkeypatch):
    file, moved = tmp_path / "plan.json", tmp_path / "moved"
    shutil.copytree(golden.CHECKPOINT, moved)
    other = shutil.copytree(adapter, tmp_path / "other")
    run(f"%glm4v plan {golden.CHECKPOINT} --lora {adapter} --gpus 2x1GiB --save {file}")
    monkeypatch.chdir(golden.CHECKPOINT.parent)
    named = f"./{golden.CHECKPOINT.name}"  # as its folder is called from here
    with VirtualGPUs("2x1GiB"):
        session = Session().load(named, device_map=file)
        assert any("is merged into" in note for note in session.status().info.notes)
        given = f"{named} --lora {other}"
        for line in (f"load {given}", f"check {given} --gpus 2x1GiB"):
            said = run(f"%glm4v {line} --map {file}", fails=True)
            assert f"--lora is {other}, but the plan was made with {adapter}." in said
            assert "Leave it out, or make a new plan." in said
        run(f"%glm4v load {named} --map {file}")  # as said
        run(f"again = %glm4v plan {named} --lora {other} --gpus 2x1GiB")
        run(f"%glm4v load {named} --lora {other} --map again")
        assert f"the adapter {other} (LORA) is merged" in run("%glm4v status")
        # The folder of another copy may hold what the adapter is merged into already.
        said = run(f"%glm4v load {moved} --map {file}") + run("%glm4v status")
        assert f"The plan was made for {golden.CHECKPOINT} and the adapter {adapter}" in said
        assert "is merged into" not in said
        run(f"%glm4v load {moved} --map {file} --lora {adapter}")
        said = run("%glm4v status")
        assert "is merged into" in said
        run(f"%glm4v plan {adapter} --gpus 2x1GiB --save {tmp_path / 'alone.json'}")
        run(f"%glm4v load {named} --map {tmp_path / 'alone.json'}")
        assert f"The plan was made for {adapter}" in run("%glm4v status")
        run(f"%glm4v load {adapter} --map {tmp_path / 'alone.json'}")
        assert "The plan was made" not in run("%glm4v status")
    run("%glm4v load demo --gpus cpu")
    run(f"%glm4v check {named} --map {file} --gpus 2x1GiB")
    assert f"--lora {adapter}" in run(f"%glm4v serve {named} --map {file} --print")
    command = run(f"%glm4v serve {moved} --map {file} --print").splitlines()[0]
    assert "--lora" not in command


def test_weights_of_an_adapter_in_a_pickle_and_with_its_name(adapter):
    expected = resolve(adapter).load(dtype=torch.float32).model.state_dict()
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    file.unlink()
    named = {f"module.{k.replace('.weight', '.default.weight')}": v for k, v in weights.items()}
    torch.save(named, adapter / "adapter_model.bin")
    same(resolve(adapter).load(dtype=torch.float32).model.state_dict(), expected)


def test_half_merged_weights_with_their_configuration(adapter, tmp_path):
    expected = resolve(adapter).load(dtype=torch.float32).model.state_dict()
    half = shutil.copytree(golden.CHECKPOINT, tmp_path / "half")
    weights = load_file(half / "model.safetensors")
    parts = load_file(adapter / "adapter_model.safetensors")
    renamed = {
        "base_model.model." + name.replace("query_key_value.", "query_key_value.base_layer."): each
        for name, each in weights.items()
    }
    parts = {name.replace(".weight", ".default.weight"): each for name, each in parts.items()}
    save_file({**renamed, **parts}, half / "model.safetensors")
    shutil.copy(adapter / "adapter_config.json", half)
    same(resolve(half).load(dtype=torch.float32).model.state_dict(), expected)
    edit(half, r=3)
    with pytest.raises(CheckpointError, match="size mismatch"):
        architecture(half)


def thin(folder, part):
    """Take one part of a layer out of an adapter's weights."""
    file = folder / "adapter_model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if f"layers.1.{MODULE}.{part}" not in k}
    save_file(kept, file)


def recast(folder, dtype):
    file = folder / "adapter_model.safetensors"
    save_file({k: v.to(dtype) for k, v in load_file(file).items()}, file)


MODULE = "self_attention.query_key_value"
BROKEN = {
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), "but no adapter_model"),
    "cut short": (
        lambda a: (a / "adapter_model.safetensors").write_bytes(b"\x01"),
        "is not a safetensors file",
    ),
    "no JSON": (lambda a: (a / "adapter_config.json").write_text("{"), "is not valid JSON"),
    "no kind": (lambda a: (a / "adapter_config.json").write_text("{}"), "lacks 'peft_type'"),
    "prompts": (lambda a: edit(a, peft_type="PROMPT_TUNING"), "PROMPT_TUNING', which cannot be"),
    "biases": (lambda a: edit(a, lora_bias=True), "biases of its own"),
    "experts": (lambda a: edit(a, target_parameters=["mlp.experts.w"]), "matrices of experts"),
    "no base": (lambda a: edit(a, base_model_name_or_path=None), "does not say which model"),
    "base away": (lambda a: edit(a, base_model_name_or_path="/x/y"), "'/x/y', which is not here"),
    "odd base": (lambda a: edit(a, base_model_name_or_path=3), "has 3 for 'base_model"),
    "base is an adapter": (
        lambda a: edit(a, base_model_name_or_path=str(a)),
        "is an adapter itself",
    ),
    "a huge rank": (lambda a: edit(a, r=10**9), "has 1000000000 for 'r'"),
    "odd tokens": (
        lambda a: edit(a, trainable_token_indices={"embed_tokens": ["x"]}),
        "trainable_token_indices",
    ),
    "huge ranks": (lambda a: edit(a, rank_pattern={"x": 10**9}), "'rank_pattern.x'"),
    "what weights begin with": (lambda a: edit(a, init_lora_weights=5), "has 5 for 'init_lora"),
    "no alpha": (lambda a: edit(a, lora_alpha=None), "has null for 'lora_alpha'"),
    "no finite alpha": (lambda a: edit(a, lora_alpha=float("inf")), "has inf for 'lora_alpha'"),
    "no pattern of alphas": (lambda a: edit(a, alpha_pattern={"(": 0}), "peft cannot merge"),
    "odd alphas": (lambda a: edit(a, alpha_pattern={"x": float("nan")}), "'alpha_pattern.x'"),
    "no lora_A": (lambda a: thin(a, "lora_A"), "The adapter has no transformer.encoder.layers.1."),
    "no lora_B": (
        lambda a: thin(a, "lora_B"),
        "layers.1.self_attention.query_key_value.lora_B.weight.",
    ),
    "whole numbers": (
        lambda a: recast(a, torch.int32),
        "is of dtype I32, which adapters are not trained in",
    ),
    "odd ranks": (lambda a: edit(a, use_rslora=float("nan")), "has nan for 'use_rslora'"),
    "tokens without weights": (
        lambda a: edit(a, trainable_token_indices=[1, 2]),
        "names single tokens that were trained",
    ),
    "tokens beyond": (
        lambda a: edit(a, trainable_token_indices=[1, 99999]),
        "changes token 99999, which is beyond",
    ),
    "another rank": (lambda a: edit(a, r=2), "[8, 64]) from checkpoint, the shape in current"),
    "other ranks of a layer": (
        lambda a: edit(a, rank_pattern={"layers.2.self_attention.query_key_value": 2}),
        "merge transformer.encoder.layers.2.",
    ),
    "other modules": (lambda a: edit(a, target_modules=["x"]), "{'x'} not found in the base"),
    "other modules in brackets": (lambda a: edit(a, target_modules="("), "unterminated subpattern"),
    "no modules": (lambda a: edit(a, target_modules=5), "'int' object is not iterable"),
    "odd biases": (lambda a: edit(a, bias="weird"), "bias: weird, is not implemented"),
    "a huge alpha": (lambda a: edit(a, lora_alpha=1e308), "less than or equal to 16777216"),
    "from random numbers": (
        lambda a: edit(a, init_lora_weights="pissa_niter_4"),
        "init_lora_weights 'pissa_niter_4'",
    ),
    "from a GPU": (lambda a: edit(a, init_lora_weights="loftq"), "init_lora_weights 'loftq'"),
    "from samples": (lambda a: edit(a, init_lora_weights="corda"), "init_lora_weights 'corda'"),
    "not finite": (lambda a: scale(a, float("nan")), "lora_A.weight that are not finite"),
    "for some prompts": (lambda a: edit(a, alora_invocation_tokens=[3]), "acts after some tokens"),
    "a router": (
        lambda a: edit(a, arrow_config={"top_k": 1}),
        "describes a router of several adapters (arrow_config), which cannot be merged",
    ),
    "means": (lambda a: edit(a, use_qalora=True), "means over its inputs (use_qalora)"),
    "a module that holds others": (
        lambda a: edit(a, target_modules=["query_key_value", "self_attention"]),
        "query_key_value: its target_modules name self_attention, which holds layers and is not "
        "one itself.",
    ),
    "of a cut base": (lambda a: edit(a, kasa_config={"a": 1}), "with a cut base (kasa_config)"),
    "another kind": (lambda a: edit(a, peft_type="OFT", r=0), "of kind 'OFT', which is not merged"),
    "huge weights": (lambda a: scale(a, 1e25), "has values that are not finite"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_adapters_are_one_line(adapter, how):
    spoil, said = BROKEN[how]
    spoil(adapter)
    with pytest.raises(CheckpointError) as caught:
        resolve(adapter).require_usable()  # before a model that is there is released
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError) as by_plan:
        architecture(adapter)
    assert str(by_plan.value) == str(caught.value)


PUT_RIGHT = {
    "It comes with the adapter; copy or download it again.": "no weights",
    "Is this the folder of an adapter that peft has saved?": "no kind",
    "Was it saved as a whole?": "no lora_B",
    "Is it an adapter of another model?": "tokens beyond",
    "Do its adapter_config.json and its weights belong together?": "another rank",
    "Are its lora_alpha and its weights as they were trained?": "huge weights",
}
"""What is advised, and for which of `BROKEN`."""


@pytest.mark.parametrize("advice", PUT_RIGHT)
def test_an_adapter_as_it_was_saved_is_merged(adapter, saved, advice):
    spoil, _ = BROKEN[PUT_RIGHT[advice]]
    spoil(adapter)
    with pytest.raises(CheckpointError) as caught:
        resolve(adapter).require_usable()
    assert caught.value.hint == advice
    shutil.copytree(saved, adapter, dirs_exist_ok=True)
    resolve(adapter).require_usable()


def test_an_adapter_is_merged_into_the_model_that_it_is_of(adapter, native):
    said = "Is it an adapter of another model?"
    with pytest.raises(CheckpointError, match=re.escape(said)):
        resolve(adapter, base=native("glm4v"))
    resolve(adapter, base=golden.CHECKPOINT).require_usable()


def test_adapters_that_peft_alone_merges_are_merged_there(native, tmp_path):
    base, config = native("glm4v"), peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4)
    merged = trained(base, config, tmp_path / "a")
    said = "Merge it with peft where it was trained (merge_and_unload), and save the result."
    for lora in ({}, {"lora": tmp_path / "a"}):
        with pytest.raises(CheckpointError, match=re.escape(said)):
            resolve(base if lora else tmp_path / "a", **lora)
    whole = full(base, torch.float32)
    whole.load_state_dict(merged)
    whole.save_pretrained(shutil.copytree(base, tmp_path / "merged"))
    same(resolve(tmp_path / "merged").load(dtype=torch.float32).model.state_dict(), merged)


def test_two_adapters_are_merged_one_after_the_other(native, tmp_path):
    base, first, then = native("glm4v"), tmp_path / "first", tmp_path / "then"
    merged = trained(base, peft.LoraConfig(target_modules=["q_proj"]), first)
    trained(base, peft.LoraConfig(target_modules=["o_proj"]), then)
    edit(then, base_model_name_or_path=str(first))
    said = "Merge them one after the other with peft (merge_and_unload)."
    with pytest.raises(CheckpointError, match=re.escape(said)):
        resolve(then)
    whole = full(base, torch.float32)
    whole.load_state_dict(merged)
    whole.save_pretrained(shutil.copytree(base, tmp_path / "merged"))
    whole = peft.PeftModel.from_pretrained(full(tmp_path / "merged", torch.float32), then)
    expected = whole.merge_and_unload().state_dict()
    found = resolve(then, base=tmp_path / "merged").load(dtype=torch.float32)
    same(found.model.state_dict(), expected)


def test_the_folder_of_an_adapter_is_given(adapter):
    said = "Give the folder that peft has saved the adapter in."
    with pytest.raises(CheckpointError, match=re.escape(said)):
        resolve(golden.CHECKPOINT, lora=golden.SHARDED)
    resolve(golden.CHECKPOINT, lora=adapter).require_usable()


@pytest.mark.parametrize("instead", ["nothing", "a link to nothing", "a folder", "a pipe"])
def test_an_adapter_without_its_configuration_is_named_as_one(adapter, instead):
    file = adapter / "adapter_config.json"
    config = file.read_bytes()
    file.unlink()
    if instead == "a link to nothing":
        file.symlink_to("gone.json")
    elif instead == "a folder":
        file.mkdir()
    elif instead == "a pipe":
        os.mkfifo(file)
    said = (
        f"{adapter} holds the weights of an adapter, adapter_model.safetensors, but no "
        "adapter_config.json. Give the folder that peft has saved the adapter in."
    )
    refused_by_all(adapter, said)
    shutil.copytree(adapter, saved := adapter.parent / "saved", ignore=lambda *_: [file.name])
    (saved / file.name).write_bytes(config)
    assert resolve(saved).tensors


def test_an_adapter_beside_whole_weights_is_said_to_be_left_out(adapter):
    whole = shutil.copytree(golden.CHECKPOINT, adapter.parent / "whole")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, whole)
    said = (
        "adapter_model.safetensors is left out: whole weights are beside it, into which it may be "
        "merged"
    )
    plain = resolve(golden.CHECKPOINT).load(dtype=torch.float32)
    found = resolve(whole).load(dtype=torch.float32)
    assert (said in found.notes, said in plain.notes) == (True, False)
    same(found.model.state_dict(), plain.model.state_dict())
    merged = resolve(whole, lora=whole).load(dtype=torch.float32)
    other = resolve(whole, lora=adapter).load(dtype=torch.float32)
    assert (said in merged.notes, said in other.notes) == (False, True)
    same(merged.model.state_dict(), resolve(adapter).load(dtype=torch.float32).model.state_dict())
    (whole / "adapter_config.json").unlink()  # a file that nothing says anything of
    assert said not in resolve(whole).load(dtype=torch.float32).notes


def test_an_adapter_whose_weights_are_parts_of_deepspeed(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        resolve(adapter)
    (adapter / "zero_to_fp32.py").write_text("")
    with pytest.raises(CheckpointError, match=rf"cd {adapter} && python zero_to_fp32\.py"):
        resolve(adapter)


@pytest.mark.parametrize("steps", [["mine"], ["checkpoint-1", "checkpoint-2"]])
def test_the_folder_around_those_of_adapters_is_refused_with_their_names(adapter, steps):
    out = adapter.parent / "out"
    for step in steps:
        shutil.copytree(adapter, out / step)
    folders = "1 folder" if len(steps) == 1 else "2 folders"
    said = f"{out} holds no adapter_config.json, but {folders} with one: {', '.join(steps)}. Give"
    for look in (lambda: resolve(golden.CHECKPOINT, lora=out), lambda: resolve(out)):
        with pytest.raises(CheckpointError) as caught:
            look()
        assert str(caught.value) == f"{said} one of them."
    assert resolve(golden.CHECKPOINT, lora=out / steps[0]).tensors


def test_weights_that_are_not_merged_are_saved_apart_or_merged(native, tmp_path):
    base, config = native("glm4v"), peft.LoraConfig(target_modules=["q_proj"])
    model = peft.get_peft_model(full(base, torch.float32), config)
    shutil.copytree(base, tmp_path / "c")
    save_file(model.state_dict(), tmp_path / "c" / "model.safetensors", metadata={"format": "pt"})
    said = "Save the adapter by itself (save_pretrained of peft), or merge it first."
    with pytest.raises(CheckpointError, match=re.escape(said)):
        resolve(tmp_path / "c")
    model.save_pretrained(tmp_path / "a")
    assert resolve(base, lora=tmp_path / "a").tensors
    model.merge_and_unload().save_pretrained(tmp_path / "c")
    assert resolve(tmp_path / "c").tensors


DAMAGED = {
    "a template that is no template": (
        "chat_template.jinja", "{% for x in %}", "The chat template of {} cannot be rendered: ",
    ),
    "a template of nothing": (
        "chat_template.jinja", "hello", "The chat template of {} does not write the question.",
    ),
    "a configuration that was cut short": (
        "tokenizer_config.json", '{"a": ', "{}/tokenizer_config.json is not valid JSON",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_tokenizer_of_an_adapter_is_told_as_its_own(native, tmp_path, damage):
    base, adapter = native("glm46v"), tmp_path / "a"
    trained(base, peft.LoraConfig(r=2, target_modules=["q_proj"]), adapter)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, adapter)
    resolve(adapter).require_usable()
    name, content, said = DAMAGED[damage]
    (adapter / name).write_text(content)
    for found in (resolve(adapter), resolve(base, lora=adapter)):
        with pytest.raises(CheckpointError, match=re.escape(said.format(adapter))):
            found.require_usable()
    (adapter / name).unlink()
    resolve(adapter).require_usable()  # by what is in the base


def test_doctor_says_what_load_says(adapter):
    edit(adapter, r=3)
    with pytest.raises(CheckpointError) as caught:
        Session().load(adapter)
    assert gather((), model=str(adapter)).fault == caught.value.text


def scale(folder, factor):
    """Multiply all weights of an adapter."""
    file = folder / "adapter_model.safetensors"
    save_file({k: v * factor for k, v in load_file(file).items()}, file)


def test_an_adapter_with_which_float16_is_too_small(adapter):
    scale(adapter, 1e4)
    resolve(adapter).require_usable()
    with pytest.raises(CheckpointError, match="beyond the 65,504 of float16") as caught:
        resolve(adapter).load(dtype=torch.float16)
    assert caught.value.hint == "Load it in another dtype: bfloat16 or float32."
    for dtype in ("bfloat16", "float32"):
        assert resolve(adapter).load(dtype=getattr(torch, dtype)).model


def test_an_adapter_of_another_base_says_so(adapter, tmp_path):
    other = shutil.copytree(golden.CHECKPOINT, tmp_path / "mine")
    said = "the adapter says that it was trained on"
    for found in (resolve(other, lora=adapter), resolve(adapter, base=other)):
        assert any(said in note for note in found.load(dtype=torch.float32).notes)
    for found in (resolve(golden.CHECKPOINT, lora=adapter), resolve(adapter)):
        assert not any(said in note for note in found.load(dtype=torch.float32).notes)


def test_an_adapter_that_is_not_there():
    with pytest.raises(CheckpointError, match="There is no adapter '/nope'") as caught:
        resolve(golden.CHECKPOINT, lora="/nope")
    assert "demo" not in str(caught.value)


def test_values_that_are_not_finite(adapter):
    scale(adapter, float("nan"))
    with pytest.raises(CheckpointError, match=r"lora_A.* that are not finite"):
        resolve(adapter).load(dtype=torch.float32)
    session = Session().load(golden.CHECKPOINT)
    with pytest.raises(CheckpointError, match=r"lora_A.* that are not finite"):
        session.load(adapter)
    assert session.engine is not None


def test_an_earlier_step_is_taken_and_an_adapter_saved_again(adapter, saved):
    shutil.copytree(saved, adapter / "checkpoint-500")
    scale(adapter, float("nan"))
    session = Session()
    with pytest.raises(CheckpointError) as caught:
        session.load(adapter)
    assert caught.value.hint == "Its training went astray: take an earlier step of it."
    assert session.load(adapter / "checkpoint-500").engine
    session.unload()
    shutil.copy(saved / "adapter_model.safetensors", adapter)
    recast(adapter, torch.int32)
    with pytest.raises(CheckpointError) as caught:
        session.load(adapter)
    assert caught.value.hint == "Is the file damaged? Save the adapter again."
    model = resolve(golden.CHECKPOINT).load(dtype=torch.float32).model
    peft.PeftModel(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    edit(adapter, base_model_name_or_path=str(golden.CHECKPOINT))
    assert session.load(adapter).engine
    session.unload()


def test_tokens_that_the_base_does_not_have(native, tmp_path):
    tokens = {"trainable_token_indices": {"embed_tokens": [3, 5]}}
    config = peft.LoraConfig(target_modules=["q_proj"], **tokens)
    peft.get_peft_model(full(native("glm4v"), torch.float32), config).save_pretrained(tmp_path)
    given = {"base_model_name_or_path": str(native("glm4v"))}
    edit(tmp_path, **given, trainable_token_indices={"embed_tokens": [3, 9999]})
    for look in (resolve, architecture):
        with pytest.raises(CheckpointError, match="token 9999, which is beyond the 336 of its"):
            look(tmp_path)


def test_adapters_of_other_models(adapter, native, tmp_path):
    with pytest.raises(CheckpointError, match="that its base does not have, for example transf"):
        resolve(native("glm4v"), lora=adapter)
    of_our_modules(tmp_path / "b", ["q_proj"])
    with pytest.raises(CheckpointError, match=r"shape .* does not suit that of its base"):
        resolve(tmp_path / "b", base=wider(tmp_path))


def test_a_whole_module_of_another_size(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.transformer.encoder.layers.0.self_attention.dense.weight"
    save_file({**weights, name: torch.zeros(3, 64)}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"shape \[3, 64\], which does not suit"):
        resolve(adapter)


def wider(tmp_path):
    """A checkpoint of the same kind with twice as many heads."""
    folder = shutil.copytree(golden.CHECKPOINT, tmp_path / "wider")
    config = json.loads((folder / "config.json").read_text())
    config["num_attention_heads"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    for name, shape in layout.weight_shapes(config).items():
        if weights[name].shape != shape:
            weights[name] = torch.zeros(shape)
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"base": golden.CHECKPOINT},
            r"could be merged into .*\. An adapter for it is given with lora=\"FOLDER\"\.",
        ),
        ({"base": "a\nb"}, r"is not an adapter that could be merged into a\\nb\."),
        ({"lora": golden.CHECKPOINT}, "is not an adapter: it holds no adapter_config.json"),
        ({"lora": "/nowhere"}, "There is no adapter '/nowhere'"),
    ],
)
def test_options_without_meaning(given, said):
    with pytest.raises((OptionError, CheckpointError), match=said):
        resolve(golden.CHECKPOINT, **given)
    with pytest.raises((OptionError, CheckpointError), match=said):
        architecture(golden.CHECKPOINT, **given)


@pytest.mark.parametrize(
    ("trained_on", "base"),
    [
        ("/data/models/ZhipuAI/glm-4v-9b/", "GLM-4V-9B"),
        (r"D:\models\GLM-4.1V-9B-Base", "GLM-4.1V-9B-Base"),
        ("somebody/glm4.1v-9b-thinking-bnb-4bit", "GLM-4.1V-9B-Thinking"),
        ("zai-org/GLM-4.5V-FP8", "GLM-4.5V"),  # by which a plan finds sizes
        ("https://huggingface.co/somebody/glm-4v-9b-chat/tree/main", "GLM-4V-9B"),
        ("/data/glm-4v-9bis", "FOLDER"),
        ("/data/base", "FOLDER"),
    ],
)
def test_a_base_of_another_machine_is_known_by_its_name(adapter, trained_on, base):
    edit(adapter, base_model_name_or_path=trained_on)
    with pytest.raises(CheckpointError, match=f'which is not here. .*base="{base}"'):
        resolve(adapter)


def looks(adapter, **options):
    """Ways to an adapter of which each needs its base."""
    return (
        lambda: resolve(adapter, **options),
        lambda: architecture(adapter, **options),
        lambda: gather((), model=str(adapter), **options),
        lambda: Session().load(adapter, **options),
    )


def test_a_base_that_is_not_there_is_said_of_the_base(adapter, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(adapter / "hub"))
    wanted = f"The adapter {adapter} is to be merged into"
    for base in ("nowhere", str(adapter.parent / "gone"), "me/nothing"):
        for look in looks(adapter, base=base):
            with pytest.raises(CheckpointError, match=f"^{wanted} '{base}'(, which is not here|:)"):
                look()
    wanted = f"The adapter {adapter} was trained on"
    for base in ("nowhere", str(adapter.parent / "gone"), "me/nothing", "zai-org/GLM-4.5V-FP8"):
        edit(adapter, base_model_name_or_path=base)
        for look in looks(adapter):
            with pytest.raises(CheckpointError, match=rf"^{wanted} '{base}'.* base=\"") as caught:
                look()
            assert "\n" not in str(caught.value)
            assert f'base="{base}"' not in str(caught.value)  # which would say the same again
    edit(adapter, base_model_name_or_path="GLM-4V-9B")
    with pytest.raises(CheckpointError, match=r'HF_HUB_OFFLINE is set\. Say .*: base="FOLDER"\.'):
        Session().load(adapter)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("empty", r"config\.json cannot be read: .*base=\"FOLDER\"\. Is this the folder"),
        ("broken", r"config\.json is not valid JSON.*base=\"FOLDER\"\. The file is damaged"),
        ("broken/config.json", r"is a file\. Say where its base is"),
        ("http://127.0.0.1:1/v1", r"is a server: .*\. Say where its base is: base=\"FOLDER\"\."),
    ],
)
def test_a_base_that_is_of_no_use_is_said_of_the_adapter(adapter, tmp_path, base, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    base = base if ":" in base else str(tmp_path / base)
    edit(adapter, base_model_name_or_path=base)
    for look in looks(adapter):
        with pytest.raises(
            (CheckpointError, OptionError), match=f"was trained on '{base}': .*{said}"
        ):
            look()
        assert looks(adapter, base=golden.CHECKPOINT)[0]()


def test_doctor_says_the_whole_advice(adapter, tmp_path):
    (tmp_path / "cut").mkdir()
    shutil.copy(golden.CHECKPOINT / "config.json", tmp_path / "cut")
    edit(adapter, base_model_name_or_path=str(tmp_path / "cut"))
    facts = gather((), model=str(adapter))  # a plan needs no weights
    (found,) = (each for each in diagnose(facts) if each.subject == "checkpoint")
    assert "cut holds no weights" in worded(found.reason, CELL)
    assert worded(found.next_step, CELL).startswith(
        "Say where its base is: --base FOLDER. Download"
    )
    based = diagnose(gather((), model=str(adapter), base=str(golden.CHECKPOINT)))
    assert "fail" not in {each.verdict for each in based if each.subject == "checkpoint"}
    assert Session().load(adapter, base=golden.CHECKPOINT).engine


def test_the_revision_of_the_base_is_that_of_the_training(adapter, monkeypatch):
    root = adapter.parent / "hub" / "models--me--base"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root.parent))
    (root / "refs").mkdir(parents=True)
    for name, commit in (("main", "0" * 40), ("v1", "1" * 40)):
        (root / "refs" / name).write_text(commit)
        shutil.copytree(golden.CHECKPOINT, root / "snapshots" / commit)
    page = "https://huggingface.co/me/base"
    for base, revision, commit in (
        ("me/base", None, "0"),
        ("me/base", "v1", "1"),
        ("me/base", "master", "0"),
        (page, None, "0"),
        (f"{page}/tree/v1", None, "1"),
        (f"{page}/tree/v1", "main", "1"),
    ):
        edit(adapter, base_model_name_or_path=base, revision=revision)
        assert resolve(adapter).folder.name == commit * 40
    edit(adapter, base_model_name_or_path="me/base", revision="v2")
    said = (
        f"The adapter {adapter} was trained on 'me/base' in the revision v2, which is not here; "
        'another one is. Say where its base is: base="me/base".'
    )
    refused_by_all(adapter, said)
    edit(adapter, base_model_name_or_path="me/base", revision="v1")
    assert resolve(adapter, base="me/base").folder.name == "0" * 40
    edit(adapter, base_model_name_or_path=str(golden.CHECKPOINT), revision="v1")
    assert resolve(adapter).folder == golden.CHECKPOINT  # a folder has none


ELSEWHERE = {
    "/home/me/.cache/huggingface/hub/models--me--My-GLM-4.1V/snapshots/" + "1" * 40: "1",
    "/home/me/.cache/huggingface/hub/models--me--My-GLM-4.1V/snapshots/" + "2" * 40: "0",
    r"C:\Users\me\hub\models--me--My-GLM-4.1V\snapshots\main": "0",
    "/mnt/workspace/.cache/modelscope/hub/models/me/My-GLM-4___1V": "0",
    "/mnt/workspace/.cache/modelscope/hub/me/My-GLM-4.1V/": "0",
    "/mnt/workspace/.cache/modelscope/models/me--My-GLM-4.1V/snapshots/master": "0",
    "/mnt/workspace/.cache/modelscope/models/me--My-GLM-4.1V": "0",
    "/data/cache/models/me--My-GLM-4.1V/snapshots/master": "0",
}


@pytest.mark.parametrize(("base", "commit"), ELSEWHERE.items())
def test_a_base_in_the_cache_of_another_machine_is_found_in_the_cache_here(
    adapter, monkeypatch, base, commit
):
    root = adapter.parent / "hub" / "models--me--My-GLM-4.1V"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root.parent))
    edit(adapter, base_model_name_or_path=base)
    with pytest.raises(CheckpointError, match=r"which is not here\. .*base=\"FOLDER\""):
        resolve(adapter)
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    for each in "01":
        shutil.copytree(golden.CHECKPOINT, root / "snapshots" / (each * 40))
    found = resolve(adapter)
    assert found.folder.name == commit * 40
    assert architecture(adapter).shape().max_context == 256
    facts = gather((), model=str(adapter))
    assert (facts.is_here, facts.fault) == (True, None)
    noted = "trained on" in " ".join(map(str, found.load(dtype=torch.float32).notes))
    assert noted is ("2" * 40 in base)


@pytest.mark.parametrize(
    "path",
    [
        "/x/y",
        "me/My-GLM",
        "/data/modelscope/me/c",
        "models--a",
        "/x/models--me--b/c/d",
        "/home/me/models/chat--v2",
        "models/team--glm-4v-9b",
        "/x/modelscope/hub/models/foo",
        "/x/modelscope/hub/models/foo/",
        "/x/modelscope/models/models/foo",
    ],
)
def test_other_paths_are_of_no_cache(path):
    assert cached_elsewhere(path) is None


def test_a_base_beside_the_adapter_or_relative_to_it(adapter):
    shutil.copytree(golden.CHECKPOINT, adapter.parent / "base")
    shutil.copytree(golden.CHECKPOINT, adapter / "own")
    for base, folder in (("base", "base"), ("../base", "base"), ("own", "a/own")):
        edit(adapter, base_model_name_or_path=base)
        assert resolve(adapter).folder.samefile(adapter.parent / folder)


def test_nothing_else_is_said(adapter):
    code = f"import glm4v_magic; glm4v_magic.load({str(adapter)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.strip().endswith("(LORA) is merged into 8 modules.")
    assert len(done.stderr.splitlines()) == 1


def test_two_adapters_are_refused(adapter):
    advice = r"only one is merged\. Leave lora out, or name the model that both are for\."
    with pytest.raises(OptionError, match=advice):
        resolve(adapter, lora=adapter)
    assert resolve(adapter).tensors
    assert resolve(golden.CHECKPOINT, lora=adapter).tensors


def test_a_base_is_not_given_for_a_model(adapter):
    with pytest.raises(OptionError, match=r"An adapter for it is given with lora=\"FOLDER\"\."):
        resolve(golden.CHECKPOINT, base=golden.CHECKPOINT)
    assert resolve(golden.CHECKPOINT, lora=adapter).tensors


def test_without_peft_the_extra_is_named_before_anything_is_released(adapter, monkeypatch):
    session = Session().load(golden.CHECKPOINT)
    engine = session.engine
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(OptionError, match=r"pip install 'glm4v_magic\[lora\]'"):
        session.load(adapter)
    assert session.engine is engine
    session.unload()
    assert architecture(adapter).shape().values  # a plan needs none


def test_a_placement_on_the_cpu_by_a_map(adapter):
    expected = resolve(adapter).load(dtype=torch.float32).model.state_dict()
    placed = local.load(resolve(adapter), Placement("float32", {"": "cpu"}))
    same(placed.model.state_dict(), expected)


@pytest.mark.parametrize("way", ["installed", "uninstalled"])
def test_a_package_that_peft_does_not_take(adapter, tmp_path, monkeypatch, way):
    packages = tmp_path / "packages"

    def install(name, version):
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (packages / name / "nn_modules").mkdir(parents=True, exist_ok=True)
        (packages / name / "__init__.py").touch()
        layers = packages / name / "nn_modules" / "qlinear.py"
        layers.write_text("class BaseQuantLinear: pass")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    install("gptqmodel", "5.0.0")
    install("optimum", "1.27.0")
    monkeypatch.syspath_prepend(str(packages))
    kept = [peft.import_utils.is_gptqmodel_available, peft.import_utils.is_optimum_available]
    for each in kept:
        each.cache_clear()
    said = "incompatible version of gptqmodel.* Install the versions that it asks for, or uninstall"
    try:
        with pytest.raises(CheckpointError, match=said):
            resolve(adapter).load(dtype=torch.float32)
        if way == "installed":
            shutil.rmtree(packages / "gptqmodel-5.0.0.dist-info")
            install("gptqmodel", "7.0.0")
        else:
            shutil.rmtree(packages)
        assert resolve(adapter).load(dtype=torch.float32)
    finally:
        for each in kept:
            each.cache_clear()
        for name in [each for each in sys.modules if each.partition(".")[0] == "gptqmodel"]:
            del sys.modules[name]
