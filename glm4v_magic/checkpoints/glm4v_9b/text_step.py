"""One decode step of the text part, without what calling its modules costs.

A step computes one column, and on a GPU or with a small model most of its time is spent between
the kernels: in module calls, dictionaries of keyword arguments and tables made again. Here the same
operations follow each other directly, in the same order and with the same roundings, so that logits
are bit for bit those of the model's forward.

Only layers are taken apart. Embedding, last norm and head are called as the modules they are, and
so is every projection that is not a plain linear layer, such as a quantised one. Where somebody
has put hooks on a module that would not be called, the model's own forward runs; hooks on a layer
or the rotary table that only note when it begins and ends are told instead.

Shapes: B rows, H width of the text part, D size of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import SiLUActivation
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.glm.modeling_glm import GlmMLP, GlmRMSNorm

from glm4v_magic.checkpoints.bypassed import (
    Hooks,
    hooks_of,
    is_changed,
    is_whole,
    only_listen,
    tell,
    whole_step,
)
from glm4v_magic.checkpoints.glm4v_9b.text import TextAttention, TextLayer

if TYPE_CHECKING:
    from glm4v_magic.checkpoints.glm4v_9b.modeling import Glm4v9bForConditionalGeneration

__all__ = ["TextStep", "text_step"]

Projection: TypeAlias = Callable[[Tensor], Tensor]

_REPLACED = (nn.Linear, SiLUActivation)
"""Classes whose function is called; others are called as the modules they are."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a layer computes with, and the hooks before and after it."""

    before: Hooks
    after: Hooks
    attention: TextAttention
    norms: tuple[Projection, Projection]
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    gate_up: Projection
    down: Projection
    activation: Projection


