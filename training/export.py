"""Write a network as a published GLM-4V-9B folder, and read one back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.configuration import checkpoint_config, generation_config, tokenizer_config
from training.network import Network

__all__ = ["export", "load_network"]

_SHARDS = 3


def export(weights: dict[str, Tensor], ranks: int, folder: Path) -> None:
    """Write configs and float16 shards; `tokenizer.model` is written by `training.tokenizer`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("config.json", checkpoint_config(ranks)),
        ("generation_config.json", generation_config(ranks)),
        ("tokenizer_config.json", tokenizer_config(ranks)),
    ):
        _write_json(folder / name, content)
    config = checkpoint_config(ranks)
    named = {name: value.half().contiguous() for name, value in weights.items()}
    named["transformer.rotary_pos_emb.inv_freq"] = _inverse_frequencies(config["kv_channels"] // 2)
    _write_shards({name: named[name] for name in _original_order(named)}, folder)


def load_network(folder: Path) -> Network:
    """Read a folder that `export` wrote, in float32."""
    network = Network(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(index["weight_map"].values())):
        weights |= load_file(folder / shard)
    del weights["transformer.rotary_pos_emb.inv_freq"]
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    return network


def _inverse_frequencies(rotary_dim: int) -> Tensor:
    return (10000.0 ** -(torch.arange(0, rotary_dim, 2).float() / rotary_dim)).half()


def _original_order(names: dict[str, Tensor]) -> list[str]:
    """The order in which the published shards walk through the model."""
    order = ("embedding", "rotary_pos_emb", "encoder.layers", "encoder.final", "output", "vision")

    def place(name: str) -> int:
        return next(i for i, part in enumerate(order) if name.startswith(f"transformer.{part}"))

    return sorted(names, key=place)


def _write_shards(weights: dict[str, Tensor], folder: Path) -> None:
    """Cut by bytes in the given order, so that a layer may straddle two shards."""
    total = sum(value.nbytes for value in weights.values())
    shards: list[dict[str, Tensor]] = [{} for _ in range(_SHARDS)]
    written = 0
    for name, value in weights.items():
        shards[min(_SHARDS - 1, written * _SHARDS // total)][name] = value
        written += value.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{_SHARDS:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors writes files that only their owner can read
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
