"""Units of the text part with their sizes and modules, from ``config.json`` alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from glm4v_magic.checkpoints.glm_native.config_file import has_experts, head_size, rotated_values
from glm4v_magic.checkpoints.glm_native.fp8 import Fp8
from glm4v_magic.checkpoints.glm_native.tower import KEPT_VISUAL
from glm4v_magic.core.model_shape import Activation, Product, UnitShape
from glm4v_magic.planning import costs

__all__ = [
    "SORTING",
    "Matrix",
    "chosen_experts",
    "expert_matrices",
    "gated",
    "in_fp8",
    "joined_experts",
    "text_units",
]

Matrix: TypeAlias = tuple[str, int, int, int]
"""Name of a module in a layer; rows, columns and number of its matrices."""

_TEXT = "model.language_model"
_EXPERTS = "mlp.experts"
_FLOAT32 = 4
_INT32 = 4
_INT64 = 8
_OF_TOKEN = 6 * _INT64 + _INT32
"""Bytes per token that are with the embedding, besides its vectors: id, mask, its positions on four
axes, and its type."""

SORTING = 4 * _INT64 + 2 * _FLOAT32 + _INT32
"""Bytes per token and chosen expert while tokens are sorted by expert: the expert's number, as
chosen, sorted, and counted; two orders; and the router's weight as chosen, and sorted."""

_ROTARY = 25
"""Bytes per token and rotated value while cosines and sines are made: on three axes in float32, the
angles of half the values, and what is joined of them."""


def text_units(text: Mapping[str, Any], fp8: Fp8 | None = None) -> Iterator[UnitShape]:
    """Yield embedding with rotary, each decoder layer, then the final norm with the head.

    Args:
        text: ``text_config``, with the ``attention_bias`` that the model type has.
        fp8: FP8 scheme of weights that stay in FP8; ``None`` if none do.
    """
    wide, vocabulary = text["hidden_size"], text["vocab_size"]
    yield UnitShape(
        "embedding",
        (f"{_TEXT}.embed_tokens", f"{_TEXT}.rotary_emb"),
        "embedding",
        values=vocabulary * wide,
        row_length=wide,
        buffer_values=rotated_values(text),
        rotary_bytes=_ROTARY * rotated_values(text),
        activations=(
            *costs.embedding(wide, KEPT_VISUAL),
            Activation("text", held_bytes=_OF_TOKEN),
        ),
    )
    in_moe = has_experts(text)
    first_moe = text.get("first_k_dense_replace", 0) if in_moe else None
    for index in range(text["num_hidden_layers"]):
        is_moe = first_moe is not None and index >= first_moe
        layer = (_moe_layer if is_moe else _dense_layer)(text, index, in_moe)
        matrices = _matrices(text, is_moe=is_moe)
        yield layer if fp8 is None else in_fp8(layer, matrices, fp8)
    yield UnitShape(
        "head",
        (f"{_TEXT}.norm", "lm_head"),
        "head",
        values=wide + vocabulary * wide,
        activations=costs.head(wide, vocabulary),
    )


def in_fp8(layer: UnitShape, matrices: Iterable[Matrix], fp8: Fp8) -> UnitShape:
    """Return a decoder layer with the number of its weights that can stay in FP8.

    Args:
        layer: the layer.
        matrices: all matrices of its linear layers and experts.
        fp8: scheme of the checkpoint.
    """
    (module,) = layer.modules
    values = scales = 0
    for name, rows, columns, count in matrices:
        if fp8.holds(f"{module}.{name}"):
            values += count * rows * columns
            scales += count * fp8.scales(rows, columns)
    return replace(layer, fp8_values=values, fp8_scales=scales)


def _matrices(text: Mapping[str, Any], *, is_moe: bool) -> Iterator[Matrix]:
    wide, mlp = text["hidden_size"], text["intermediate_size"]
    inner = text["num_attention_heads"] * head_size(text)
    groups = text["num_key_value_heads"] * head_size(text)
    for name, rows in (("q", inner), ("k", groups), ("v", groups)):
        yield f"self_attn.{name}_proj", rows, wide, 1
    yield "self_attn.o_proj", wide, inner, 1
    if is_moe:
        yield from expert_matrices(text)
    elif has_experts(text):
        yield from gated("mlp", wide, mlp)
    else:
        yield "mlp.gate_up_proj", 2 * mlp, wide, 1
        yield "mlp.down_proj", wide, mlp, 1


def expert_matrices(text: Mapping[str, Any]) -> Iterator[Matrix]:
    """Yield the matrices of the experts of a layer, those of all routed ones together."""
    wide, routed = text["hidden_size"], text["moe_intermediate_size"]
    yield _EXPERTS, 2 * routed, wide, text["n_routed_experts"]
    yield _EXPERTS, wide, routed, text["n_routed_experts"]
    yield from gated("mlp.shared_experts", wide, routed * text["n_shared_experts"])


def gated(name: str, wide: int, mlp: int) -> Iterator[Matrix]:
    """Yield the matrices of a gated MLP."""
    yield f"{name}.gate_proj", mlp, wide, 1
    yield f"{name}.up_proj", mlp, wide, 1
    yield f"{name}.down_proj", wide, mlp, 1


def _linear(text: Mapping[str, Any], *, is_moe: bool) -> tuple[tuple[int, int], ...]:
    """Return the matrices of a layer that quantisation can shrink: all but routed experts."""
    matrices = _matrices(text, is_moe=is_moe)
    return tuple((rows, columns) for name, rows, columns, _ in matrices if name != _EXPERTS)


