"""Names and shapes of GLM-4V-9B's published weights, from its ``config.json`` alone.

No torch here: what a checkpoint must hold is known before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    model_validator,
)

from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.outside import checked

__all__ = [
    "MAX_IMAGES",
    "REPOSITORY",
    "matches",
    "validate_config",
    "validate_generation_config",
    "weight_shapes",
]

MAX_IMAGES = 1
"""Images of one conversation: the published model was trained with a single one."""

REPOSITORY = "zai-org/glm-4v-9b"
"""Where the model is published on the hub."""

_FOREIGN = "Is this the config.json of a GLM-4V-9B checkpoint?"

Size = Annotated[int, Field(ge=1, lt=2**31)]
Layers = Annotated[int, Field(ge=1, le=10_000)]  # each of them is looked at


# One id, or a list of them.
Ids = Annotated[
    list[NonNegativeInt], BeforeValidator(lambda ids: [ids] if isinstance(ids, int) else ids)
]


class _VisionConfig(BaseModel):
    model_config = ConfigDict(strict=True)

    hidden_size: Size
    num_hidden_layers: Layers
    num_heads: Size
    intermediate_size: Size
    patch_size: Size
    image_size: Size
    num_positions: Size
    in_channels: Size

    @model_validator(mode="after")
    def _sizes_belong_together(self) -> _VisionConfig:
        side = self.image_size // self.patch_size
        if self.image_size % self.patch_size or side % 2:
            raise ValueError("image_size must be an even multiple of patch_size")
        if self.num_positions != side * side + 1:
            raise ValueError(
                f"num_positions must be {side * side + 1}, one per patch and one for the class "
                "token"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError("hidden_size must be a multiple of num_heads")
        return self


class _Config(BaseModel):
    """What the model is built from; the file has more keys, which change nothing here."""

    model_config = ConfigDict(strict=True)

    num_layers: Layers
    hidden_size: Size
    ffn_hidden_size: Size
    num_attention_heads: Size
    kv_channels: Size
    multi_query_attention: bool = True
    multi_query_group_num: Size
    padded_vocab_size: Size
    seq_length: Size
    boi_token_id: Size
    eoi_token_id: Size
    add_qkv_bias: bool = True
    vision_config: _VisionConfig
    torch_dtype: str | None = None
    layernorm_epsilon: PositiveFloat = 1.5625e-07
    rope_ratio: PositiveFloat = 1.0
    eos_token_id: Ids | None = None
    pad_token_id: NonNegativeInt | None = None
    # What the modules here compute; the published family has other values in other members.
    rmsnorm: Literal[True] = True
    post_layer_norm: Literal[True] = True
    add_bias_linear: Literal[False] = False
    apply_residual_connection_post_layernorm: Literal[False] = False
    original_rope: Literal[True] = True
    tie_word_embeddings: Literal[False] = False

    @model_validator(mode="after")
    def _heads_in_groups(self) -> _Config:
        if self.num_attention_heads % self.multi_query_group_num:
            raise ValueError("num_attention_heads must be a multiple of multi_query_group_num")
        return self


class _GenerationConfig(BaseModel):
    """Where answers stop; other values that make no sense the engine leaves out, and says so."""

    model_config = ConfigDict(strict=True)

    eos_token_id: Ids | None = None


def matches(config: Mapping[str, Any]) -> bool:
    """Tell whether a ``config.json`` is of this kind: a ``chatglm`` with a vision tower."""
    return config.get("model_type") == "chatglm" and "vision_config" in config


def validate_config(config: Mapping[str, Any], where: str) -> None:
    """Check that every key the model is built from is there and makes sense.

    Args:
        config: a parsed ``config.json``.
        where: the file, for messages.

    Raises:
        CheckpointError: naming the first key that is missing or wrong.
    """
    checked(_Config, config, where, CheckpointError, _FOREIGN)


def validate_generation_config(config: Mapping[str, Any], where: str) -> None:
    """Check where answers stop as a published ``generation_config.json`` says.

    Raises:
        CheckpointError: naming the first key that is wrong.
    """
    checked(_GenerationConfig, config, where, CheckpointError)


def weight_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every published weight with its shape, in the published order.

    ``transformer.rotary_pos_emb.inv_freq``, a stored constant, is not among them.

    Args:
        config: a parsed ``config.json`` that passed `validate_config`.
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


def _text_layer(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, ffn, dim = config["hidden_size"], config["ffn_hidden_size"], config["kv_channels"]
    heads = config["num_attention_heads"]
    groups = config["multi_query_group_num"] if config.get("multi_query_attention", True) else heads
    fused = (heads + 2 * groups) * dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attention.query_key_value.weight": (fused, hidden),
    }
    if config.get("add_qkv_bias", True):
        shapes["self_attention.query_key_value.bias"] = (fused,)
    return shapes | {
        "self_attention.dense.weight": (hidden, heads * dim),
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
