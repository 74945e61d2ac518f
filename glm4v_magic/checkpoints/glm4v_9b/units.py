"""Units of GLM-4V-9B with their sizes and modules, from ``config.json`` alone.

Torch-free, so that a plan can be made before anything heavy is imported. Sizes follow from the
shapes of the published weights; names are those of the module tree in `modeling`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glm4v_magic.core.model_shape import Activation, ModelShape, UnitShape
from glm4v_magic.planning import costs

__all__ = ["model_shape"]

_TEXT = "model.language_model"
_VISION = "model.vision"
_OVERFLOWING_TOWER = (1792, 63)
"""Width and layers of the published tower, whose attention has been seen to overflow in float16:
https://github.com/intel/ipex-llm/pull/12904. Other towers in this layout have not."""
_IMAGE_IDS = 3  # begin, placeholder, end: an image takes three positions
_ROTARY = 18
"""Bytes per token and rotated value while cosines and sines are made: in float32, with the angles
of half the values, what is joined of them, and sines before and after they are scaled."""
_FREQUENCIES = 2  # those in use and those of the configuration, one for each pair of values
_OF_INPUT = 4 * 8
"""Bytes per token where the inputs are: its id twice, its mask and its position, int64."""
_IN_STEP = 5 * 8
"""Bytes per token beside these in a decode step: its id and its position with the new token, the
position before, and twice what is counted of the mask."""
_OF_TOKEN = 4 * 8  # bytes per token besides its vectors: id, mask, and its position twice, int64


def model_shape(config: Mapping[str, Any], name: str = "GLM-4V-9B") -> ModelShape:
    """Return the sizes of the model of a published ``config.json``.

    Args:
        config: parsed content of a file that passed `config_file.validate_config`.
        name: name of the checkpoint.
    """
    vision = config["vision_config"]
    merged = (vision["image_size"] // vision["patch_size"] // 2) ** 2
    return ModelShape(
        name=name,
        units=(*_vision_units(config, vision), *_text_units(config)),
        vision_modules=(_VISION,),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"),
        max_context=config["seq_length"],
        patches=vision["num_positions"],
        patches_per_token=4,
        visual_tokens=merged + 2,
        image_positions=_IMAGE_IDS,
        float16_overflows=(vision["hidden_size"], vision["num_hidden_layers"])
        == _OVERFLOWING_TOWER,
    )


def _vision_units(config: Mapping[str, Any], vision: Mapping[str, Any]) -> Iterator[UnitShape]:
    """Yield patch embedding, each layer, then merge and projection with begin and end vectors."""
    wide, mlp = vision["hidden_size"], vision["intermediate_size"]
    text, ffn = config["hidden_size"], config["ffn_hidden_size"]
    patch = vision["in_channels"] * vision["patch_size"] ** 2
    yield UnitShape(
        "vision.patches",
        (f"{_VISION}.patch_embedding",),
        "vision_embedding",
        values=(patch + 1) * wide + wide + vision["num_positions"] * wide,
        activations=(costs.patch_embedding(wide, patch, vision["num_positions"]),),
    )
    attention = (wide + 1) * 3 * wide + (wide + 1) * wide
    for index in range(vision["num_hidden_layers"]):
        yield UnitShape(
            f"vision.{index}",
            (f"{_VISION}.transformer.layers.{index}",),
            "vision_layer",
            values=attention + (wide + 1) * mlp + (mlp + 1) * wide + 2 * 2 * wide,
            pair_products=2 * wide,
            activations=(costs.vision_layer(wide, mlp),),
        )
    merging = (wide * 2 * 2 + 1) * text
    projection = text * text + 2 * text + 3 * text * ffn
    yield UnitShape(
        "vision.projector",
        tuple(f"{_VISION}.{module}" for module in ("conv", "linear_proj", "boi", "eoi")),
        "vision_projector",
        values=merging + projection + 2 * text,
        # The vectors of begin and end are the model's first weights: inputs are with them.
        activations=(
            costs.gated_projection(text, ffn),
            Activation("visual", held_values=text),
            costs.images(vision["in_channels"] * vision["image_size"] ** 2),
            *costs.inputs(config["padded_vocab_size"], _OF_INPUT, _IN_STEP),
        ),
    )


def _text_units(config: Mapping[str, Any]) -> Iterator[UnitShape]:
    """Yield embedding with rotary, each decoder layer, then the final norm with the head."""
    wide, ffn = config["hidden_size"], config["ffn_hidden_size"]
    vocabulary, head_size = config["padded_vocab_size"], config["kv_channels"]
    heads = config["num_attention_heads"]
    grouped = config.get("multi_query_attention", True)
    groups = config["multi_query_group_num"] if grouped else heads
    yield UnitShape(
        "embedding",
        (f"{_TEXT}.embed_tokens", f"{_TEXT}.rotary_emb"),
        "embedding",
        values=vocabulary * wide,
        row_length=wide,
        buffer_values=_FREQUENCIES * (head_size // 4),
        rotary_bytes=_ROTARY * (head_size // 2),
        activations=(*costs.embedding(wide, 0), Activation("text", held_bytes=_OF_TOKEN)),
    )
    qkv = (heads + 2 * groups) * head_size
    queries, keys = heads * head_size, groups * head_size
    attention = ((queries, wide), (keys, wide), (keys, wide), (wide, queries))
    linear = (*attention, (2 * ffn, wide), (wide, ffn))
    matrices = sum(rows * columns for rows, columns in linear)
    bias = qkv if config.get("add_qkv_bias", True) else 0
    for index in range(config["num_layers"]):
        yield UnitShape(
            f"layer.{index}",
            (f"{_TEXT}.layers.{index}",),
            "text_layer",
            values=matrices + bias + 2 * wide,
            linear=linear,
            products=costs.products(wide, ffn, queries, head_size),
            cache_values=2 * groups * head_size,
            pair_products=2 * heads * head_size,
            activations=(costs.text_layer(wide, ffn, head_size // 2),),
        )
    yield UnitShape(
        "head",
        (f"{_TEXT}.norm", "lm_head"),
        "head",
        values=wide + vocabulary * wide,
        activations=costs.head(wide, vocabulary),
    )
