"""Configurations alone: found by name, folder or file, built on meta, and the prompts for them."""

from __future__ import annotations

import copy
import json
import math
import shutil

import golden
import pytest
import tiny_glm4v
import tiny_native
import torch
from any_json import changed_somewhere, taken_or_refused
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedConfig
from transformers.models.glm4v.configuration_glm4v import Glm4vTextConfig

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.glm_native.architecture import NativeArchitecture
from glm4v_magic.checkpoints.names import PUBLISHED
from glm4v_magic.core.errors import CheckpointError, OptionError
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.planning.costs import price
from glm4v_magic.session.session import Session

VALUES = {
    "GLM-4V-9B": 13_906_320_896,
    "GLM-4.1V-9B-Thinking": 10_292_777_472,
    "GLM-4.6V-Flash": 10_292_777_472,
    "GLM-4.5V": 107_710_927_360,
    "GLM-4.6V": 107_710_927_360,
    "GLM-OCR": 1_107_405_824,  # of 1,325,258,240 in the file; the rest is its layer 16
    "GLM-5.3-Flash": 313_890_426_878,  # of 321 billion; the rest is layer 45
}


def native(**text):
    config = copy.deepcopy(tiny_glm4v.CONFIG)
    config["text_config"].update(text)
    return config


def experts(**text):
    config = tiny_native.config("glm4v_moe", tiny_native.tokenizer("glm4v_moe"))
    config["text_config"].update(text)
    return config


def written(folder, config):
    path = folder / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def check_units(found, values):
    """Units hold every weight of the meta model once, and name modules that are there."""
    shape = found.shape()
    model = found.build_meta("bfloat16")
    sizes = {weight: tensor.nbytes for weight, tensor in model.named_parameters()}
    assert {tensor.device.type for tensor in model.parameters()} == {"meta"}
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    assert sum(sizes.values()) == 2 * values == 2 * shape.values
    for unit in price(shape, Workload(dtype="bfloat16")):
        inside = [
            weight
            for weight in sizes
            if any(f"{weight}.".startswith(f"{module}.") for module in unit.modules)
        ]
        assert sum(sizes.pop(weight) for weight in inside) == unit.weight_bytes, unit.name
    assert not sizes
    modules = {module for module, _ in model.named_modules()} | {
        w for w, _ in model.named_parameters()
    }
    assert {module for unit in shape.units for module in unit.modules} <= modules
    assert set(shape.vision_modules) <= modules


# Some weights of glm5_next stay in float32: see test_hybrid.
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "GLM-5.3-Flash"])
def test_every_published_model_is_built_and_its_units_are_its_weights(name):
    check_units(architecture(name), VALUES[name])


def test_values_of_the_published_hybrid():
    found = architecture("GLM-5.3-Flash")
    model = found.build_meta("bfloat16")
    assert found.shape().values == model.num_parameters() == VALUES["GLM-5.3-Flash"]
    model_config = model.config
    assert model_config.vision_config.out_hidden_size == model_config.text_config.hidden_size


def test_the_published_hybrid_in_fp8_takes_the_bytes_of_its_files():
    units = price(architecture("GLM-5.3-Flash").shape(), Workload(dtype="bfloat16", fp8=True))
    of_layers = {unit.name: unit.weight_bytes for unit in units}
    # In the files there is layer 45, too: one as layer 43, and a matrix of 4,096 x 8,192.
    files = sum(of_layers.values()) + of_layers["layer.43"] + 2 * 4096 * 8192
    assert files == pytest.approx(305.8 * 2**30, rel=0.001)


def test_the_published_hybrid_may_have_the_sizes_of_linear_attention_apart():
    known = architecture("GLM-5.3-Flash")
    text = {k: v for k, v in known.config["text_config"].items() if not k.startswith("linear_")}
    kinds = ["linear_attention"] * 3 + ["deepseek_sparse_attention"]
    text |= {
        "layer_types": [kinds[at % 4] for at in range(45)],
        "linear_attn_config": {
            "num_heads": 32, "head_dim": 64, "short_conv_kernel_size": 3, "gate_lower_bound": -5.0,
            "kda_layers": [0, 1, 2], "full_attn_layers": [3],
        },
    }  # fmt: skip
    found = type(known)("x", known.config | {"text_config": text}, "config.json")
    assert found.shape().values == found.build_meta("bfloat16").num_parameters()
    assert found.shape().values < known.shape().values
    broken = {**text, "linear_attn_config": {"num_heads": "2"}}
    with pytest.raises(CheckpointError, match="linear_attn_config"):
        type(known)("x", known.config | {"text_config": broken}, "config.json")


