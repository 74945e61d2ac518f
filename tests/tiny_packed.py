"""Tiny checkpoints of GPTQ and AWQ, as files have them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_native
import torch
from safetensors.torch import load_file, save_file

__all__ = ["CONFIGS", "configure", "packed", "quantised", "write_packed", "write_whole"]

GROUP = 32
CONFIGS = {
    "gptq": {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    "awq": {"bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def packed(levels, order=range(8)):
    """Put eight columns of 4 bits into one of int32."""
    parts = levels.reshape(levels.shape[0], -1, 8).to(torch.int64)
    joined = sum(parts[:, :, one] << (4 * at) for at, one in enumerate(order))
    return torch.where(joined >= 2**31, joined - 2**32, joined).to(torch.int32)


def quantised(method, weight):
    """Return a matrix as files of the method have it, and the values that it means."""
    inputs = weight.float().t()
    groups = inputs.reshape(-1, GROUP, inputs.shape[1])
    if method == "gptq":
        scales = (groups.abs().amax(1) / 7).half()
        zeros = torch.full_like(scales, 8).long()
    else:
        low, high = groups.amin(1), groups.amax(1)
        scales = ((high - low) / 15).half()
        zeros = (-low / scales.float()).round().clamp(0, 15).long()
    levels = (groups / scales.float()[:, None]).round() + zeros[:, None]
    levels = levels.clamp(0, 15).long()
    meant = ((levels - zeros[:, None]) * scales.float()[:, None]).reshape(inputs.shape).t()
    levels = levels.reshape(inputs.shape)
    if method == "awq":
        parts = {"qweight": packed(levels, AWQ_ORDER), "qzeros": packed(zeros, AWQ_ORDER)}
    else:
        parts = {
            "qweight": packed(levels.t()).t(),
            "qzeros": packed(zeros - 1),
            "g_idx": (torch.arange(len(inputs)) // GROUP).to(torch.int32),
        }
    parts = {**parts, "scales": scales}
    return {ending: part.contiguous() for ending, part in parts.items()}, meant.contiguous()


def configure(folder, **described):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "quantization_config": described}))


def write_whole(folder: Path) -> Path:
    """Write a checkpoint whose layers can be divided into groups."""
    plain = tiny_native.config

    def config(kind, words):
        described = plain(kind, words)
        described["text_config"]["intermediate_size"] = 128
        return described

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_native, "config", config)
        return tiny_native.write("glm4v", folder)


def write_packed(source: Path, folder: Path, method: str) -> tuple[Path, Path]:
    """Write a checkpoint's quantised copy and the full one of the values that it means."""
    full = shutil.copytree(source, folder / "full")
    small = shutil.copytree(source, folder / method)
    written, meant = {}, {}
    for name, weight in load_file(source / "model.safetensors").items():
        written[name] = meant[name] = weight
        if "language_model.layers" in name and name.endswith("_proj.weight"):
            del written[name]
            parts, meant[name] = quantised(method, weight)
            module = name.removesuffix(".weight")
            written |= {f"{module}.{ending}": part for ending, part in parts.items()}
    save_file(meant, full / "model.safetensors", metadata={"format": "pt"})
    save_file(written, small / "model.safetensors", metadata={"format": "pt"})
    configure(small, **CONFIGS[method], quant_method=method)
    return small, full
