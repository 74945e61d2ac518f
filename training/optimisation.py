"""AdamW on float32 master copies of low-precision weights, and learning-rate schedules."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["MasterWeights", "cosine", "hold_then_decay"]

# All 588 pixels of a plain patch have one sign, so that Adam's steps of equal size add up: at
# the full rate one step moves a white patch further than the features it is made of.
_PIXEL_RATE = 0.1
_PIXELS = re.compile(r"patch_embed(ding)?\.proj")


class MasterWeights:
    """Keeps float32 copies of the modules' weights and updates both.

    bfloat16 halves the time of a step on CPUs that have it, but its 8 bits of mantissa swallow
    small updates; the copies do not.
    """

    def __init__(
        self, modules: Iterable[nn.Module], dtype: torch.dtype, weight_decay: float = 0.05
    ) -> None:
        modules = list(modules)
        named = [pair for module in modules for pair in module.named_parameters()]
        self._masters: list[Tensor] = [nn.Parameter(p.detach().float().clone()) for _, p in named]
        for module in modules:
            module.to(dtype)
        self._working: list[Tensor] = [
            parameter for module in modules for parameter in module.parameters()
        ]
        alike: defaultdict[tuple[float, float], list[Tensor]] = defaultdict(list)
        for (name, _), master in zip(named, self._masters, strict=True):
            decay = weight_decay if master.ndim > 1 else 0.0
            alike[decay, _PIXEL_RATE if _PIXELS.search(name) else 1.0].append(master)
        groups = [
            {"params": masters, "weight_decay": decay, "scale": scale}
            for (decay, scale), masters in alike.items()
        ]
        self._optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)

    def step(self, loss: Tensor, learning_rate: float, clip: float = 1.0) -> Tensor:
        """Backward, clip, update; returns the norm of the gradient before clipping.

        Nothing here waits for a GPU.
        """
        for parameter in self._working:
            parameter.grad = None
        loss.backward()
        for master, working in zip(self._masters, self._working, strict=True):
            master.grad = None if working.grad is None else working.grad.float()
        norm = torch.nn.utils.clip_grad_norm_(self._masters, clip)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate * group["scale"]
        self._optimiser.step()
        with torch.no_grad():
            torch._foreach_copy_(self._working, self._masters)
        return norm

    def full_precision(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the float32 weights of one of the modules, by name."""
        master_of = {
            id(working): master
            for master, working in zip(self._masters, self._working, strict=True)
        }
        return {
            name: master_of[id(parameter)].detach().clone()
            for name, parameter in module.named_parameters()
        }


def hold_then_decay(peak: float, step: int, progress: float) -> float:
    """Return a learning rate: 100 steps of warm-up, constant, linear to 10 % in the last 40 %."""
    warm = min(1.0, (step + 1) / 100)
    return peak * warm * (1.0 if progress < 0.6 else 1.0 - 0.9 * (progress - 0.6) / 0.4)


def cosine(peak: float, step: int, progress: float) -> float:
    """Return a learning rate: 150 steps of warm-up, then half a cosine down to 3 %."""
    warm = min(1.0, (step + 1) / 150)
    return peak * warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress)))
