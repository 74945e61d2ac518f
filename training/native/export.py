"""Write a network as a published GLM-4.6V folder, and read one back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from training.native.configuration import (
    checkpoint_config,
    generation_config,
    preprocessor_config,
    video_preprocessor_config,
)
from training.native.network import Network
from training.native.tokenizer import load

__all__ = ["export", "load_network"]

_WEIGHTS = "model.safetensors"


def export(weights: dict[str, Tensor], folder: Path) -> None:
    """Write configs and float16 weights beside the tokenizer that is in `folder`."""
    ids = load(folder).get_vocab()
    for name, content in (
        ("config.json", checkpoint_config(ids)),
        ("generation_config.json", generation_config(ids)),
        ("preprocessor_config.json", preprocessor_config()),
        ("video_preprocessor_config.json", video_preprocessor_config()),
    ):
        _write_json(folder / name, content)
    named = {name: weights[name].half().contiguous() for name in sorted(weights)}
    save_file(named, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _WEIGHTS).chmod(0o644)  # safetensors writes files that only their owner can read


def load_network(folder: Path) -> Network:
    """Read a folder that `export` wrote, in float32."""
    network = Network(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    weights = load_file(folder / _WEIGHTS)
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    return network


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
