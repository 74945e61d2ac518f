"""LSTM, GRU and plain recurrent layers and cells: their arguments, and what CUDA asks of these.

C++ picks a fused kernel of CUDA, or cuDNN, by the device that a tensor reports, so that none of
these may reach it with a virtual tensor (aten/src/ATen/native/RNN.cpp).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glm4v_magic.virtual_gpus.rules import NO_DATA, Mismatch
from glm4v_magic.virtual_gpus.tensor import CPU, META, leaves

__all__ = ["CELLS", "LAYERS", "LayerCall"]

_FUNCTIONS = torch._C._VariableFunctions

CELLS = {
    getattr(_FUNCTIONS, name): getattr(torch.ops.aten, name).default
    for name in ("gru_cell", "lstm_cell", "rnn_relu_cell", "rnn_tanh_cell")
}
"""Functions of one time step, and their operators: all arguments on one device."""

LAYERS = {
    getattr(_FUNCTIONS, name): getattr(torch.ops.aten, name).input
    for name in ("gru", "lstm", "rnn_relu", "rnn_tanh")
}
"""Functions of whole sequences, and their operators."""


@dataclass(frozen=True, slots=True)
class LayerCall:
    """The tensors of a call of one of `LAYERS`.

    Attributes:
        steps: the input; (tokens, size) if the sequences are packed, else of rank 3.
        batch_sizes: of packed sequences: rows that are left at each time step; on the CPU.
        hidden: the hidden states.
        rest: the parameters, and what is not a tensor.
    """

    steps: torch.Tensor
    batch_sizes: torch.Tensor | None
    hidden: Any
    rest: tuple[Any, ...]

    @classmethod
    def read(cls, args: Sequence[Any]) -> LayerCall:
        """Sort the arguments of either overload, ``input`` and ``data`` (packed sequences)."""
        steps, second, third, *rest = args
        is_packed = isinstance(second, torch.Tensor) and isinstance(rest[0], (list, tuple))
        if is_packed:
            return cls(steps, second, third, tuple(rest))
        return cls(steps, None, second, (third, *rest))

    def arguments(self) -> tuple[Any, ...]:
        """Return the arguments as the function takes them."""
        packed = () if self.batch_sizes is None else (self.batch_sizes,)
        return (self.steps, *packed, self.hidden, *self.rest)

    def movable(self) -> tuple[Any, ...]:
        """Return what has to be on one device."""
        return (self.steps, self.hidden, self.rest)

    def moved(self, steps: torch.Tensor, hidden: Any, rest: tuple[Any, ...]) -> LayerCall:
        """Return the same call with other tensors, and its batch sizes on the CPU."""
        sizes = None if self.batch_sizes is None else self.batch_sizes.cpu()
        return LayerCall(steps, sizes, hidden, rest)

    def device(self) -> torch.device:
        """Return where the layer makes sense: the first device that is not the CPU."""
        devices = (tensor.device for tensor in leaves(*self.movable()))
        return next((device for device in devices if device != CPU), CPU)

    def mismatch(self) -> Mismatch | None:
        """Return CUDA's objection to the devices, if any, in the words of ``check_attributes``."""
        expected = self.steps.device
        if self.batch_sizes is not None and self.batch_sizes.device != CPU:
            return Mismatch(_ON_CPU, CPU, self.batch_sizes.device)
        for name, tensors in (("hidden", leaves(self.hidden)), ("parameter", leaves(self.rest))):
            for tensor in tensors:
                if tensor.device != expected:
                    mixed = _APART.format(name=name, expected=expected, found=tensor.device)
                    is_meta = META in (expected, tensor.device)
                    return Mismatch(NO_DATA if is_meta else mixed, expected, tensor.device)
        return None


_APART = (
    "Input and {name} tensors are not at the same device, found input tensor at {expected} and "
    "{name} tensor at {found}"
)
# torch/nn/utils/rnn.py
_ON_CPU = "batch_sizes should always be on CPU."