def test_modules_that_stay_full_are_found_by_names_of_other_versions():
    known = architecture("GLM-5.3-Flash")

    def in_fp8(*full):
        scheme = known.config["quantization_config"]
        names = ["lm_head", "model.visual", *full]
        changed = {"quantization_config": {**scheme, "modules_to_not_convert": names}}
        found = type(known)("x", known.config | changed, "config.json").shape()
        return {unit.name: unit.fp8_values for unit in found.units}

    linear = [at for at in range(45) if at % 4 != 3]
    full = [at for at in range(45) if at % 4 == 3]
    own = in_fp8(
        *(f"model.language_model.layers.{at}.self_attn.forget_gate" for at in linear),
        *(f"model.language_model.layers.{at}.self_attn.indexer.weights_proj" for at in full),
    )
    published = in_fp8(
        *(f"model.layers.{at}.self_attn.f_{each}_proj" for at in linear for each in "ab"),
        *(f"model.layers.{at}.self_attn.indexers_proj" for at in full),
    )
    assert published == own
    assert own["layer.0"] < in_fp8("self_attn.indexer.weights_proj")["layer.0"]


@pytest.mark.parametrize("kind", [kind for kind in tiny_native.KINDS if kind != "glm5_next"])
def test_units_of_every_model_type_are_its_weights(kind):
    config = tiny_native.config(kind, tiny_native.tokenizer(kind))
    for bias in (True, False):
        config["text_config"]["attention_bias"] = config["vision_config"]["attention_bias"] = bias
        found = NativeArchitecture(kind, config, "config.json")
        values = sum(tensor.numel() for tensor in found.build_meta("float32").parameters())
        check_units(found, values)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("glm-4v-9b", "GLM-4V-9B"),
        ("THUDM/glm-4v-9b", "GLM-4V-9B"),
        ("zai-org/GLM-4.5V", "GLM-4.5V"),
        ("ZhipuAI/glm-4.1v-9b-thinking", "GLM-4.1V-9B-Thinking"),
        ("zai-org/glm-5.3-flash", "GLM-5.3-Flash"),
        ("glm-5.3", "GLM-5.3-Flash"),
    ],
)
def test_published_names_in_any_case_with_or_without_their_owner(typed, name):
    assert architecture(typed).name == name


