"""Models of many families compute the same on one, two and four virtual GPUs as on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from glm4v_magic.virtual_gpus import VirtualGPUs

LAYERS = 4
TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
# transformers chooses the kernel of the experts by the type of the device; they differ in last bits
EXPERTS: dict[str, Any] = {
    "experts_implementation": "eager",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": LAYERS, "n_head": 4},
    "gemma2": {},
    "glm": {"attention_bias": True},
    "glm4": {},
    "gpt2": {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 128},
    "gpt_neox": {},
    "llama": {},
    "mistral": {"sliding_window": 4},
    "olmo2": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi3": {},
    "qwen2": {},
    "qwen3": {},
    "mixtral": {**EXPERTS, "num_local_experts": 4},
    "qwen3_moe": EXPERTS,
    "glm4_moe": {**EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1},
}


def tiny(family: str) -> Any:
    config = AutoConfig.for_model(family, **{**TINY, **FAMILIES[family]})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
    return model


def spread(model: nn.Module, gpus: int) -> dict[str, int]:
    """Layers in equal parts; all else on the first GPU."""
    layers = next(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == LAYERS
    )
    device_map = {f"{layers}.{i}": i * gpus // LAYERS for i in range(LAYERS)}
    for name, _ in model.named_modules():
        parent = name.rpartition(".")[0]
        is_beside = layers.startswith(f"{parent}.") or not parent
        if name and is_beside and not f"{layers}.".startswith(f"{name}."):
            device_map[name] = 0
    return device_map


def answer(model: Any, device: str) -> list[torch.Tensor]:
    """Tokens, and the scores of each step, of a padded batch."""
    ids = torch.randint(1, 90, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    out = model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=4,
        do_sample=False, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    return [out.sequences.cpu(), *(scores.cpu() for scores in out.scores)]


@pytest.mark.parametrize("family", FAMILIES)
def test_identical_on_any_number_of_gpus(family: str) -> None:
    expected = answer(tiny(family), "cpu")
    for gpus in (1, 2, 4):
        model = tiny(family)
        with VirtualGPUs([1 << 28] * gpus) as virtual:
            if gpus == 1:
                model.to("cuda")
            else:
                dispatch_model(model, spread(model, gpus), main_device=0)
            used = {parameter.device.index for parameter in model.parameters()}
            assert used == set(range(gpus))
            found = answer(model, "cuda:0")
            assert not virtual.problems
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other), f"{gpus} GPUs"
