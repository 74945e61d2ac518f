"""Units of GLM-5.3-Flash's text part: linear attention, and attention to chosen tokens.

Most layers keep a state of constant size (linear attention); the others keep a compressed key and
value of every token, and an index that chooses which tokens are attended to. All layers pass on
several streams of hidden states (``hc_mult``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glm4v_magic.checkpoints.glm_native.fp8 import Fp8
from glm4v_magic.checkpoints.glm_native.text import (
    SORTING,
    Matrix,
    chosen_experts,
    expert_matrices,
    gated,
    in_fp8,
    joined_experts,
)
from glm4v_magic.checkpoints.glm_native.tower import KEPT_VISUAL
from glm4v_magic.core.model_shape import Activation, UnitShape
from glm4v_magic.planning import costs

__all__ = ["FLOAT32_MODULES", "can_compute_in_fp8", "hybrid_units"]

FLOAT32_MODULES = ("conv1d", "dt_bias", "A_log", "attn_hc.base", "attn_hc.scale", "ffn_hc.base",
                   "ffn_hc.scale")  # fmt: skip
"""Weights that stay in float32; as transformers' ``_keep_in_fp32_modules_strict``."""

_TEXT = "model.language_model"
_FLOAT32 = 4
_INT64 = 8
_OF_TOKEN = 3 * _INT64 + 4 + 2
"""Bytes per token that are with the embedding, besides its vectors: id, mask, position and type,
and whether it stands for an image or a video."""
_CHUNK = 64  # tokens; transformers' `chunk_kimi_delta_attention`


def hybrid_units(text: Mapping[str, Any], fp8: Fp8 | None = None) -> Iterator[UnitShape]:
    """Yield the embedding, each decoder layer, then the final norm with the head.

    Args:
        text: the configuration of the text part.
        fp8: scheme of weights that can stay in FP8.
    """
    wide, vocabulary, streams = text["hidden_size"], text["vocab_size"], text["hc_mult"]
    yield UnitShape(
        "embedding",
        (f"{_TEXT}.embed_tokens",),
        "embedding",
        values=vocabulary * wide,
        row_length=wide,
        activations=(
            *costs.embedding(wide, KEPT_VISUAL),
            Activation("text", streams * wide, held_bytes=_OF_TOKEN),
        ),
    )
    for index in range(text["num_hidden_layers"]):
        layer = _layer(text, index)
        yield layer if fp8 is None else in_fp8(layer, _matrices(text, index), fp8)
    yield UnitShape(
        "head",
        (f"{_TEXT}.norm", f"{_TEXT}.hc_head", "lm_head"),
        "head",
        values=wide + vocabulary * wide,
        # the mean of the streams has no weights: it is made where the last layer is
        activations=costs.head(wide, vocabulary),
    )


def _layer(text: Mapping[str, Any], index: int) -> UnitShape:
    wide, streams = text["hidden_size"], text["hc_mult"]
    mixing = (2 + streams) * streams
    kept = 2 * (mixing + 3)  # base and scale of both connections
    values = 2 * wide + 2 * mixing * streams * wide + kept
    is_sparse = _is_sparse(text, index)
    mlp_values, mlp = _sparse(text) if is_sparse else _dense(text)
    idle = _idle(text) if is_sparse else 0
    corrections = text["n_routed_experts"] if is_sparse else 0  # of the router's scores
    joined = joined_experts(text) if is_sparse else 0
    activations = (*_streams(text), mlp, *((chosen_experts(text),) if is_sparse else ()))
    if _is_linear(text, index):
        heads, head = text["linear_num_heads"], text["linear_head_dim"]
        inner, kernel = heads * head, text["linear_conv_kernel_dim"]
        in_float32 = 3 * inner * kernel + inner + heads
        matrices = 4 * inner * wide + 2 * (wide * head + head * inner) + heads * wide + head
        return UnitShape(
            f"layer.{index}",
            (f"{_TEXT}.layers.{index}",),
            "text_layer",
            values=values + mlp_values + matrices + in_float32,
            float32_values=kept + in_float32,
            buffer_values=corrections,
            idle_values=idle,
            joined_values=joined,
            row_values=3 * inner * kernel,
            row_bytes=_FLOAT32 * heads * head * head,
            activations=(*activations, *_linear(text)),
        )
    attention, cache = _attention_values(text, index)
    return UnitShape(
        f"layer.{index}",
        (f"{_TEXT}.layers.{index}",),
        "text_layer",
        values=values + mlp_values + attention,
        float32_values=kept,
        buffer_values=corrections,
        idle_values=idle,
        joined_values=joined,
        cache_values=cache,
        activations=(*activations, *_attention(text)),
    )


def can_compute_in_fp8(text: Mapping[str, Any], fp8: Fp8) -> bool:
    """Tell whether transformers' modules run with the weights of a scheme in FP8.

    The index converts its input to the dtype of one of its matrices, which has to be a full one.
    """
    return not any(
        fp8.holds(f"{_TEXT}.layers.{index}.self_attn.indexer.weights_proj")
        for index in range(text["num_hidden_layers"])
        if not _is_linear(text, index) and _has_index(text, index)
    )


