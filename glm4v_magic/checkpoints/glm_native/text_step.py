"""One decode step of the text part: its layers one after the other, without the models around them.

A step has no image to put in place and computes one column, so the outer models and their
decorators would only pass arguments on. Dense layers are taken apart (`layer_step`);
others, norm, rotary embedding and head are called as the modules they are, with what transformers'
own forward gives them: logits are bit for bit the same. Where somebody has put hooks on a module
that would not be called, the model's own forward runs; hooks on a layer that only note when it
begins and ends are told instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.models.glm4v.modeling_glm4v import (
    Glm4vRMSNorm,
    Glm4vTextAttention,
    Glm4vTextDecoderLayer,
    Glm4vTextMLP,
    Glm4vTextModel,
)
from transformers.models.glm4v_moe.modeling_glm4v_moe import Glm4vMoeTextModel
from transformers.models.glm_ocr.modeling_glm_ocr import (
    GlmOcrRMSNorm,
    GlmOcrTextAttention,
    GlmOcrTextDecoderLayer,
    GlmOcrTextMLP,
    GlmOcrTextModel,
)

from glm4v_magic.checkpoints.bypassed import (
    Hooks,
    hooks_of,
    is_changed,
    is_whole,
    only_listen,
    whole_step,
)
from glm4v_magic.checkpoints.layer_step import LayerStep

__all__ = ["TextStep", "text_step"]

_KNOWN = (Glm4vTextModel, Glm4vMoeTextModel, GlmOcrTextModel)
"""Text parts whose forward is that of `TextStep`."""

_DENSE = {
    Glm4vTextDecoderLayer: (Glm4vTextAttention, Glm4vTextMLP, Glm4vRMSNorm),
    GlmOcrTextDecoderLayer: (GlmOcrTextAttention, GlmOcrTextMLP, GlmOcrRMSNorm),
}
"""Layers whose forward is that of `LayerStep`: attention, MLP and norms."""


class TextStep:
    """Computes one new column of all rows; made by `text_step`.

    Args:
        model: the model, as it is now: made anew for each answer.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        text = model.model.language_model
        self._config, self._embed, self._rotary = text.config, text.embed_tokens, text.rotary_emb
        self._layers: list[Any] = []
        self._told: list[Hooks] = []
        for layer in text.layers[: text.config.num_hidden_layers]:
            self._layers.append(_taken_apart(layer) if _is_dense(layer) else layer)
        for each in self._layers:
            if isinstance(each, LayerStep):
                self._told += (each.before, each.after)
        self._norm, self._head = text.norm, model.lm_head
        self._hooks = hooks_of(_bypassed(model))
        self._turns = torch.tensor([-1.0, 1.0], device=text.norm.weight.device)
        self._size = getattr(text.layers[0].self_attn, "head_dim", 0)

    def __call__(
        self, ids: Tensor, mask: Tensor | None, position_ids: Tensor, cache: Cache
    ) -> Tensor:
        """Return the logits of the next token, (B, vocabulary), and add a column to the cache.

        Args:
            ids: (B, 1).
            mask: 1 marks the columns of each row that are in use, the new one included; ``None`` if
                all are.
            position_ids: (3, B, 1): time, height and width.
            cache: KV cache of at least one column.
        """
        if any(self._hooks) and not only_listen(self._hooks, self._told):
            return whole_step(self._model, ids, mask, position_ids, cache)
        hidden = self._embed(ids)
        seen = None
        if mask is not None:
            seen = create_causal_mask(
                config=self._config,
                inputs_embeds=hidden,
                attention_mask=mask,
                past_key_values=cache,
                position_ids=None,
            )
        turned = self._rotary(hidden, position_ids=position_ids)
        cos, sin = self._tables(*turned) if self._told else turned
        for layer, columns in zip(self._layers, cache.layers, strict=True):
            if isinstance(layer, LayerStep):
                hidden = layer(hidden, cos, sin, seen, columns)
                continue
            hidden = layer(
                hidden,
                attention_mask=seen,
                position_ids=None,
                past_key_values=cache,
                position_embeddings=turned,
            )
        logits = self._head(self._norm(hidden))
        return logits[:, -1]

    def _tables(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tables of a `LayerStep`, (B, 1, 1, D), from those of the model, (B, 1, R)."""
        rest = self._size - cos.shape[-1]
        turned = (sin.unflatten(-1, (-1, 2)) * self._turns.to(sin.dtype)).flatten(-2)
        if rest:
            cos, turned = (
                functional.pad(cos, (0, rest), value=1.0),
                functional.pad(turned, (0, rest)),
            )
        return cos[:, None], turned[:, None]


def text_step(model: Any) -> TextStep | None:
    """Return a faster step for a model; ``None`` for a split, changed or unusual one."""
    text: Any = getattr(model.model, "language_model", None)
    if type(text) not in _KNOWN or text.config._attn_implementation != "sdpa":
        return None
    if not is_whole(model, text, model.lm_head) or is_changed(_bypassed(model)):
        return None
    return TextStep(model)


def _is_dense(layer: Any) -> bool:
    """Tell whether a layer computes what a `LayerStep` does."""
    parts = _DENSE.get(type(layer))
    if parts is None:
        return False
    attention, mlp, norm = parts
    are_norms = all(type(each) is norm for each in _norms(layer))
    return type(layer.self_attn) is attention and type(layer.mlp) is mlp and are_norms


def _norms(layer: Any) -> tuple[Any, ...]:
    return (
        layer.input_layernorm,
        layer.post_attention_layernorm,
        layer.post_self_attn_layernorm,
        layer.post_mlp_layernorm,
    )


def _taken_apart(layer: Any) -> LayerStep:
    return LayerStep(layer, layer.post_self_attn_layernorm, layer.post_mlp_layernorm)


def _bypassed(model: Any) -> list[Any]:
    """Return the modules that a step does not call."""
    text = model.model.language_model
    found = [model, model.model, text]
    for layer in text.layers:
        if _is_dense(layer):
            found += (*LayerStep.bypassed(layer), *_norms(layer)[2:])
    return found
