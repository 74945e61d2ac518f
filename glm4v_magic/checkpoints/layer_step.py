"""A decoder layer of a decode step, without what calling its modules costs.

A step computes one column, and on a GPU or with a small model most of its time is spent between
the kernels: in module calls, dictionaries of keyword arguments and tables made again. Here the same
operations follow each other directly, in the same order and with the same roundings, so that the
result is bit for bit that of the layer's forward.

Every projection that is not a plain linear layer, such as a quantised one, is called as the module
it is.

Shapes: B rows, H width of the text part, D size of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import SiLUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from glm4v_magic.checkpoints.bypassed import Hooks, hooks_of, tell

__all__ = ["LayerStep", "hooks_on"]

_Function: TypeAlias = Callable[[Tensor], Tensor]

_REPLACED = (nn.Linear, SiLUActivation)
"""Classes whose function is called; others are called as the modules they are."""


class LayerStep:
    """Computes one new column of all rows in a layer with interleaved rotary positions.

    Args:
        layer: the layer: attention and MLP, each after a norm.
        after_attention: norm of what attention gives, if there is one.
        after_mlp: norm of what the MLP gives, if there is one.

    Attributes:
        before: hooks of the layer that are told when it begins.
        after: hooks of the layer that are told when it ends.
    """

    def __init__(
        self, layer: Any, after_attention: Any | None = None, after_mlp: Any | None = None
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        activation = mlp.activation_fn
        self.before, self.after = hooks_on(layer)
        self._attention = attention
        self._size: int = attention.head_dim
        self._heads: int = attention.q_proj.out_features // self._size
        self._first, self._second = (
            _norm(layer.input_layernorm),
            _norm(layer.post_attention_layernorm),
        )
        self._after_attention = None if after_attention is None else _norm(after_attention)
        self._after_mlp = None if after_mlp is None else _norm(after_mlp)
        self._query, self._key = _linear(attention.q_proj), _linear(attention.k_proj)
        self._value, self._output = _linear(attention.v_proj), _linear(attention.o_proj)
        self._gate_up, self._down = _linear(mlp.gate_up_proj), _linear(mlp.down_proj)
        self._activation = functional.silu if type(activation) is SiLUActivation else activation

    @staticmethod
    def bypassed(layer: Any) -> Iterator[nn.Module]:
        """Yield the modules of a layer that are not called, itself included."""
        attention, mlp = layer.self_attn, layer.mlp
        yield from (layer, attention, mlp, layer.input_layernorm, layer.post_attention_layernorm)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        rest = (*projections, mlp.gate_up_proj, mlp.down_proj, mlp.activation_fn)
        yield from (each for each in rest if type(each) in _REPLACED)

    def __call__(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, columns: Any
    ) -> Tensor:
        """Return the output of the layer, (B, 1, H), and add a column to its cache.

        Args:
            hidden: its input, (B, 1, H).
            cos: cosines, 1 for components that are not rotated, (B, 1, 1, D).
            sin: sines as the rotation adds or subtracts them, 0 for those, (B, 1, 1, D).
            mask: true for the columns that a row attends to, (B, 1, 1, W); ``None`` for all.
            columns: keys and values of the layer.
        """
        tell(self.before)
        attended = self._attended(self._first(hidden), cos, sin, mask, columns)
        if self._after_attention is not None:
            attended = self._after_attention(attended)
        hidden = hidden + attended
        gate, up = self._gate_up(self._second(hidden)).chunk(2, dim=-1)
        found = self._down(up * self._activation(gate))
        if self._after_mlp is not None:
            found = self._after_mlp(found)
        hidden = hidden + found
        tell(self.after)
        return hidden

    def _attended(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, columns: Any
    ) -> Tensor:
        shape = (len(hidden), -1, 1, self._size)
        heads = torch.cat((self._query(hidden).view(shape), self._key(hidden).view(shape)), dim=1)
        # Components are rotated in pairs: each takes up the other, times the sine or its negative.
        others = heads.view(*heads.shape[:-1], -1, 2).flip(-1).view_as(heads)
        heads = heads * cos + others * sin
        key, value = columns.update(heads[:, self._heads :], self._value(hidden).view(shape))
        query = heads[:, : self._heads]
        scaling = self._attention.scaling
        found, _ = sdpa_attention_forward(self._attention, query, key, value, mask, 0.0, scaling)
        return self._output(found.reshape(len(hidden), 1, -1))


def hooks_on(module: nn.Module) -> tuple[Hooks, Hooks]:
    """Return the hooks before and after a module."""
    before, after, *_ = hooks_of([module])
    return before, after


def _linear(module: nn.Module) -> _Function:
    if type(module) is not nn.Linear:
        return module
    return partial(functional.linear, weight=module.weight, bias=module.bias)


def _norm(module: Any) -> _Function:
    weight, eps = module.weight, module.variance_epsilon

    def normed(hidden: Tensor) -> Tensor:
        wide = hidden.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return weight * (wide * scale).to(hidden.dtype)

    return normed
