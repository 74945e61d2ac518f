"""Whatever the device map, GLM-4V-9B's answers are those of one device: see `any_split`.

The prompt is a batch of two conversations, one of them padded on the left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import any_split
import golden
import pytest
import torch

from glm4v_magic.checkpoints import resolve

BATCH = ("image_text", "image_second_turn")
NEW_TOKENS = 16

# accelerate's check of a map knows modules only, and says so when a map places boi and eoi.
pytestmark = pytest.mark.filterwarnings("ignore:The following device_map keys do not match")


@dataclass
class Reference:
    inputs: dict[str, torch.Tensor]
    answer: any_split.Answer


def load(device_map: any_split.Map) -> Any:
    return resolve(golden.CHECKPOINT).load(dtype=torch.float32, device_map=device_map).model


def answer(model: Any, inputs: dict[str, torch.Tensor]) -> any_split.Answer:
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
    logits, tokens = answer(loaded.model, inputs)
    assert tokens == [golden.CASES[case]["greedy_ids"] for case in BATCH]
    return Reference(inputs, (logits, tokens))


def check(device_map: any_split.Map, gpus: int, reference: Reference) -> None:
    any_split.check(device_map, gpus, load, answer, reference.inputs, reference.answer)


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


@pytest.mark.parametrize(("device_map", "gpus"), any_split.cuts(LEAVES))
def test_any_cut(reference, device_map, gpus):
    check(device_map, gpus, reference)


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