def test_folders_files_and_the_demo(tmp_path, monkeypatch):
    path = written(tmp_path, native())
    by_folder, by_file = architecture(tmp_path), architecture(str(path))
    assert by_folder.config == by_file.config == native()
    assert (by_folder.name, by_file.name) == (str(tmp_path), str(path))
    assert architecture(golden.CHECKPOINT).shape().max_context == 256
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "GLM-4.5V").mkdir()
    written(tmp_path / "GLM-4.5V", native())
    assert architecture("demo").config["model_type"] == "chatglm"
    assert architecture("GLM-4.5V").config["model_type"] == "glm4v"  # the folder comes first


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("GLM-4.5", "There is no configuration 'GLM-4.5': no such folder or file, and not one of "
         "GLM-4V-9B, GLM-4.1V-9B-Thinking, GLM-4.6V-Flash, GLM-4.5V, GLM-4.6V, "
         "GLM-OCR, GLM-5.3-Flash. Did you mean GLM-4.5V"),
        ("zai-org/glm-4.6v-fp8", "The configuration of GLM-4.6V-FP8 comes with its files only, and "
         "they are not here. Download it and give its folder; GLM-4.6V has the same sizes in "
         "bfloat16"),
        ("someone/GLM-4.5V", "There is no configuration 'someone/GLM-4.5V'"),
        ("dmo", "Did you mean demo?"),
        ("my-tunned", "Did you mean my-tuned?"),  # a folder that is here, as load says, too
        ("there/my-tuned", "There is no configuration 'there/my-tuned'"),
        (".", "config.json cannot be read: No such file or directory."),
    ],
)  # fmt: skip
def test_names_that_are_none(tmp_path, monkeypatch, typed, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-tuned").mkdir()
    with pytest.raises(CheckpointError) as caught:
        architecture(typed)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def without(config, *keys):
    """A configuration that lacks the key at the end of a path."""
    config = copy.deepcopy(config)
    section = config
    for key in keys[:-1]:
        section = section[key]
    del section[keys[-1]]
    return config


NINE_B = json.loads((golden.CHECKPOINT / "config.json").read_text())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, "describes a model of type 'llama' without a vision tower. Known "
         "are chatglm (with a vision_config), glm46v, glm4v, glm4v_moe, glm5_next, glm_ocr, "
         "glmga."),
        ({"model_type": "chatglm"}, "describes a model of type 'chatglm'"),
        ({}, "{path} has no 'model_type', so it does not describe a model. Known are "),
        ({"model_type": "glm4v"}, "{path} lacks 'text_config'. Is this"),
        ([], "{path} is [], not a JSON object"),
        ("{", "is not valid JSON"),
        (without(NINE_B, "num_layers"), "{path} lacks 'num_layers'."),
        (NINE_B | {"hidden_size": True}, "{path} has true for 'hidden_size': it should be"),
        (NINE_B | {"rmsnorm": False}, "{path} has false for 'rmsnorm': it should be true."),
        (NINE_B | {"torch_dtype": "int8"}, "gives the weights the dtype 'int8'; known are b"),
        (without(native(), "vision_config"), "{path} lacks 'vision_config'."),
        (without(native(), "vision_config", "depth"), "{path} lacks 'vision_config.depth'."),
        (without(native(), "text_config", "vocab_size"), "{path} lacks 'text_config.vocab_size'."),
        (without(native(), "image_token_id"), "{path} lacks 'image_token_id'."),
        (native(head_dim="8"), "{path} has '8' for 'text_config.head_dim': it"),
        (native(rope_parameters=1), "{path} has 1 for 'text_config.rope_parameters': it should be"),
        (native(rope_parameters={"partial_rotary_factor": 2}), "has 2 for 'text_config.rope"),
        (native(n_routed_experts=4), "{path} lacks 'text_config.moe_intermediate_size'."),
        (native(hidden_size=63, num_attention_heads=1, num_key_value_heads=1, head_dim=16),
         "out_hidden_size 64 is not hidden_size 63 of the text part"),
        (native(rms_norm_eps=math.nan), "{path} has nan for text_config.rms_norm_eps, with which"),
        (experts(num_experts_per_tok=9), "num_experts_per_tok 9 is more than the 8 experts"),
        (experts(n_group=3), "8 experts have no 3 equal groups of two and more"),
        (experts(n_group=8), "8 experts have no 8 equal groups of two and more"),
        (experts(n_group=2, topk_group=3), "topk_group 3 is more than the 2 groups"),
    ],
)  # fmt: skip
def test_configurations_of_other_models(tmp_path, config, message):
    path = written(tmp_path, config)
    with pytest.raises(CheckpointError) as caught:
        architecture(tmp_path)
    assert message.replace("{path}", str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["depth", "num_hidden_layers"])
def test_more_layers_than_anybody_has(tmp_path, key):
    config = native()
    config["vision_config" if key == "depth" else "text_config"][key] = 10**9
    written(tmp_path, config)
    with pytest.raises(CheckpointError, match="it should be less than or equal to 10000"):
        architecture(tmp_path)


OF_A_RUN = {"return_dict": True, "attn_implementation": None, "_attn_implementation": None}
"""Keys of how a model is run, and what the model is built with whatever a file says."""
KNOWN = sorted(
    ({*PreTrainedConfig().to_dict(), *Glm4vTextConfig().to_dict()} - {"model_type"}) | {*OF_A_RUN}
)
"""Keys that transformers knows, whether the published files have them or not."""


