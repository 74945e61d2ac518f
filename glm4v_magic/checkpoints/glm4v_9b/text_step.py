"""One decode step of the text part, without what calling its modules costs.

Only layers are taken apart, see `layer_step`. Embedding, last norm and head are called as the
modules they are. Where somebody has put hooks on a module that would not be called, the model's own
forward runs; hooks on a layer or the rotary table that only note when it begins and ends are told
instead.

Shapes: B rows, H width of the text part, D size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.models.glm.modeling_glm import GlmMLP, GlmRMSNorm

from glm4v_magic.checkpoints.bypassed import (
    hooks_of,
    is_changed,
    is_whole,
    only_listen,
    tell,
    whole_step,
)
from glm4v_magic.checkpoints.glm4v_9b.text import TextAttention, TextLayer
from glm4v_magic.checkpoints.layer_step import LayerStep, hooks_on

if TYPE_CHECKING:
    from glm4v_magic.checkpoints.glm4v_9b.modeling import Glm4v9bForConditionalGeneration

__all__ = ["TextStep", "text_step"]


class TextStep:
    """Computes one new column of all rows; made by `text_step`.

    Args:
        model: the model, as it is now: made anew for each answer.
    """

    def __init__(self, model: Glm4v9bForConditionalGeneration) -> None:
        self._model = model
        text: Any = model.model.language_model
        self._embed, self._norm, self._head = text.embed_tokens, text.norm, model.lm_head
        self._layers = [LayerStep(layer) for layer in text.layers]
        self._hooks = hooks_of(list(_bypassed(model)))
        self._on_tables = hooks_on(text.rotary_emb)
        self._told = list(self._on_tables)
        for layer in self._layers:
            self._told += (layer.before, layer.after)
        size = text.layers[0].self_attn.head_dim
        self._scaling = text.rotary_emb.attention_scaling
        # Components of a head that are not rotated have the frequency 0: times 1, plus 0.
        rotary = text.rotary_emb.inv_freq.float().repeat_interleave(2)
        self._frequencies = functional.pad(rotary, (0, size - len(rotary)))
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
            hidden = layer(hidden, cos, sin, seen, columns)
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
        yield from LayerStep.bypassed(layer)
