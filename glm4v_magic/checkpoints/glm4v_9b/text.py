"""The text part: transformers' own GLM decoder, made safe for any device map.

transformers assumes that a decoder layer is on one device. A device map may split it anywhere, so
the classes here bring the operands of two-module operations to one device: the residual adds,
query, key and value, the rotary tables and the mask. The computation is that of `GlmModel`.

Rotary tables and mask are the same for all layers: made once, and copied once to each device per
step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GlmConfig
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.glm.modeling_glm import (
    GlmAttention,
    GlmDecoderLayer,
    GlmModel,
    GlmRotaryEmbedding,
    eager_attention_forward,
    rotate_half,
)

from glm4v_magic.dispatch.copies import shared

__all__ = ["SHARED_ARGUMENTS", "TextAttention", "TextLayer", "TextModel"]

SHARED_ARGUMENTS = ("position_embeddings", "position_ids", "attention_mask")
"""Arguments that all layers share; the hooks that move a layer's input must leave them alone."""


class TextAttention(GlmAttention):
    """`GlmAttention` that computes on the device of its input, wherever its matrices are."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        device = hidden_states.device
        input_shape = hidden_states.shape[:-1]
        heads = (*input_shape, -1, self.head_dim)
        query = self.q_proj(hidden_states).to(device).view(heads).transpose(1, 2)
        key = self.k_proj(hidden_states).to(device).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).to(device).view(heads).transpose(1, 2)

        assert position_embeddings is not None  # `GlmModel` always passes them
        cos, sin = shared(position_embeddings, device)
        query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention_mask = shared(attention_mask, device)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(*input_shape, -1).contiguous()), weights


class TextLayer(GlmDecoderLayer):
    """`GlmDecoderLayer` whose residual stays on the device of the layer's input."""

    def __init__(self, config: GlmConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = TextAttention(config, layer_idx)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        device = hidden_states.device
        attended, _ = self.self_attn(self.input_layernorm(hidden_states).to(device), **kwargs)
        hidden_states = hidden_states + attended.to(device)
        del attended  # or it would stay alive while the MLP needs the most memory
        expanded = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + expanded.to(device)


class TextRotaryEmbedding(GlmRotaryEmbedding):
    """`GlmRotaryEmbedding` that may be on another device than the ids.

    Its tables are interleaved here, once for all layers: (B, 1, L, rotary size).
    """

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().forward(x, position_ids.to(x.device))
        return _interleaved(cos), _interleaved(sin)


def _interleaved(table: Tensor) -> Tensor:
    half = table.shape[-1] // 2
    return table[:, None, :, :half].repeat_interleave(2, dim=-1)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first components of queries or keys, (B, heads, L, head size), by position."""
    size = cos.shape[-1]
    rotary, rest = heads[..., :size], heads[..., size:]
    return torch.cat((rotary * cos + rotate_half(rotary) * sin, rest), dim=-1)


class TextModel(GlmModel):
    """`GlmModel` made of the classes above."""

    _no_split_modules = ("TextLayer",)

    def __init__(self, config: GlmConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            TextLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.rotary_emb = TextRotaryEmbedding(config)
        self.post_init()