@given(st.data(), st.sampled_from(["native", "GLM-4V-9B"]))
def test_a_config_with_anything_in_any_place(folder, data, kind):
    content = changed_somewhere(native() if kind == "native" else NINE_B, data, KNOWN)
    written(folder, content)
    taken_or_refused(lambda: architecture(folder).shape())

    def as_it_is_run():
        config = architecture(folder).model_config()
        for part in (config, config.get_text_config()):
            assert {key: getattr(part, key, None) for key in OF_A_RUN} == OF_A_RUN

    taken_or_refused(as_it_is_run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("changed")


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"hidden_act": 5}, "expected str, got int"), ({"pad_token_id": 200}, "Padding_idx")],
)
def test_configurations_that_transformers_refuses(tmp_path, change, reason):
    written(tmp_path, native(**change))
    with pytest.raises(CheckpointError, match=reason) as caught:
        architecture(tmp_path).build_meta("float32")
    assert str(caught.value).startswith(f"transformers cannot build {tmp_path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["glm4v", "glm-4v-9b"])
def test_how_a_model_was_run_is_decided_here(native, tmp_path, kind):
    base = golden.CHECKPOINT if kind == "glm-4v-9b" else native(kind)
    folder = shutil.copytree(base, tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    left = {"attn_implementation": "flash_attention_2", "_attn_implementation": "eager"}
    left |= {"return_dict": False, "use_return_dict": False}
    config |= left
    for part in {"text_config", "vision_config"} & config.keys():
        config[part] = {**config[part], **left}
    (folder / "config.json").write_text(json.dumps(config))
    session = Session().load(folder)
    assert session.ask("What?", max_tokens=2).usage.new_tokens
    assert session.engine.model.config._attn_implementation == "sdpa"
    session.unload()


def test_older_files_with_the_text_keys_at_the_top(tmp_path):
    older = native()
    text = older.pop("text_config")
    del text["model_type"]
    rope = text.pop("rope_parameters")
    older |= text | {
        "rope_theta": rope["rope_theta"],
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "rope_scaling": {"type": "default", "mrope_section": rope["mrope_section"]},
    }
    written(tmp_path, older)
    found = architecture(tmp_path)
    new = NativeArchitecture(str(tmp_path), native(), "config.json")
    assert found.shape() == new.shape()
    model, expected = found.build_meta("float32"), new.build_meta("float32")
    assert [(n, p.shape) for n, p in model.named_parameters()] == [
        (n, p.shape) for n, p in expected.named_parameters()
    ]
    rotary = model.config.text_config.rope_parameters
    assert rotary == expected.config.text_config.rope_parameters | {"type": "default"}


@pytest.mark.parametrize("name", ["GLM-4V-9B", "GLM-4.1V-9B-Thinking"])
def test_prompts_are_what_the_processor_would_make(name):
    found = architecture(name)
    shape = found.shape()
    inputs = found.prompt_inputs(1, 10, batch=2)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert ids.shape == mask.shape == (2, shape.visual_tokens + 10)
    assert mask.sum(dim=1).tolist() == [ids.shape[1] - 1, ids.shape[1]]  # one row is padded
    assert mask[0, 0] == 0
    plain = found.prompt_inputs(0, 10)
    assert plain["input_ids"].shape == (1, 10)
    assert not any("pixel" in key for key in plain)
    with pytest.raises(OptionError, match="at least 1 token of text, not 0"):
        found.prompt_inputs(1, 0)


def test_as_many_images_as_a_model_takes():
    many = architecture("GLM-4.5V").prompt_inputs(3, 5)
    assert many["image_grid_thw"].tolist() == [[1, 128, 192]] * 3
    small = architecture("GLM-4.5V").prompt_inputs(2, 5, patches=6400)
    assert small["image_grid_thw"].tolist() == [[1, 80, 80]] * 2
    assert len(many["pixel_values"]) == 3 * 24_576
    assert int(many["mm_token_type_ids"].sum()) == 3 * 6144
    with pytest.raises(OptionError, match="takes 1 image per conversation, not 2"):
        architecture("GLM-4V-9B").prompt_inputs(2, 5)
