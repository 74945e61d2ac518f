"""Names of a model's modules and weights: with them `planning` checks device maps without torch."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from glm4v_magic.core.model_shape import ModuleTree

if TYPE_CHECKING:
    from torch import nn

__all__ = ["tree_of"]


def tree_of(model: nn.Module) -> ModuleTree:
    """Return the names of a model's modules and weights; it may be on ``meta``."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    ties = {
        name: first[id(tensor)]
        for name, tensor in parameters.items()
        if first.setdefault(id(tensor), name) != name
    }
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return ModuleTree(
        modules=tuple(name for name, _ in model.named_modules()),
        tensors=tuple(name for name, _ in chain(parameters.items(), buffers.items())),
        ties=ties,
        computed=frozenset(buffers.keys() - model.state_dict().keys()),
        values={
            name: tensor.numel() for name, tensor in chain(parameters.items(), buffers.items())
        },
    )