def _matrices(text: Mapping[str, Any], index: int) -> Iterator[Matrix]:
    yield from _of_linear(text) if _is_linear(text, index) else _of_attention(text, index)
    if _is_sparse(text, index):
        yield from expert_matrices(text)
    else:
        yield from gated("mlp", text["hidden_size"], text["intermediate_size"])


def _of_linear(text: Mapping[str, Any]) -> Iterator[Matrix]:
    wide, heads, head = text["hidden_size"], text["linear_num_heads"], text["linear_head_dim"]
    inner = heads * head
    for name in "qkv":
        yield f"self_attn.{name}_proj", inner, wide, 1
    yield "self_attn.o_proj", wide, inner, 1
    yield "self_attn.b_proj", heads, wide, 1
    for name in ("forget_gate.f", "g"):
        yield f"self_attn.{name}_a_proj", head, wide, 1
        yield f"self_attn.{name}_b_proj", inner, head, 1


def _of_attention(text: Mapping[str, Any], index: int) -> Iterator[Matrix]:
    wide, heads = text["hidden_size"], text["num_attention_heads"]
    query, compressed = text["q_lora_rank"], text["kv_lora_rank"]
    key, value = text["qk_nope_head_dim"], text["v_head_dim"]
    yield "self_attn.q_a_proj", query, wide, 1
    yield "self_attn.q_b_proj", heads * key, query, 1
    yield "self_attn.kv_a_proj_with_mqa", compressed, wide, 1
    yield "self_attn.kv_b_proj", heads * (key + value), compressed, 1
    yield "self_attn.o_proj", wide, heads * value, 1
    if _has_index(text, index):
        head, of_index = text["index_head_dim"], text["index_n_heads"]
        yield "self_attn.indexer.wq_b", of_index * head, query, 1
        yield "self_attn.indexer.wk", head, wide, 1
        yield "self_attn.indexer.weights_proj", of_index, wide, 1


def _is_linear(text: Mapping[str, Any], index: int) -> bool:
    kinds = text.get("layer_types")
    return index % 4 != 3 if kinds is None else kinds[index] == "linear_attention"


def _is_sparse(text: Mapping[str, Any], index: int) -> bool:
    kinds = text.get("mlp_layer_types")
    return index >= 3 if kinds is None else kinds[index] == "sparse"


def _has_index(text: Mapping[str, Any], index: int) -> bool:
    kinds = text.get("indexer_types")
    return kinds is None or kinds[index] == "full"


def _dense(text: Mapping[str, Any]) -> tuple[int, Activation]:
    """Weights and activations of a gated MLP.

    Alive per token: gate and up, both clamped, the activated gate and the product (4 x mlp), the
    streams before and after the attention, and its input.
    """
    wide, mlp, streams = text["hidden_size"], text["intermediate_size"], text["hc_mult"]
    alive = Activation("text", 4 * mlp + (2 * streams + 1) * wide, extra_bytes=_mixing(text))
    return 3 * wide * mlp, alive


def _sparse(text: Mapping[str, Any]) -> tuple[int, Activation]:
    """Weights and activations of the experts; see `text._experts`."""
    wide, mlp, chosen = (
        text["hidden_size"],
        text["moe_intermediate_size"],
        text["num_experts_per_tok"],
    )
    experts = text["n_routed_experts"]
    values = 3 * wide * mlp * (text["n_shared_experts"] + experts) + experts * wide
    sorting = chosen * (2 * _FLOAT32 * wide + SORTING)
    alive = (2 * chosen + 1 + 2 * text["hc_mult"]) * wide
    logits = _FLOAT32 * experts + 1  # and what is masked
    return values, Activation("text", alive, extra_bytes=sorting + logits + _mixing(text))


def _idle(text: Mapping[str, Any]) -> int:
    """Weights of the experts that a token does not choose."""
    others = text["n_routed_experts"] - text["num_experts_per_tok"]
    return int(others * 3 * text["hidden_size"] * text["moe_intermediate_size"])


def _streams(text: Mapping[str, Any]) -> tuple[Activation, Activation]:
    """Mixing of the streams, before a part of a layer and after it.

    Before the MLP: the streams before and after the attention, those in float32 and normed. After
    it: both, what it gives for each, the mixed ones and the sum.
    """
    wide, every = text["hidden_size"], text["hc_mult"] * text["hidden_size"]
    copies = _FLOAT32 * every
    return (
        Activation("text", 2 * every, extra_bytes=copies + _mixing(text), cast_bytes=copies),
        Activation("text", 5 * every + wide, extra_bytes=_mixing(text)),
    )


def _mixing(text: Mapping[str, Any]) -> int:
    """Return the bytes per token of what mixes the streams again after a part of a layer."""
    streams: int = text["hc_mult"]
    return _FLOAT32 * streams * (streams + 1)