class TextStep:
    """Computes one new column of all rows; made by `text_step`.

    Args:
        model: the model, as it is now: made anew for each answer.
    """

    def __init__(self, model: Glm4v9bForConditionalGeneration) -> None:
        self._model = model
        text: Any = model.model.language_model
        self._embed, self._norm, self._head = text.embed_tokens, text.norm, model.lm_head
        self._layers = [_taken_apart(layer) for layer in text.layers]
        self._hooks = hooks_of(list(_bypassed(model)))
        self._on_tables = _hooks_on(text.rotary_emb)
        self._told = list(self._on_tables)
        for layer in self._layers:
            self._told += (layer.before, layer.after)
        config = text.config
        self._heads, self._size = config.num_attention_heads, text.layers[0].self_attn.head_dim
        self._scaling = text.rotary_emb.attention_scaling
        # Components of a head that are not rotated have the frequency 0: times 1, plus 0.
        rotary = text.rotary_emb.inv_freq.float().repeat_interleave(2)
        self._frequencies = functional.pad(rotary, (0, self._size - len(rotary)))
        self._rotary = len(rotary)
        self._turns = torch.ones_like(self._frequencies)
        self._turns[::2] = -1

    def __call__(
        self, ids: Tensor, mask: Tensor | None, position_ids: Tensor, cache: Cache
    ) -> Tensor:
        """Return the logits of the next token, (B, vocabulary), and add a column to the cache.

        Args:
            ids: (B, 1).
            mask: 1 marks the columns of each row that are in use, the new one included; ``None`` if
                all are.
            position_ids: (B, 1).
            cache: KV cache of at least one column.
        """
        if any(self._hooks) and not only_listen(self._hooks, self._told):
            return whole_step(self._model, ids, mask, position_ids, cache)
        hidden = self._embed(ids)
        before, after = self._on_tables
        tell(before)
        cos, sin = self._tables(position_ids, hidden.dtype)
        tell(after)
        seen = None if mask is None else mask.bool()[:, None, None]
        for layer, columns in zip(self._layers, cache.layers, strict=True):
            tell(layer.before)
            first, second = layer.norms
            hidden = hidden + self._attended(layer, first(hidden), cos, sin, seen, columns)
            gate, up = layer.gate_up(second(hidden)).chunk(2, dim=-1)
            hidden = hidden + layer.down(up * layer.activation(gate))
            tell(layer.after)
        logits = self._head(self._norm(hidden))
        return logits[:, -1]

    def _tables(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cos, and sin as the rotation adds or subtracts it, (B, 1, 1, D)."""
        angles = position_ids[:, None, :, None].float() * self._frequencies
        cos, sin = angles.cos(), angles.sin() * self._turns
        if self._scaling != 1:
            cos[..., : self._rotary] *= self._scaling
            sin *= self._scaling
        return cos.to(dtype), sin.to(dtype)

    def _attended(
        self,
        layer: _Layer,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        columns: Any,
    ) -> Tensor:
        shape = (len(hidden), -1, 1, self._size)
        heads = torch.cat((layer.query(hidden).view(shape), layer.key(hidden).view(shape)), dim=1)
        # Components are rotated in pairs: each takes up the other, times the sine or its negative.
        others = heads.view(*heads.shape[:-1], -1, 2).flip(-1).view_as(heads)
        heads = heads * cos + others * sin
        key, value = columns.update(heads[:, self._heads :], layer.value(hidden).view(shape))
        query = heads[:, : self._heads]
        scaling = layer.attention.scaling
        found, _ = sdpa_attention_forward(layer.attention, query, key, value, mask, 0.0, scaling)
        return layer.output(found.reshape(len(hidden), 1, -1))


def text_step(model: Glm4v9bForConditionalGeneration) -> TextStep | None:
    """Return a faster step for a model; ``None`` for a split, changed or unusual one."""
    text: Any = model.model.language_model
    if not all(map(_is_own, text.layers)) or text.config._attn_implementation != "sdpa":
        return None
    if not is_whole(model, text, model.lm_head) or is_changed(list(_bypassed(model))):
        return None
    return TextStep(model)


def _is_own(layer: Any) -> bool:
    """Tell whether a layer computes what a step does."""
    if type(layer) is not TextLayer:
        return False
    norms = {type(layer.input_layernorm), type(layer.post_attention_layernorm)}
    kinds = (type(layer.self_attn), type(layer.mlp), norms)
    return kinds == (TextAttention, GlmMLP, {GlmRMSNorm})


def _bypassed(model: Glm4v9bForConditionalGeneration) -> Iterator[nn.Module]:
    """Yield the modules that a step does not call."""
    text: Any = model.model.language_model
    yield from (model, model.model, text, text.rotary_emb)
    for layer in text.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield from (layer, attention, mlp, layer.input_layernorm, layer.post_attention_layernorm)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        rest = (*projections, mlp.gate_up_proj, mlp.down_proj, mlp.activation_fn)
        yield from (each for each in rest if type(each) in _REPLACED)


def _taken_apart(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    activation = mlp.activation_fn
    return _Layer(
        *_hooks_on(layer),
        attention,
        (_norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)),
        _linear(attention.q_proj),
        _linear(attention.k_proj),
        _linear(attention.v_proj),
        _linear(attention.o_proj),
        _linear(mlp.gate_up_proj),
        _linear(mlp.down_proj),
        functional.silu if type(activation) is SiLUActivation else activation,
    )


def _hooks_on(module: nn.Module) -> tuple[Hooks, Hooks]:
    """Return the hooks before and after a module."""
    before, after, *_ = hooks_of([module])
    return before, after


def _linear(module: nn.Module) -> Projection:
    if type(module) is not nn.Linear:
        return module
    return partial(functional.linear, weight=module.weight, bias=module.bias)


def _norm(module: Any) -> Projection:
    weight, eps = module.weight, module.variance_epsilon

    def normed(hidden: Tensor) -> Tensor:
        wide = hidden.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return weight * (wide * scale).to(hidden.dtype)

    return normed
