"""A GLM-4.1V of four layers, and what runs it: transformers' own classes, random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

CONFIG: dict[str, Any] = {
    "model_type": "glm4v",
    "dtype": "float32",
    "image_token_id": 90,
    "image_start_token_id": 91,
    "image_end_token_id": 92,
    "video_token_id": 93,
    "video_start_token_id": 94,
    "video_end_token_id": 95,
    "text_config": {
        "model_type": "glm4v_text",
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "eos_token_id": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
        },
    },
    "vision_config": {
        "model_type": "glm4v_vision",
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "num_heads": 4,
        "patch_size": 28,
        "image_size": 112,
        "in_channels": 3,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}


def build() -> Any:
    """The model on the CPU, seeded."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**CONFIG)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    for matrix in (p for p in model.parameters() if p.dim() > 1):
        torch.nn.init.normal_(matrix, std=0.2)  # as initialised, it says one word for ever
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0, do_sample=False)
    return model


def prompt() -> dict[str, torch.Tensor]:
    """A batch of two rows, the second padded on the left, with images of different sizes."""
    grids = torch.tensor([[1, 4, 4], [1, 2, 6]])
    rows = [
        [91, *[90] * (int(grid.prod()) // 4), 92, *text]
        for grid, text in zip(grids, ([5, 6, 7, 8], [9, 10, 11]), strict=True)
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    generator = torch.Generator().manual_seed(1)
    patches = int(grids.prod(dim=1).sum())
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "mm_token_type_ids": (ids == CONFIG["image_token_id"]).int(),
        "pixel_values": torch.randn(patches, 3 * 2 * 28 * 28, generator=generator),
        "image_grid_thw": grids,
    }


def answer(
    model: Any, inputs: dict[str, torch.Tensor], new_tokens: int = 6
) -> tuple[torch.Tensor, list[list[int]]]:
    """Logits of all steps, (rows, prompt + new tokens - 1, vocabulary) on the CPU, and the ids."""
    with torch.no_grad():
        logits = [model(**inputs).logits.cpu()]
        output = model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits += [step.unsqueeze(1).cpu() for step in output.logits[1:]]
    return torch.cat(logits, dim=1), output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
