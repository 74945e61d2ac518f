"""Names and shapes of GLM-4V-9B's published weights, from its ``config.json`` alone.

No torch here: the required contents of a checkpoint are known before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "BESIDE_WEIGHTS",
    "FUSED",
    "MAX_IMAGES",
    "RENAMINGS",
    "matches",
    "published_names",
    "weight_shapes",
]

BESIDE_WEIGHTS = (("tokenizer.model",),)
"""Files that come with weights."""

MAX_IMAGES = 1
"""Maximum number of images in a conversation: the model was trained with a single one."""


RENAMINGS = {
    "transformer.embedding.word_embeddings": "model.language_model.embed_tokens",
    "transformer.encoder.final_layernorm": "model.language_model.norm",
    "transformer.encoder.layers": "model.language_model.layers",
    "transformer.output_layer": "lm_head",
    "transformer.vision": "model.vision",
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}
"""Parts of published names -> parts of names in `modeling`; every part that occurs is renamed."""

FUSED = "self_attention.query_key_value"
"""Published name of the fused matrix that is three modules in `modeling`."""


def matches(config: Mapping[str, Any]) -> bool:
    """Tell whether a ``config.json`` is of this family: ``chatglm`` with a vision tower."""
    return config.get("model_type") == "chatglm" and "vision_config" in config


def weight_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every published weight with its shape, in the published order.

    ``transformer.rotary_pos_emb.inv_freq``, a stored constant, is not among them.

    Args:
        config: a parsed ``config.json`` that passed `config_file.validate_config`.
    """
    hidden, ffn = config["hidden_size"], config["ffn_hidden_size"]
    embedding = (config["padded_vocab_size"], hidden)
    shapes: dict[str, tuple[int, ...]] = {"transformer.embedding.word_embeddings.weight": embedding}
    for index in range(config["num_layers"]):
        prefix = f"transformer.encoder.layers.{index}."
        shapes.update({prefix + name: shape for name, shape in _text_layer(config).items()})
    shapes["transformer.encoder.final_layernorm.weight"] = (hidden,)
    shapes["transformer.output_layer.weight"] = embedding
    tower = _tower(config["vision_config"], hidden, ffn)
    shapes.update({f"transformer.vision.{name}": shape for name, shape in tower.items()})
    return shapes


def published_names(
    config: Mapping[str, Any],
) -> dict[str, tuple[str, tuple[int, int] | None]]:
    """Return the published name of each weight of `modeling`'s modules, and its rows in it.

    Args:
        config: as in `weight_shapes`.
    """
    names: dict[str, tuple[str, tuple[int, int] | None]] = {}
    for published in weight_shapes(config):
        ours = published
        for source, target in RENAMINGS.items():
            ours = ours.replace(source, target)
        if FUSED not in ours:
            names[ours] = (published, None)
            continue
        start = 0
        for part, size in zip("qkv", _fused_rows(config), strict=True):
            name = ours.replace(FUSED, f"self_attn.{part}_proj")
            names[name] = (published, (start, start + size))
            start += size
    return names


def _fused_rows(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the rows of query, key and value in their fused matrix."""
    heads, dim = config["num_attention_heads"], config["kv_channels"]
    groups = config["multi_query_group_num"] if config.get("multi_query_attention", True) else heads
    return heads * dim, groups * dim, groups * dim


def _text_layer(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, ffn = config["hidden_size"], config["ffn_hidden_size"]
    inner, *_ = rows = _fused_rows(config)
    fused = sum(rows)
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attention.query_key_value.weight": (fused, hidden),
    }
    if config.get("add_qkv_bias", True):
        shapes["self_attention.query_key_value.bias"] = (fused,)
    return shapes | {
        "self_attention.dense.weight": (hidden, inner),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.dense_h_to_4h.weight": (2 * ffn, hidden),
        "mlp.dense_4h_to_h.weight": (hidden, ffn),
    }


def _tower(vision: Mapping[str, Any], hidden: int, ffn: int) -> dict[str, tuple[int, ...]]:
    width, mlp, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "boi": (1, 1, hidden),
        "eoi": (1, 1, hidden),
        "patch_embedding.cls_embedding": (1, width),
        "patch_embedding.proj.weight": (width, vision["in_channels"], patch, patch),
        "patch_embedding.proj.bias": (width,),
        "patch_embedding.position_embedding.weight": (vision["num_positions"], width),
    }
    for index in range(vision["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm.weight": (width,),
            "input_layernorm.bias": (width,),
            "attention.query_key_value.weight": (3 * width, width),
            "attention.query_key_value.bias": (3 * width,),
            "attention.dense.weight": (width, width),
            "attention.dense.bias": (width,),
            "mlp.fc1.weight": (mlp, width),
            "mlp.fc1.bias": (mlp,),
            "mlp.fc2.weight": (width, mlp),
            "mlp.fc2.bias": (width,),
            "post_attention_layernorm.weight": (width,),
            "post_attention_layernorm.bias": (width,),
        }.items():
            shapes[f"transformer.layers.{index}.{name}"] = shape
    return shapes | {
        "linear_proj.linear_proj.weight": (hidden, hidden),
        "linear_proj.norm1.weight": (hidden,),
        "linear_proj.norm1.bias": (hidden,),
        "linear_proj.dense_h_to_4h.weight": (ffn, hidden),
        "linear_proj.gate_proj.weight": (ffn, hidden),
        "linear_proj.dense_4h_to_h.weight": (hidden, ffn),
        "conv.weight": (hidden, width, 2, 2),
        "conv.bias": (hidden,),
    }
