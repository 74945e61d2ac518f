"""Write a network as a published GLM-4.6V folder, and read one back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.native.configuration import (
    checkpoint_config,
    generation_config,
    preprocessor_config,
    video_preprocessor_config,
)
from training.native.network import Network, initialise
from training.native.tokenizer import load

__all__ = ["export", "load_network"]

_LAYER = re.compile(r"model\.language_model\.layers\.(\d+)\.")
_BEHIND_A_BRANCH = re.compile(r"post_(self_attn|mlp)_layernorm")
_WEIGHTS = "model.safetensors"


def export(weights: dict[str, Tensor], folder: Path) -> None:
    """Write configs and float16 weights beside the tokenizer that is in `folder`."""
    ids = load(folder).get_vocab()
    layers = {found[1] for found in map(_LAYER.match, weights) if found}
    for name, content in (
        ("config.json", checkpoint_config(ids, len(layers))),
        ("generation_config.json", generation_config(ids)),
        ("preprocessor_config.json", preprocessor_config()),
        ("video_preprocessor_config.json", video_preprocessor_config()),
    ):
        _write_json(folder / name, content)
    named = {name: weights[name].half().contiguous() for name in sorted(weights)}
    save_file(named, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _WEIGHTS).chmod(0o644)  # safetensors writes files that only their owner can read


def load_network(folder: Path, layers: int = 0) -> Network:
    """Read a folder that `export` wrote, in float32.

    With more `layers` of the text part than it has, those that are new change nothing yet.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    known = text["num_hidden_layers"]
    text["num_hidden_layers"] = max(known, layers)
    network = Network(config)
    if layers > known:
        initialise(network, torch.Generator().manual_seed(layers))
        for name, parameter in network.named_parameters():
            layer = _LAYER.match(name)
            if layer and int(layer[1]) >= known and _BEHIND_A_BRANCH.search(name):
                nn.init.zeros_(parameter)
    weights = load_file(folder / _WEIGHTS)
    precise = {name: value.float() for name, value in weights.items()}
    network.load_state_dict({**network.state_dict(), **precise})
    return network


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
