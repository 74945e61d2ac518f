"""Modules whose work a decode step does without calling them: whether that goes unnoticed.

Calling a module runs the hooks on it, and a forward that somebody has put in place of its own. A
step that does without the call must not be used where either is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from accelerate.hooks import AlignDevicesHook
from torch import Tensor, nn
from transformers.cache_utils import Cache

from glm4v_magic.dispatch.activity import Listener

__all__ = ["Hooks", "hooks_of", "is_changed", "is_whole", "only_listen", "tell", "whole_step"]

Hooks: TypeAlias = Mapping[int, Any]
"""Hooks of one kind on a module, as torch keeps them: empty as long as there is none."""


def is_whole(model: nn.Module, *parts: nn.Module) -> bool:
    """Tell whether a model is in evaluation mode, and all weights of `parts` are on one device.

    Args:
        model: the model.
        parts: the parts that a step uses.
    """
    devices = {weight.device for part in parts for weight in part.parameters()}
    return len(devices) == 1 and torch.device("meta") not in devices and not model.training


def is_changed(modules: Sequence[nn.Module]) -> bool:
    """Tell whether one of the modules that a step does not call has another forward than its own.

    Args:
        modules: the modules. accelerate may move the input of the first, which is the whole model,
            to its device: the caller of a step has done that.
    """
    whole, *parts = modules
    return any(map(_has_other_forward, parts)) or (
        _has_other_forward(whole) and not _is_only_moved(whole)
    )


def _has_other_forward(module: nn.Module) -> bool:
    return "forward" in vars(module) or module._compiled_call_impl is not None


def _is_only_moved(model: nn.Module) -> bool:
    is_moved = isinstance(getattr(model, "_hf_hook", None), AlignDevicesHook)
    return is_moved and isinstance(vars(model).get("forward"), partial)


def hooks_of(modules: Sequence[nn.Module]) -> list[Hooks]:
    """Return all hooks on modules: those before and after each, and those on all modules."""
    found: list[Hooks] = []
    for module in modules:
        found += (module._forward_pre_hooks, module._forward_hooks)
    everywhere = torch.nn.modules.module
    return [*found, everywhere._global_forward_pre_hooks, everywhere._global_forward_hooks]


def only_listen(hooks: Sequence[Hooks], told: Sequence[Hooks]) -> bool:
    """Tell whether all hooks are listeners that a step calls itself.

    Args:
        hooks: from `hooks_of`.
        told: those of them that the step calls.
    """
    served = {id(each) for each in told}
    return all(
        id(each) in served and all(type(hook) is Listener for hook in each.values())
        for each in hooks
        if each
    )


def tell(hooks: Hooks) -> None:
    """Call hooks that only listen."""
    for hook in hooks.values():
        hook()


def whole_step(
    model: Any, ids: Tensor, mask: Tensor | None, position_ids: Tensor, cache: Cache
) -> Tensor:
    """Return the logits of the next token, (B, vocabulary), from the model's own forward.

    Args:
        model: the whole model.
        ids: (B, 1).
        mask: 1 marks the columns of each row that are in use; ``None`` if all are.
        position_ids: (B, 1) or (3, B, 1), as the model takes them.
        cache: KV cache of at least one column; gets another.
    """
    logits: Tensor = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return logits[:, -1]
