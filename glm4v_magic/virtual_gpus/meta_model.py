"""Turns a model on ``meta`` into one without data that can be dispatched."""

from __future__ import annotations

import torch
from torch import nn

from glm4v_magic.virtual_gpus.tensor import CPU, META, Owner, VirtualTensor

__all__ = ["without_data"]


def without_data(model: nn.Module, owner: Owner) -> None:
    """Turn the parameters and buffers of `model` into virtual CPU tensors without data, in place.

    Tied parameters stay tied.
    """
    replaced: dict[int, VirtualTensor] = {}

    def on_cpu(tensor: torch.Tensor) -> VirtualTensor:
        if id(tensor) not in replaced:
            replaced[id(tensor)] = VirtualTensor.wrap(tensor.detach().to(META), CPU, "", owner)
        return replaced[id(tensor)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                virtual = on_cpu(parameter)
                virtual._is_param = True
                # isinstance(virtual, nn.Parameter) holds now: it checks that attribute
                module._parameters[name] = virtual  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = on_cpu(buffer)
