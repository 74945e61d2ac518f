"""Whatever the device map, GLM-4V-9B's answers are those of one device, bit by bit.

On virtual GPUs with real values, every operation that mixes devices is collected. A map is right
when none is, and prefill logits and greedy tokens of a left-padded batch equal the plain CPU's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import golden
import pytest
import torch

from glm4v_magic.checkpoints import resolve
from glm4v_magic.virtual_gpus import VirtualGPUs

BATCH = ("image_text", "image_second_turn")
NEW_TOKENS = 16
RANDOM_MAPS = 500
SAMPLE = 6  # of the random maps; all of them run in `make nightly`

# accelerate's check of a map knows modules only, and says so when a map places boi and eoi.
pytestmark = pytest.mark.filterwarnings("ignore:The following device_map keys do not match")


@dataclass
class Reference:
    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor
    tokens: list[list[int]]


def run(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[list[int]]]:
    with torch.no_grad():
        logits = model(**inputs).logits.cpu()
        output = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, max_length=None, do_sample=False, eos_token_id=None
        )
    return logits, output[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def reference() -> Reference:
    loaded = resolve(golden.CHECKPOINT).load(dtype=torch.float32)
    inputs = loaded.processor([golden.conversation(case) for case in BATCH])
    logits, tokens = run(loaded.model, inputs)
    assert tokens == [golden.CASES[case]["greedy_ids"] for case in BATCH]
    return Reference(inputs, logits, tokens)


def check(device_map: dict[str, int | str], cards: int, reference: Reference) -> None:
    with VirtualGPUs(f"{cards}x1GiB", on_mismatch="collect") as gpus:
        model = resolve(golden.CHECKPOINT).load(dtype=torch.float32, device_map=device_map).model
        inputs = {name: tensor.to("cuda:0") for name, tensor in reference.inputs.items()}
        logits, tokens = run(model, inputs)
        used = {str(p.device) for p in model.parameters() if p.device.type == "cuda"}
    assert gpus.problems == ()
    assert used == {f"cuda:{d}" for d in device_map.values() if isinstance(d, int)}
    assert torch.equal(logits, reference.logits)
    assert tokens == reference.tokens


def vision_layer(index: int) -> list[str]:
    prefix = f"model.vision.transformer.layers.{index}."
    return [
        prefix + name
        for name in (
            "attention.query_key_value",
            "attention.dense",
            "input_layernorm",
            "mlp.fc1",
            "mlp.fc2",
            "post_attention_layernorm",
        )
    ]


def text_layer(index: int) -> list[str]:
    prefix = f"model.language_model.layers.{index}."
    return [
        prefix + name
        for name in (
            "input_layernorm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "post_attention_layernorm",
            "mlp.gate_up_proj",
            "mlp.down_proj",
        )
    ]


# Every place a map can name, in the order in which they run.
LEAVES = [
    "model.language_model.embed_tokens",
    "model.vision.patch_embedding.proj",
    "model.vision.patch_embedding.cls_embedding",
    "model.vision.patch_embedding.position_embedding",
    *(name for index in range(4) for name in vision_layer(index)),
    "model.vision.conv",
    "model.vision.linear_proj.linear_proj",
    "model.vision.linear_proj.norm1",
    "model.vision.linear_proj.gate_proj",
    "model.vision.linear_proj.dense_h_to_4h",
    "model.vision.linear_proj.dense_4h_to_h",
    "model.vision.boi",
    "model.vision.eoi",
    "model.language_model.rotary_emb",
    *(name for index in range(4) for name in text_layer(index)),
    "model.language_model.norm",
    "lm_head",
]


def test_the_list_of_leaves_is_complete():
    model = resolve(golden.CHECKPOINT).load(dtype=torch.float32).model
    placed = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    for name in placed:
        assert any(name == leaf or name.startswith(f"{leaf}.") for leaf in LEAVES), name
    assert len(LEAVES) == len(set(LEAVES))


@pytest.mark.parametrize("border", range(1, len(LEAVES)), ids=lambda i: LEAVES[i])
def test_a_border_before_every_module(reference, border):
    check({leaf: int(i >= border) for i, leaf in enumerate(LEAVES)}, 2, reference)


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.nightly
def test_one_module_away_from_all_others(reference, leaf):
    check({other: int(other == leaf) for other in LEAVES}, 2, reference)


def random_map(seed: int) -> tuple[dict[str, int | str], int]:
    rng = random.Random(seed)
    cards = rng.randint(2, 8)
    return {leaf: rng.randrange(cards) for leaf in LEAVES}, cards


@pytest.mark.parametrize("seed", range(SAMPLE))
def test_random_maps(reference, seed):
    check(*random_map(seed), reference)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(SAMPLE, RANDOM_MAPS))
def test_many_more_random_maps(reference, seed):
    check(*random_map(seed), reference)


UNITS = [
    "model.vision",
    "model.language_model.embed_tokens",
    *(f"model.language_model.layers.{index}" for index in range(4)),
    "model.language_model.norm",
    "lm_head",
]


@pytest.mark.parametrize("unit", UNITS)
def test_any_unit_offloaded_to_the_cpu(reference, unit):
    others = {name: index % 2 for index, name in enumerate(UNITS)}
    check(others | {unit: "cpu", "model.language_model.rotary_emb": 0}, 2, reference)