def _attention_values(text: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return weights of the four matrices, biases, and keys and values per KV cache entry."""
    wide, heads, groups = (
        text["hidden_size"],
        text["num_attention_heads"],
        text["num_key_value_heads"],
    )
    head = head_size(text)
    rows = (heads + 2 * groups) * head
    bias = rows if text["attention_bias"] else 0
    return wide * rows + heads * head * wide, bias, 2 * groups * head


def _attention(text: Mapping[str, Any]) -> tuple[Activation, Activation]:
    """Attention of a decoder layer; its peak is in the rotation or at the kernel.

    Alive per token: the layer's input and the normed one (2 x hidden), cos and sin. In the rotation
    also query, keys and values as they were made, and three times the part of the query that is
    rotated, or what is rotated of it and all of it joined; at the kernel the query and the attended
    values. With a mask, the kernel takes keys and values repeated for each head.
    """
    wide, heads, groups = (
        text["hidden_size"],
        text["num_attention_heads"],
        text["num_key_value_heads"],
    )
    head = head_size(text)
    query, rotated = heads * head, heads * rotated_values(text)
    beside = 2 * wide + 2 * rotated_values(text)
    rotation = beside + query + max(3 * rotated, rotated + query) + 3 * groups * head
    return (
        Activation("text", rotation, extra_bytes=8),
        Activation("text", beside + 2 * query, masked_values=2 * query, extra_bytes=8),
    )


def _dense_layer(text: Mapping[str, Any], index: int, in_moe: bool) -> UnitShape:
    """Decoder layer with one gated MLP; it has four norms in GLM-4.1V and two in the others.

    Beside layers with experts gate and up are two matrices.
    """
    wide, mlp = text["hidden_size"], text["intermediate_size"]
    matrices, bias, cache = _attention_values(text)
    linear = matrices + 3 * wide * mlp
    norms = 2 if in_moe else 4
    return UnitShape(
        f"layer.{index}",
        (f"{_TEXT}.layers.{index}",),
        "text_layer",
        values=linear + bias + norms * wide,
        linear=_linear(text, is_moe=False),
        products=_products(text, mlp, in_one=not in_moe),
        cache_values=cache,
        pair_products=2 * text["num_attention_heads"] * head_size(text),
        activations=(
            costs.text_layer(wide, mlp, rotated_values(text), in_one=not in_moe),
            *_attention(text),
        ),
    )


def _products(text: Mapping[str, Any], mlp: int, *, in_one: bool) -> tuple[Product, ...]:
    queries = text["num_attention_heads"] * head_size(text)
    return costs.products(
        text["hidden_size"], mlp, queries, 2 * rotated_values(text), in_one=in_one
    )


def _moe_layer(text: Mapping[str, Any], index: int, in_moe: bool) -> UnitShape:
    """Decoder layer with routed and shared experts; the routed ones are not quantised."""
    wide, mlp = text["hidden_size"], text["moe_intermediate_size"]
    experts = text["n_routed_experts"]
    matrices, bias, cache = _attention_values(text)
    shared = 3 * wide * mlp * text["n_shared_experts"]
    values = matrices + bias + 2 * wide + shared + experts * (3 * wide * mlp + wide)
    return UnitShape(
        f"layer.{index}",
        (f"{_TEXT}.layers.{index}",),
        "text_layer",
        values=values,
        linear=_linear(text, is_moe=True),
        buffer_values=experts,  # the router's score correction
        products=_products(text, mlp * text["n_shared_experts"], in_one=False),
        idle_values=(experts - text["num_experts_per_tok"]) * 3 * wide * mlp,
        joined_values=joined_experts(text),
        cache_values=cache,
        pair_products=2 * text["num_attention_heads"] * head_size(text),
        activations=(_experts(text), chosen_experts(text), *_attention(text)),
    )


def joined_experts(text: Mapping[str, Any]) -> int:
    """Return the values of gate and up of all routed experts of a layer, which are one weight.

    In the files each is by itself: transformers stacks the gates, then what is above them, and
    joins both.
    """
    return int(text["n_routed_experts"] * 2 * text["moe_intermediate_size"] * text["hidden_size"])


def chosen_experts(text: Mapping[str, Any]) -> Activation:
    """Routed experts in a decode step: the weights of those that each row has chosen, once more.

    Alive per row (transformers' ``batched_mm_experts_forward``): beside these the results of each
    expert (hidden) and the product of its halves, the layer's input, the residual and the normed
    one twice (4 x hidden), and the router's logits in float32. On the device of the inputs there
    are also the float32 logits of the token before.
    """
    wide, mlp, chosen = (
        text["hidden_size"],
        text["moe_intermediate_size"],
        text["num_experts_per_tok"],
    )
    values = chosen * (3 * wide * mlp + wide + mlp) + (3 + text.get("hc_mult", 1)) * wide
    indices = chosen * (_FLOAT32 + 2 * _INT64)
    logits = _FLOAT32 * (text["n_routed_experts"] + text["vocab_size"])
    return Activation("row", values, extra_bytes=indices + logits)


def _experts(text: Mapping[str, Any]) -> Activation:
    """Routed experts in one grouped product; the peak is where results are put back in order.

    Alive per token and chosen expert (transformers' ``grouped_mm_experts_forward``): the gathered
    input and the experts' results (2 x hidden), the weighted results in two orders in float32
    (2 x hidden: the router's weights are float32), four int64 of sorting, the weights twice and the
    expert's number; per token the layer's input, the residual and the normed residual (3 x hidden),
    the router's logits in float32, cos and sin (2 x rotary) and the int64 position.
    """
    wide, chosen = text["hidden_size"], text["num_experts_per_tok"]
    per_expert = 2 * _FLOAT32 * wide + SORTING
    logits = _FLOAT32 * text["n_routed_experts"] + _INT64
    values = (2 * chosen + 3) * wide + 2 * rotated_values(text)
    return Activation("text", values, extra_bytes=chosen * per_expert + logits)
