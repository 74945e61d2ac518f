"""Unmodified transformers and accelerate on virtual GPUs compute what one CPU computes."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    DynamicCache,
    Glm4vForConditionalGeneration,
    GlmForCausalLM,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)

from glm4v_magic.virtual_gpus import VirtualGPUs

THREE_GPUS = {
    "model.embed_tokens": 0,
    "model.rotary_emb": 0,
    "model.layers.0": 0,
    "model.layers.1": 1,
    "model.layers.2": 2,
    "model.layers.3": 1,
    "model.norm": 1,
    "lm_head": 2,
}
WITH_OFFLOAD = {**THREE_GPUS, "model.layers.2": "cpu"}
GREEDY: dict[str, Any] = {"do_sample": False}
KINDS = {
    "greedy": GREEDY,
    "sampling": {"do_sample": True, "temperature": 0.8, "top_p": 0.9},
    "beams": {"do_sample": False, "num_beams": 3},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
}


def padded_batch(device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 90, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def generate(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> list[torch.Tensor]:
    """Tokens and the scores of each step, on the CPU."""
    torch.manual_seed(7)
    out = model.generate(
        **inputs, max_new_tokens=6, output_scores=True, return_dict_in_generate=True, **options
    )
    return [out.sequences.cpu(), *(scores.cpu() for scores in out.scores)]


def assert_identical(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("device_map", [THREE_GPUS, WITH_OFFLOAD], ids=["gpus", "offload"])
@pytest.mark.parametrize("kind", KINDS)
def test_identical_to_one_cpu(
    glm: GlmForCausalLM, glm_folder: Path, kind: str, device_map: dict[str, Any]
) -> None:
    expected = generate(glm, padded_batch("cpu"), **KINDS[kind])
    with VirtualGPUs("3x64MiB") as gpus:
        model = GlmForCausalLM.from_pretrained(glm_folder, device_map=device_map)
        model.generation_config = glm.generation_config
        assert_identical(generate(model, padded_batch("cuda:0"), **KINDS[kind]), expected)
        assert not gpus.problems
        used = {copy.target for copy in gpus.copies} | {copy.source for copy in gpus.copies}
        assert {"cuda:0", "cuda:1", "cuda:2"} <= used
        assert dict(gpus.report().forwards) == {"prefill": 1, "decode": 5}


def test_identical_in_bfloat16(glm_folder: Path) -> None:
    plain = GlmForCausalLM.from_pretrained(glm_folder, dtype=torch.bfloat16)
    expected = generate(plain, padded_batch("cpu"), **GREEDY)
    with VirtualGPUs("3x64MiB"):
        model = GlmForCausalLM.from_pretrained(
            glm_folder, dtype=torch.bfloat16, device_map=THREE_GPUS
        )
        assert next(model.parameters()).dtype is torch.bfloat16
        assert_identical(generate(model, padded_batch("cuda:0"), **GREEDY), expected)


def test_identical_with_eager_attention(glm_folder: Path) -> None:
    plain = GlmForCausalLM.from_pretrained(glm_folder, attn_implementation="eager")
    expected = generate(plain, padded_batch("cpu"), **GREEDY)
    with VirtualGPUs("3x64MiB"):
        model = GlmForCausalLM.from_pretrained(
            glm_folder, attn_implementation="eager", device_map=THREE_GPUS
        )
        assert_identical(generate(model, padded_batch("cuda:0"), **GREEDY), expected)


def test_automatic_map_uses_the_gpus(glm: GlmForCausalLM, glm_folder: Path) -> None:
    expected = generate(glm, padded_batch("cpu"), **GREEDY)
    with VirtualGPUs("3x64MiB"):
        model = GlmForCausalLM.from_pretrained(glm_folder, device_map="auto")
        model.generation_config = glm.generation_config
        assert set(model.hf_device_map.values()) == {0, 1, 2}
        assert_identical(generate(model, padded_batch("cuda:0"), **GREEDY), expected)


def test_model_moved_as_a_whole(glm: GlmForCausalLM, glm_folder: Path) -> None:
    expected = generate(glm, padded_batch("cpu"), **GREEDY)
    model = GlmForCausalLM.from_pretrained(glm_folder)
    model.generation_config = glm.generation_config
    with VirtualGPUs("2x64MiB"):
        for move in (lambda: model.to("cuda:1"), lambda: model.to(0), model.cuda):
            move()
            assert model.device.type == "cuda"
            assert_identical(generate(model, padded_batch(str(model.device)), **GREEDY), expected)
        model.to("cpu")
        assert_identical(generate(model, padded_batch("cpu"), **GREEDY), expected)
    assert_identical(generate(model, padded_batch("cpu"), **GREEDY), expected)


def test_cache_is_where_its_layer_is(glm_folder: Path) -> None:
    with VirtualGPUs("3x64MiB"), torch.no_grad():
        model = GlmForCausalLM.from_pretrained(glm_folder, device_map=THREE_GPUS)
        cache = DynamicCache(config=model.config)
        model(**padded_batch("cuda:0"), past_key_values=cache, use_cache=True)
        places = [THREE_GPUS[f"model.layers.{i}"] for i in range(4)]
        assert [layer.keys.device.index for layer in cache.layers] == places


def test_vision_language_model(glm4v: Glm4vForConditionalGeneration, glm4v_folder: Path) -> None:
    def inputs(device: str) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        ids = torch.tensor([[5, 91, *[90] * 4, 92, 6, 7, 8]])
        tensors = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == 90).int(),
            "pixel_values": torch.randn(16, 3 * 2 * 4 * 4, generator=generator),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
        }
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    device_map = {
        "model.visual": 2,
        "model.language_model.embed_tokens": 0,
        "model.language_model.rotary_emb": 1,
        "model.language_model.layers.0": 0,
        "model.language_model.layers.1": 1,
        "model.language_model.layers.2": 2,
        "model.language_model.norm": 2,
        "lm_head": 0,
    }
    expected = generate(glm4v, inputs("cpu"), **GREEDY)
    with VirtualGPUs("3x64MiB") as gpus:
        model = Glm4vForConditionalGeneration.from_pretrained(glm4v_folder, device_map=device_map)
        model.generation_config = glm4v.generation_config
        assert_identical(generate(model, inputs("cuda:0"), **GREEDY), expected)
        # the tower runs before, and outside of, the first forward of the whole model
        modules = {copy.used_in for copy in gpus.copies if copy.phase == "prefill"}
        assert "model.visual" in modules
        assert dict(gpus.report().forwards) == {"prefill": 1, "decode": 5}


def test_streamer_in_another_thread(glm: GlmForCausalLM, glm_folder: Path) -> None:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    expected = generate(glm, padded_batch("cpu"), **GREEDY)[0][:1]
    with VirtualGPUs("3x64MiB"):
        model = GlmForCausalLM.from_pretrained(glm_folder, device_map=THREE_GPUS)
        model.generation_config = glm.generation_config
        streamer = TextIteratorStreamer(tokenizer, timeout=60)
        inputs = {name: tensor[:1] for name, tensor in padded_batch("cuda:0").items()}
        options = {**inputs, **GREEDY, "max_new_tokens": 6, "streamer": streamer}
        thread = Thread(target=model.generate, kwargs=options)
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text.split() == tokenizer.decode(expected[0]).split()


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 8)
        self.second = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(x).relu())
        return y


def test_copies_are_counted_exactly() -> None:
    with VirtualGPUs("3x64MiB") as gpus, torch.no_grad():
        net = dispatch_model(Net(), {"first": 1, "second": 2}, main_device=1)
        weights = {copy.target: copy.total_bytes for copy in gpus.copies}
        assert weights == {"cuda:1": 4 * (4 * 8 + 8), "cuda:2": 4 * (8 * 2 + 2)}
        gpus.reset()
        x = torch.ones(5, 4, device="cuda:0")
        for _ in range(2):
            net(x)
        copies = {
            (copy.source, copy.target, copy.made_in, copy.used_in): (copy.count, copy.total_bytes)
            for copy in gpus.copies
        }
    assert copies == {
        # accelerate's hooks move the input to the first module, and the result back to its device
        ("cuda:0", "cuda:1", "", ""): (2, 2 * 5 * 4 * 4),
        ("cuda:1", "cuda:2", "", "second"): (2, 2 * 5 * 8 * 4),
        ("cuda:2", "cuda:0", "second", ""): (2, 2 * 5 * 2 * 4),
    }
    assert {copy.phase for copy in gpus.copies} == {"prefill"}
    assert gpus.report().hops("prefill")["cuda:1", "cuda:2"] == (2, 2 * 5 * 8 * 4)
    assert gpus.report().hops("decode") == {}
