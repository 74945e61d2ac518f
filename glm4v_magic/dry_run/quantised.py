"""Stand-ins for quantised layers: the bytes that bitsandbytes keeps and takes, without its kernels.

A linear layer becomes one whose weight is a row of bytes, as many as bitsandbytes keeps for it with
its scales. It computes through the same steps (bitsandbytes, ``autograd/_functions.py``), so that a
dry run sees what is alive beside its input and result: the matrix restored for 4-bit, or an int32
product for 8-bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from glm4v_magic.planning.costs import arriving_bytes, quantized_bytes

if TYPE_CHECKING:
    from glm4v_magic.core.model_shape import ModelShape
    from glm4v_magic.core.options import Quantization

__all__ = ["put_stand_ins", "while_quantised"]


def put_stand_ins(model: nn.Module, shape: ModelShape, quantize: Quantization | None) -> None:
    """Replace the quantised linear layers of a model on ``meta``.

    Args:
        model: the model.
        shape: its sizes, which tell what the checkpoint has quantised.
        quantize: quantisation as the weights are loaded.
    """
    kind = shape.packed or quantize
    if kind is None:
        return
    for name, nbytes in list(_quantised(model, shape, kind)):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, _StandIn(linear, kind, nbytes, is_made=shape.packed is None))


def while_quantised(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the layers that are quantised as they are loaded, and what is alive beside each."""
    for name, module in model.named_modules():
        if isinstance(module, _StandIn) and module.arriving:
            yield name, module.arriving


def _quantised(
    model: nn.Module, shape: ModelShape, kind: Quantization
) -> Iterator[tuple[str, int]]:
    """Yield the names of the layers that are quantised, and their bytes."""
    for unit in shape.units:
        if shape.packed is not None:
            yield from ((each.module, each.nbytes) for each in unit.packed)
            continue
        for module in unit.modules if unit.linear_values else ():
            for inner, layer in model.get_submodule(module).named_modules():
                if type(layer) is nn.Linear:
                    name = f"{module}.{inner}".rstrip(".")
                    yield name, quantized_bytes(kind, layer.weight.numel(), layer.out_features)


class _StandIn(nn.Module):
    """A quantised linear layer: bytes for a weight, and a bias in the model's dtype."""

    def __init__(
        self, linear: nn.Linear, kind: Quantization, nbytes: int, *, is_made: bool
    ) -> None:
        super().__init__()
        per_value = arriving_bytes(kind, linear.weight.itemsize) if is_made else 0
        self.arriving = linear.weight.numel() * per_value
        self._kind = kind
        self._size = linear.out_features, linear.in_features
        stored = torch.empty(nbytes, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.bias = linear.bias

    def forward(self, values: Tensor) -> Tensor:
        """Return a result of the right size without computing its values."""
        rows, columns = self._size
        if self._kind == "4bit":
            matrix = self.weight.new_empty((rows, columns), dtype=values.dtype)
            return functional.linear(values, matrix, self.bias)
        levels = values.to(torch.float16).to(torch.int8)
        # A row alone, and no product, which GPUs have of integers by bitsandbytes' kernel only.
        row = self.weight[:columns].view(torch.int8).view(1, columns)
        torch.add(levels.flatten(0, -2)[:1], row)  # refuses mixed devices
        product = levels.new_empty((*values.shape[:-1], rows), dtype=torch.int32)
        result = product.to(torch.float16)
        del product
        result = result.to(values.dtype)
        return result if self.bias is None else result.add_(self.bias)
