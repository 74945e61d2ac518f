"""Input x gradient: how much each token's embedding moves the log-probability of a token.

Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating Activation
Differences", 2016, who compare with it; visual tokens are the embeddings of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glm4v_magic.core.errors import OptionError
from glm4v_magic.engines.local import LocalEngine
from glm4v_magic.inspect.reading import Reader

__all__ = ["input_x_gradient", "require_gradients"]


def require_gradients(engine: LocalEngine) -> None:
    """Raise OptionError if gradients cannot pass through the model's weights."""
    info = engine.info
    config = engine.model.config
    if info.quantize is not None or getattr(config, "quantization_config", None) is not None:
        raise OptionError(
            f"{info.model} is quantised, and gradients need the weights themselves.",
            "Ask for the occlusion instead, which needs none.",
        )
    if engine.is_virtual:
        raise OptionError(
            f"{info.model} is on virtual GPUs, which compute no gradients.",
            "Ask for the occlusion instead, which needs none.",
        )
    if "cpu" in info.devices and len(info.devices) > 1:
        raise OptionError(
            f"{info.model} is offloaded: its weights leave the GPU before gradients come back.",
            "Ask for the occlusion instead, which needs none.",
        )


def input_x_gradient(
    reader: Reader, model: nn.Module, token: int, id_: int
) -> np.ndarray[Any, Any]:
    """Return the product of each embedding with its gradient, summed over its components, (L).

    Args:
        reader: reads the prompt and the answer.
        model: the model.
        token: index of the token in the answer.
        id_: its id.
    """
    leaves: list[Tensor] = []

    def begin(module: nn.Module, args: Any, kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        leaves.append(states.detach().clone().requires_grad_())
        if args:
            return (leaves[-1], *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": leaves[-1]}

    handle = reader.text.layers[0].register_forward_pre_hook(begin, with_kwargs=True)
    try:
        with torch.enable_grad(), _frozen(model):
            logits = reader.forward(token, gradients=True)
            (gradient,) = torch.autograd.grad(logits.log_softmax(dim=-1)[id_], leaves[-1])
    finally:
        handle.remove()
    product = (leaves[-1].detach().float() * gradient.float())[0]
    return product.flatten(1).sum(dim=-1).cpu().numpy()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Record no gradients of weights inside the block: they would double the memory."""
    learning = [each for each in model.parameters() if each.requires_grad]
    for each in learning:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in learning:
            each.requires_grad_(True)
