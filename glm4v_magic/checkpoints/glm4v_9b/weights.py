"""Mapping between the published weight names and the modules of `modeling`.

    transformer.embedding.word_embeddings            model.language_model.embed_tokens
    transformer.encoder.layers.N                     model.language_model.layers.N
        .self_attention.query_key_value                  .self_attn.{q,k,v}_proj (rows in order)
        .self_attention.dense                            .self_attn.o_proj
        .mlp.dense_h_to_4h (gate rows, then up)          .mlp.gate_up_proj (same order)
        .mlp.dense_4h_to_h                               .mlp.down_proj
    transformer.encoder.final_layernorm              model.language_model.norm
    transformer.output_layer                         lm_head
    transformer.vision                               model.vision (same names below)
    transformer.rotary_pos_emb.inv_freq              computed, not loaded

The rows need no permutation: `GlmModel` rotates interleaved pairs as the original does.
Loading applies `conversions`, saving their inverse, so saved checkpoints have the published names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    WeightConverter,
    WeightRenaming,
)

from glm4v_magic.checkpoints.glm4v_9b import layout

__all__ = ["IGNORED", "conversions", "own_names"]

IGNORED = (r"rotary_pos_emb\.inv_freq",)
"""Patterns of published names that are not loaded."""


class SplitQueryKeyValue(ConversionOps):
    """Cut the rows of a fused matrix or bias into query, key and value."""

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        config: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Return rows (heads * dim), (groups * dim), (groups * dim) under the three targets."""
        (fused,) = input_dict.values()
        fused = fused[0] if isinstance(fused, list) else fused
        text = config.get_text_config()
        sizes = [
            text.num_attention_heads * text.head_dim,
            text.num_key_value_heads * text.head_dim,
            text.num_key_value_heads * text.head_dim,
        ]
        parts = fused.split(sizes, dim=0)
        return {
            target: part.contiguous() for target, part in zip(target_patterns, parts, strict=True)
        }

    @property
    def reverse_op(self) -> ConversionOps:
        """Return the inverse: the rows of query, key and value, one after the other."""
        return Concatenate(dim=0)


def conversions() -> list[WeightRenaming | WeightConverter]:
    """Return the mapping of the module docstring in the form that `from_pretrained` applies."""
    return [
        *(WeightRenaming(source, target) for source, target in layout.RENAMINGS.items()),
        WeightConverter(
            layout.FUSED,
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            operations=[SplitQueryKeyValue()],
        ),
    ]


def own_names(published: str) -> tuple[str, ...]:
    """Return the names here of a published weight; several if it is cut into parts."""
    name = published
    for transform in conversions():
        renamed, found = transform.rename_source_key(name)
        if found is not None and len(transform.target_patterns) > 1:
            before, _, after = name.partition(found)
            return tuple(f"{before}{each}{after}" for each in transform.target_patterns)
        name = renamed
    return (name,)
