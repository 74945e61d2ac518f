"""A checkpoint that takes a CPU core tens of milliseconds for a token, as large models do a GPU."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.glm4v_9b.layout import weight_shapes

__all__ = ["write_larger"]

# Of GLM-4V-9B's layout, between the embedded model and the published one: 95 million parameters.
LARGER = {
    "hidden_size": 1024,
    "ffn_hidden_size": 3072,
    "num_layers": 8,
    "num_attention_heads": 16,
    "kv_channels": 64,
    "torch_dtype": "bfloat16",
}


def write_larger(folder: Path, visual_tokens: int | None = None) -> None:
    """Write a checkpoint of random weights with the embedded model's tokenizer and tower.

    Args:
        folder: where to write it.
        visual_tokens: visual tokens of an image; as many as the embedded model's if ``None``.
    """
    demo = resolve("demo")
    config = demo.config | LARGER
    if visual_tokens is not None:
        side = 2 * math.isqrt(visual_tokens - 2)  # patches, of which 2 x 2 become one vector
        vision = config["vision_config"]
        size = {"image_size": side * vision["patch_size"], "num_positions": side**2 + 1}
        config |= {"vision_config": vision | size, "seq_length": 8192}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(demo.folder / name, folder)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.ones(shape) if "norm" in name else torch.randn(shape, generator=generator) / 50
        for name, shape in weight_shapes(config).items()
    }
    halves = {name: weight.bfloat16() for name, weight in weights.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
