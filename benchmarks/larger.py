"""Checkpoints in GLM-4V-9B's layout with random weights, and the embedded model's tokenizer."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.glm4v_9b.layout import weight_shapes

__all__ = ["OF_TOKENIZER", "write_larger", "write_random"]

# Of GLM-4V-9B's layout, between the embedded model and the published one: 95 million parameters.
LARGER = {
    "hidden_size": 1024,
    "ffn_hidden_size": 3072,
    "num_layers": 8,
    "num_attention_heads": 16,
    "kv_channels": 64,
    "torch_dtype": "bfloat16",
}

OF_TOKENIZER = ("boi_token_id", "eoi_token_id", "pad_token_id", "eos_token_id")
"""Parts of the configuration that belong to the tokenizer."""

_SHARD_BYTES = 2 * 2**30


def write_larger(folder: Path, visual_tokens: int | None = None) -> None:
    """Write a checkpoint that takes a CPU core tens of milliseconds for a token.

    Args:
        folder: where to write it.
        visual_tokens: visual tokens of an image; as many as the embedded model's if ``None``.
    """
    config = resolve("demo").config | LARGER
    if visual_tokens is not None:
        side = 2 * math.isqrt(visual_tokens - 2)  # patches, of which 2 x 2 become one vector
        vision = config["vision_config"]
        size = {"image_size": side * vision["patch_size"], "num_positions": side**2 + 1}
        config |= {"vision_config": vision | size, "seq_length": 8192}
    write_random(folder, config)


def write_random(folder: Path, config: Mapping[str, Any], device: str = "cpu") -> None:
    """Write a checkpoint of random weights in bfloat16, in shards of 2 GiB.

    Args:
        folder: where to write it.
        config: its configuration; the ids of special tokens become the embedded model's.
        device: what makes the numbers.
    """
    demo = resolve("demo")
    whole = {**config, **{name: demo.config[name] for name in OF_TOKENIZER}}
    (folder / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(demo.folder / name, folder)
    places: dict[str, str] = {}
    for number, part in enumerate(_shards(whole, device), start=1):
        file = f"model-{number:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shards(config: Mapping[str, Any], device: str) -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator(device).manual_seed(0)
    part: dict[str, torch.Tensor] = {}
    for name, shape in weight_shapes(config).items():
        if sum(weight.nbytes for weight in part.values()) >= _SHARD_BYTES:
            yield part
            part = {}
        weight = torch.ones(shape, dtype=torch.bfloat16)
        if "norm" not in name:
            numbers = torch.randn(shape, generator=generator, device=device) / 50
            weight = numbers.bfloat16().cpu()
        part[name] = weight
    yield part
