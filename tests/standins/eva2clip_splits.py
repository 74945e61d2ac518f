"""Run the stand-in for GLM-4V-9B's own code on any split, and the splits in which one place fails.

In each split of `SITES` everything lives on one GPU except the named modules and parameters, so
that exactly one operation has its operands on two GPUs.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import ModuleType

import torch
from accelerate import dispatch_model
from torch import nn

FOLDER = Path(__file__).parent / "eva2clip"

_VISION = "transformer.vision"
_LAYER = f"{_VISION}.transformer.layers.1"
_BLOCK = "transformer.encoder.layers.1"
_fresh = count()


@dataclass(frozen=True)
class OneSite:
    """What to put apart, and where the one error must then come from."""

    apart: tuple[str, ...]
    module: str
    code: str
    padded: bool = False
    message: str = "Expected all tensors to be on the same device, but found at least two devices"


SITES = {
    "splice": OneSite((_VISION,), "transformer", "torch.cat((words"),
    "residual after attention": OneSite(
        (f"{_LAYER}.attention", f"{_LAYER}.input_layernorm"), _LAYER, "tokens + seen"
    ),
    "residual after MLP": OneSite(
        (f"{_LAYER}.mlp", f"{_LAYER}.post_attention_layernorm"), _LAYER, "middle + thought"
    ),
    "boi": OneSite((f"{_VISION}.boi",), _VISION, "torch.cat((start"),
    "eoi": OneSite((f"{_VISION}.eoi",), _VISION, "torch.cat((start"),
    "gated product": OneSite(
        (f"{_VISION}.linear_proj.gate_proj",), f"{_VISION}.linear_proj", "self.gate_proj(features)"
    ),
    "class token": OneSite(
        (f"{_VISION}.patch_embedding.cls_embedding",),
        f"{_VISION}.patch_embedding",
        "torch.cat((first",
    ),
    "position embedding": OneSite(
        (f"{_VISION}.patch_embedding.position_embedding",),
        f"{_VISION}.patch_embedding",
        "patches += ",
    ),
    "rotary embedding": OneSite(
        ("transformer.rotary_pos_emb",),
        "transformer",
        "rotary[position_ids]",
        message="indices should be either on cpu or on the same device as the indexed tensor",
    ),
    "padding mask": OneSite(
        ("transformer.embedding", _VISION, "transformer.rotary_pos_emb"),
        "transformer",
        "full_mask * padding_mask",
        padded=True,
    ),
    "residual after attention, text": OneSite(
        (f"{_BLOCK}.self_attention.dense",), _BLOCK, "carried + middle"
    ),
    "residual after MLP, text": OneSite((f"{_BLOCK}.mlp",), _BLOCK, "carried + output"),
}


def load(folder: Path = FOLDER) -> ModuleType:
    """Import `modeling_chatglm` from a folder, under a package name of its own."""
    package = f"eva2clip_{next(_fresh)}"
    spec = importlib.util.spec_from_loader(package, loader=None, is_package=True)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__path__ = [str(folder)]
    sys.modules[package] = module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript, as in the published code
        return importlib.import_module(f"{package}.modeling_chatglm")


def build(modeling: ModuleType) -> nn.Module:
    """The same seeded weights for every revision of the code; none of them zero."""
    torch.manual_seed(0)
    model: nn.Module = modeling.ChatGLMForConditionalGeneration(modeling.ChatGLMConfig())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.eval().requires_grad_(False)


def example(device: str = "cpu", padded: bool = False) -> dict[str, torch.Tensor]:
    """Two rows of text with an image each; the first padded on the left, if asked for."""
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "input_ids": torch.tensor([[0, 1, 5, 6], [7, 1, 9, 2]]).to(device),
        "images": torch.randn(2, 3, 8, 8, generator=generator).to(device),
    }
    if padded:
        mask = torch.ones(2, 9, dtype=torch.long)  # three words and six image features
        mask[0, 0] = 0
        inputs["attention_mask"] = mask.to(device)
    return inputs


def units(model: nn.Module, inside_blocks: bool = False) -> list[str]:
    """Names that a device map may put anywhere: leaves and parameters, of text layers if asked."""
    names: list[str] = []
    for name, module in model.named_modules():
        if type(module).__name__ == "GLMBlock" and not inside_blocks:
            names.append(name)
        elif inside_blocks or ".encoder.layers." not in name:
            own = [parameter for parameter, _ in module.named_parameters(recurse=False)]
            if list(module.children()):
                names += [f"{name}.{parameter}".lstrip(".") for parameter in own]
            elif own or list(module.buffers(recurse=False)):
                names.append(name)
    return names


def map_apart(model: nn.Module, apart: tuple[str, ...], home: int = 0, away: int = 1) -> dict:
    """A device map with the modules and parameters `apart` on one GPU and the rest on another."""
    inside = any(part.startswith(f"{_BLOCK}.") for part in apart)
    return {
        name: away if any(f"{name}.".startswith(f"{part}.") for part in apart) else home
        for name in units(model, inside)
    }


def place(model: nn.Module, device_map: Mapping[str, int | str]) -> None:
    """Put a model on GPUs as `from_pretrained` does: the weights first, then accelerate's hooks.

    What the map puts on "cpu" is offloaded: accelerate loads it for each call of its module.
    """
    for name, place in device_map.items():
        device = "cpu" if place == "cpu" else f"cuda:{place}"
        owner_name, _, own = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        if own in owner._parameters:
            moved = owner.get_parameter(own).to(device)
            setattr(owner, own, nn.Parameter(moved, requires_grad=False))
        else:
            model.get_submodule(name).to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # accelerate on maps that name parameters
        dispatch_model(model, dict(device_map), main_device="cuda:0")


def run(model: nn.Module, device: str = "cuda:0", padded: bool = False) -> torch.Tensor:
    """Logits of the example on the CPU."""
    logits: torch.Tensor = model(**example(device, padded))
    return logits.cpu()


def answers(model: nn.Module, device: str = "cuda:0") -> list[torch.Tensor]:
    """Logits of the example, padded and not, each with a step of decoding after it; on the CPU."""
    seen = []
    for padded in (False, True):
        inputs = example(device, padded)
        logits, cache = model(**inputs, use_cache=True)
        mask = inputs.get("attention_mask")
        if padded:
            mask = torch.cat((mask, mask.new_ones(2, 1)), dim=1)
        positions = torch.full((2, 1), logits.shape[1], device=device)
        step, _ = model(
            torch.tensor([[4], [8]], device=device),
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        seen += [logits.cpu(), step.cpu()]
    return seen
