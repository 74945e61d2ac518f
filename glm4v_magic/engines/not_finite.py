"""The error for a model that computes NaN or infinity: where, which weight is to blame, advice.

A broken fine-tune does so everywhere; float16, whose largest number is 65,504, with some images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.model import EngineInfo
from glm4v_magic.core.wording import printable

__all__ = ["BrokenWeight", "broken_weight", "not_finite", "tensors_of"]

_AT_ONCE = 2**24  # values whose mask is in memory at once, 16 MiB


@dataclass(frozen=True, slots=True)
class BrokenWeight:
    """A weight with values that are not finite.

    Attributes:
        name: its name in the model.
        has_nan: whether one of them is NaN; otherwise they may only be too large for the dtype.
    """

    name: str
    has_nan: bool


def not_finite(info: EngineInfo, where: str, broken: BrokenWeight | None) -> EngineError:
    """Return the error that the user sees.

    Args:
        info: facts about the model.
        where: for what it has computed such numbers: ``for the first token of the answer``.
        broken: the first of its weights that is not finite; ``None`` if all are finite.
    """
    what = f"{info.model} computes NaN or infinity {where}:"
    in_float16 = info.dtype == "float16"
    if broken is not None and (broken.has_nan or not in_float16):
        error = EngineError(
            f"{what} its weight {printable(broken.name)} has values that are not finite.",
            "Its training went astray, or its files are damaged: take an earlier step of it, or "
            "another copy.",
        )
    elif in_float16:
        why = "its weights are finite, but what it makes of them is too large for float16."
        if broken is not None:
            why = f"values of its weight {printable(broken.name)} are too large for float16."
        error = EngineError(f"{what} {why}", code="too_large_for_float16")
    else:
        error = EngineError(
            f"{what} its weights are finite, but what it makes of them is not.",
            "Are they as they were trained?",
        )
    # Not even a broken weight spoils all answers: one of the vision tower, those to images alone.
    error.reach = "request"
    return error


def broken_weight(model: nn.Module) -> BrokenWeight | None:
    """Return the first weight of a model that is not finite, offloaded ones included.

    Of one that bitsandbytes has quantised, its scales tell it.
    """
    for name, tensor in tensors_of(model):
        for values in _floats(tensor):
            for part in values.detach().flatten().split(_AT_ONCE):
                own = part.float() if part.dtype.itemsize == 1 else part  # FP8
                if not own.isfinite().all():
                    return BrokenWeight(name, bool(values.isnan().any()))
    return None


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights and buffers of a model with their names, offloaded ones included."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    for name, module in model.named_modules():
        for hook in _hooks(module):
            away = getattr(hook, "weights_map", None) or {}
            for own in away:
                yield ".".join(filter(None, (name, own))), away[own]


def _hooks(module: nn.Module) -> Iterator[object]:
    """Yield accelerate's hooks of a module."""
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", (hook,))


def _floats(tensor: Tensor) -> Iterator[Tensor]:
    state = getattr(tensor, "quant_state", None)
    scales = [getattr(each, "absmax", None) for each in (state, getattr(state, "state2", None))]
    for each in (tensor, *scales, getattr(tensor, "SCB", None)):
        if isinstance(each, torch.Tensor) and each.is_floating_point() and not each.is_meta:
            yield each