def _linear(text: Mapping[str, Any]) -> tuple[Activation, Activation]:
    """Linear attention in chunks; the peak is at the products within a chunk, of all or of one.

    Alive per token of whole chunks, in float32: three of size chunk x heads x head (the decays
    between all pairs of a chunk and two products with them), and six of heads x head (query, key,
    value and decay in chunks, and two times beta); per token the decay as it was made, in float32,
    and in the model's dtype the streams, the input as it is and masked, and query, key and value in
    one matrix (3 x heads x head).
    Then, chunk by chunk, there are two products with the decays of one chunk of each row beside all
    decays, nine of heads x head (what the chunks give and take, too), and two of chunk x heads.
    """
    inner = text["linear_num_heads"] * text["linear_head_dim"]
    wide = text["hidden_size"]
    alive = (text["hc_mult"] + 2) * wide + 3 * inner
    extra = _FLOAT32 * (3 * _CHUNK + 7) * inner + _mixing(text)
    of_chunks = _FLOAT32 * (_CHUNK * inner + 9 * inner + 2 * _CHUNK * text["linear_num_heads"])
    return (
        Activation("text", alive, extra, chunk=_CHUNK),
        Activation(
            "text",
            alive,
            of_chunks + _mixing(text),
            text_bytes=_FLOAT32 * inner,
            row_bytes=2 * _FLOAT32 * _CHUNK**2 * inner,
            chunk=_CHUNK,
        ),
    )


def _attention_values(text: Mapping[str, Any], index: int) -> tuple[int, int]:
    """Return the weights of attention with its index, and what it caches per token."""
    wide, heads = text["hidden_size"], text["num_attention_heads"]
    query, compressed = text["q_lora_rank"], text["kv_lora_rank"]
    key, value = text["qk_nope_head_dim"], text["v_head_dim"]
    values = wide * query + query + query * heads * key
    values += wide * compressed + compressed + compressed * heads * (key + value)
    values += heads * value * wide
    if text.get("attention_bias"):
        values += query + compressed + wide
    cache = compressed
    if _has_index(text, index):
        head, of_index = text["index_head_dim"], text["index_n_heads"]
        values += query * of_index * head + wide * head + 2 * head + wide * of_index
        values += text["index_kpool"] * head + head * wide
        cache += 2 * head + 1
    return values, cache


def _attention(text: Mapping[str, Any]) -> tuple[Activation, ...]:
    """Attention to chosen tokens; it has memory per pair of tokens, in the index and as a mask.

    Per token: the streams and the input; both compressed vectors, query, keys and values of all
    heads, and the keys once more as they are used; in the index also its query, its key and the
    score of the key's gate, and the number of a token of a pool. Per pair of tokens, while the
    index scores pools of tokens: which tokens are visible, and three float32 scores for each head
    and pool, or one beside the float32 query and, if there are several rows, the float32 keys of
    all pools, which the product copies for each token; while it finds the pool that is not full
    yet: visible tokens, also as int64, scores, their sum over heads and two truth values of each
    pool, and the numbers of all chosen tokens twice. Then an int32 count of each pair beside the
    chosen tokens as they are, as they may be used and whether they are; then the mask and the
    attended values.
    """
    wide, heads = text["hidden_size"], text["num_attention_heads"]
    key, value = text["qk_nope_head_dim"], text["v_head_dim"]
    alive = (text["hc_mult"] + 1) * wide + heads * (3 * key + value)
    alive += text["q_lora_rank"] + text["kv_lora_rank"]
    of_index, pool = text["index_n_heads"], text["index_kpool"]
    indexed = alive + (of_index + 2) * text["index_head_dim"]
    chosen = text["index_topk"]
    found = chosen + pool - 1
    scores = _FLOAT32 * of_index / pool
    mixing = _mixing(text)
    return (
        Activation("text", indexed, extra_bytes=mixing + _INT64, pair_bytes=3 * scores + 1),
        Activation(
            "text",
            indexed,
            extra_bytes=mixing + _INT64,
            cast_bytes=_FLOAT32 * of_index * text["index_head_dim"],
            pair_bytes=scores + 1,
            batched_pair_bytes=_FLOAT32 * text["index_head_dim"] / pool,
        ),
        Activation(
            "text",
            indexed,
            extra_bytes=mixing + _INT64,
            pair_bytes=scores + (_FLOAT32 + 2) / pool + _INT64 + 1,
            chosen=chosen,
            chosen_bytes=2 * _INT64,
        ),
        Activation("text", alive, extra_bytes=mixing + 13 * found, pair_bytes=_FLOAT32),
        Activation("text", alive, extra_bytes=mixing + 9 * found, pair_bytes=_FLOAT32 + 1),
        Activation(
            "text", alive + heads * value, extra_bytes=mixing + _FLOAT32 * found, pair_bytes=1
        ),
    )
