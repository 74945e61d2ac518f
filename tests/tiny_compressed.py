"""Writes checkpoints of compressed-tensors, from full ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GROUPS = {
    "float-quantized": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "pack-quantized": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
}


def compressed(source: Path, folder: Path, form: str) -> dict[str, torch.Tensor]:
    """Write a checkpoint of compressed-tensors; returns the weights that it means."""
    from compressed_tensors.compressors.pack_quantized.base import pack_to_int32

    shutil.copytree(source, folder)
    written, meant = {}, {}
    for name, weight in load_file(source / "model.safetensors").items():
        written[name] = meant[name] = weight
        if "language_model.layers" not in name or not name.endswith("_proj.weight"):
            continue
        if form == "float-quantized":
            scale = weight.abs().amax(1, keepdim=True) / 448
            written[name] = (weight / scale).to(torch.float8_e4m3fn)
            meant[name] = written[name].float() * scale
        else:
            groups = weight.view(weight.shape[0], -1, 32)
            scale = groups.abs().amax(2) / 7
            levels = (groups / scale[..., None]).round().clamp(-8, 7)
            meant[name] = (levels * scale[..., None]).view(weight.shape)
            del written[name]
            packed = pack_to_int32(levels.view(weight.shape).to(torch.int8), 4)
            written[name.replace(".weight", ".weight_packed")] = packed
            written[f"{name}_shape"] = torch.tensor(weight.shape)
        written[f"{name}_scale"] = scale
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    weights = {**GROUPS[form], "symmetric": True, "dynamic": False}
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", "re:.*visual.*"],
    }
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": config}))
    return meant
