"""The published ``config.json`` of GLM-4V-9B, checked.

It is apart from `layout`, which derives names and shapes and does without pydantic.
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

__all__ = ["validate_config"]

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
    """The keys that the model is built from; others in the file change nothing here."""

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
    # The values that the modules here implement; other members of the family have others.
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


def validate_config(config: Mapping[str, Any], where: str) -> None:
    """Check that every key the model is built from is there and makes sense.

    Args:
        config: a parsed ``config.json``.
        where: the file, for messages.

    Raises:
        CheckpointError: naming the first key that is missing or wrong.
    """
    checked(_Config, config, where, CheckpointError, _FOREIGN)
