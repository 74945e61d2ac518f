"""Whatever the device map, the answers of transformers' own Glm4v are those of one device.

Its code assumes that every layer is whole on one GPU. Where a map cuts one, `dispatch` gives the
layer a device for its own arithmetic. `any_split` says what has to hold; the logits are those of
the prompt and of every following step.
"""

from __future__ import annotations

import any_split
import pytest
import tiny_glm4v

from glm4v_magic.dispatch.hooks import dispatch, dispatch_like_accelerate
from glm4v_magic.virtual_gpus import VirtualGPUs


@pytest.fixture(scope="module")
def reference():
    logits, tokens = tiny_glm4v.answer(tiny_glm4v.build(), tiny_glm4v.prompt())
    assert len({token for row in tokens for token in row}) > 6
    return logits, tokens


def load(device_map):
    model = tiny_glm4v.build()
    dispatch(model, device_map)
    return model


def check(device_map, gpus, reference):
    answer, prompt = tiny_glm4v.answer, tiny_glm4v.prompt()
    any_split.check(device_map, gpus, load, answer, prompt, reference)


def vision_block(index):
    parts = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.gate_proj", "mlp.up_proj"]
    return [f"model.visual.blocks.{index}.{part}" for part in (*parts, "mlp.down_proj")]


def text_layer(index):
    parts = [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_self_attn_layernorm",
        "post_attention_layernorm",
        "mlp.gate_up_proj",
        "mlp.down_proj",
        "post_mlp_layernorm",
    ]
    return [f"model.language_model.layers.{index}.{part}" for part in parts]


# Every place a map can name, in the order in which they run.
LEAVES = [
    "model.language_model.embed_tokens",
    "model.visual.patch_embed.proj",
    "model.visual.post_conv_layernorm",
    "model.visual.rotary_pos_emb",
    "model.visual.embeddings.position_embedding",
    *(name for index in range(2) for name in vision_block(index)),
    "model.visual.post_layernorm",
    "model.visual.downsample",
    "model.visual.merger.proj",
    "model.visual.merger.post_projection_norm",
    "model.visual.merger.gate_proj",
    "model.visual.merger.up_proj",
    "model.visual.merger.down_proj",
    "model.language_model.rotary_emb",
    *(name for index in range(4) for name in text_layer(index)),
    "model.language_model.norm",
    "lm_head",
]


def test_the_list_of_leaves_is_complete():
    model = tiny_glm4v.build()
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        assert any(name.startswith(f"{leaf}.") for leaf in LEAVES), name
    assert len(LEAVES) == len(set(LEAVES))


@pytest.mark.parametrize(("device_map", "gpus"), any_split.cuts(LEAVES))
def test_any_cut(reference, device_map, gpus):
    check(device_map, gpus, reference)


UNITS = [
    "model.visual",
    "model.language_model.embed_tokens",
    *(f"model.language_model.layers.{index}" for index in range(4)),
    "model.language_model.norm",
    "lm_head",
]


# transformers warns where the first weight of a model is offloaded, but leaves the ids in place.
@pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids`")
@pytest.mark.parametrize(
    "unit",
    [
        *(
            pytest.param(unit, marks=[] if number % 2 else pytest.mark.nightly)
            for number, unit in enumerate(UNITS, start=1)
        ),
        "model.visual.merger.up_proj",
        "model.language_model.layers.2.self_attn.k_proj",
    ],
)
def test_any_unit_offloaded_to_the_cpu(reference, unit):
    inside = [leaf for leaf in LEAVES if leaf.startswith(unit)]
    others = {leaf: index % 2 for index, leaf in enumerate(LEAVES) if leaf not in inside}
    check(others | {unit: "cpu"}, 2, reference)


# What docs/transformers-glm4v.md says of transformers' code under accelerate's hooks alone.
SITES = [
    ("model.visual.blocks.0.attn.qkv", "model.visual.blocks.0.attn", "aten.mul.Tensor"),
    ("model.visual.blocks.0.norm2", "model.visual.blocks.0", "aten.add.Tensor"),
    ("model.visual.blocks.0.mlp.up_proj", "model.visual.blocks.0.mlp", "aten.mul.Tensor"),
    ("model.visual.merger.up_proj", "model.visual.merger", "aten.mul.Tensor"),
    (
        "model.language_model.layers.0.self_attn.k_proj",
        "model.language_model.layers.0.self_attn",
        "aten.mul.Tensor",
    ),
    (
        "model.language_model.layers.0.self_attn.v_proj",
        "model.language_model.layers.0.self_attn",
        "aten.cat.default",
    ),
    (
        "model.language_model.layers.0.self_attn.q_proj",
        "model.language_model.layers.0.self_attn",
        "aten.scaled_dot_product_attention.default",
    ),
    (
        "model.language_model.layers.0.mlp.gate_up_proj",
        "model.language_model.layers.0",
        "aten.add.Tensor",
    ),
]


@pytest.mark.parametrize(("border", "module", "operation"), SITES, ids=lambda value: str(value))
def test_what_accelerate_alone_cannot_do(border, module, operation):
    first = LEAVES.index(border)
    with VirtualGPUs("2x1GiB", on_mismatch="collect") as gpus:
        model = tiny_glm4v.build()
        dispatch_like_accelerate(model, {leaf: int(i >= first) for i, leaf in enumerate(LEAVES)})
        inputs = {name: tensor.to("cuda:0") for name, tensor in tiny_glm4v.prompt().items()}
        tiny_glm4v.answer(model, inputs, new_tokens=1)
    assert (module, operation) in {(p.module, p.operation) for p in gpus.problems}


def test_a_position_table_by_itself_is_out_of_reach_of_accelerate():
    # its weight is read without a call, so that no hook brings the patches to it
    table = "model.visual.embeddings.position_embedding"
    with VirtualGPUs("2x1GiB", on_mismatch="collect") as gpus:
        model = tiny_glm4v.build()
        dispatch_like_accelerate(model, {leaf: int(leaf == table) for leaf in LEAVES})
        inputs = {name: tensor.to("cuda:0") for name, tensor in tiny_glm4v.prompt().items()}
        tiny_glm4v.answer(model, inputs, new_tokens=1)
    assert {(p.module, p.operation) for p in gpus.problems} == {
        ("model.visual.embeddings", "aten.grid_sampler_2d.default")
    }


def test_an_activation_function_away_from_its_projections(reference):
    # the automatic map of GLM-4.1V for 15 equal GPUs has this border, which names no weight
    places = dict.fromkeys(LEAVES, 0) | {"model.visual.merger.act_fn": 1, "lm_head": 1}
    with VirtualGPUs("2x1GiB", on_mismatch="collect") as gpus:
        model = tiny_glm4v.build()
        dispatch_like_accelerate(model, places)
        inputs = {name: tensor.to("cuda:0") for name, tensor in tiny_glm4v.prompt().items()}
        tiny_glm4v.answer(model, inputs, new_tokens=1)
    assert {p.module for p in gpus.problems} == {"model.visual.merger"}
    check(places, 2, reference)
