"""Writes checkpoints in FP8 with scales by block, from full ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LARGEST = 448.0


def is_held(name: str, weight: torch.Tensor, skipped: list[str]) -> bool:
    matrix = name.endswith(("_proj.weight", "_mqa.weight")) and weight.dim() == 2
    return matrix and not any(name.startswith(f"{each}.") for each in skipped)


def blocks(weight: torch.Tensor, block: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale of every block, and of every value."""
    rows, columns = block
    parts = [
        [part.abs().amax() / LARGEST for part in row.split(columns, dim=1)]
        for row in weight.split(rows)
    ]
    scales = torch.stack([torch.stack(row) for row in parts])
    of_values = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return scales, of_values[: weight.shape[0], : weight.shape[1]]


def restored_by_hand(
    folder: Path, into: Path, quantization: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Write the weights of a folder in FP8, and return what they are when they are restored."""
    in_fp8, by_hand = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        in_fp8[name] = by_hand[name] = weight
        if is_held(name, weight, quantization["modules_to_not_convert"]):
            scales, of_values = blocks(weight, quantization["weight_block_size"])
            in_fp8[name] = (weight / of_values).to(torch.float8_e4m3fn)
            in_fp8[f"{name}_scale_inv"] = scales
            by_hand[name] = in_fp8[name].float() * of_values
    assert any(name.endswith("_scale_inv") for name in in_fp8)
    save_file(in_fp8, into / "model.safetensors", metadata={"format": "pt"})
    file = into / "config.json"
    described = json.loads(file.read_text())
    described["dtype"] = described["text_config"]["dtype"] = "bfloat16"
    file.write_text(json.dumps({**described, "quantization_config": quantization}))
    return by_hand
