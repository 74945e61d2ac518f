"""The keys of a ``config.json`` that planning reads, checked; transformers reads the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from glm4v_magic.checkpoints.outline import outline_of
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.outside import checked

__all__ = ["has_experts", "head_size", "read_config", "rotated_values"]

_FOREIGN = (
    "Is this the config.json of a GLM-4.1V, GLM-4.5V, GLM-4.6V, GLM-5.3 or GLM-OCR checkpoint?"
)

_HYBRID = "glm5_next"
_DEFAULTS = {  # as transformers' `Glm5NextTextConfig`
    "hc_mult": 4,
    "index_head_dim": 128,
    "index_kpool": 16,
    "index_n_heads": 32,
    "index_topk": 2048,
    "linear_conv_kernel_dim": 4,
    "linear_head_dim": 128,
    "linear_num_heads": 64,
}

_SECTION = (8, 12, 12)  # of files that do not say it, in transformers' `Glm4vTextRotaryEmbedding`

Size = Annotated[int, Field(ge=1, lt=2**31)]
Share = Annotated[float, Field(gt=0, le=1)]
Layers = Annotated[int, Field(ge=1, le=10_000)]  # each of them is looked at


class _Rotary(BaseModel):
    model_config = ConfigDict(strict=True)

    partial_rotary_factor: Share | None = None
    mrope_section: Annotated[list[Size], Field(min_length=3, max_length=3)] | None = None
    rope_theta: Annotated[float, Field(gt=0)] | None = None


class _TextConfig(BaseModel):
    model_config = ConfigDict(strict=True)

    hidden_size: Size
    intermediate_size: Size
    max_position_embeddings: Size
    num_attention_heads: Size
    num_hidden_layers: Layers
    num_key_value_heads: Size
    vocab_size: Size
    head_dim: Size | None = None
    attention_bias: bool | None = None
    dtype: str | None = None
    rope_parameters: _Rotary | None = None
    rope_scaling: _Rotary | None = None  # its name in older files
    partial_rotary_factor: Share | None = None

    @model_validator(mode="after")
    def _groups_are_equal(self) -> _TextConfig:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads % groups:
            raise ValueError(f"{heads} attention heads have no {groups} equal groups")
        return self

    @model_validator(mode="after")
    def _shares_all_angles(self) -> _TextConfig:
        angles = rotated_values(self.model_dump()) // 2
        rope = self.rope_parameters or self.rope_scaling
        told = None if rope is None else rope.mrope_section
        shared = sum(told or _SECTION)
        if angles != shared:
            name = "mrope_section" if told else f"without an mrope_section, {list(_SECTION)}"
            raise ValueError(f"{name} shares {shared} angles, but a head has {angles}")
        return self


class _ExpertsConfig(_TextConfig):
    moe_intermediate_size: Size
    n_routed_experts: Size
    n_shared_experts: Size
    num_experts_per_tok: Size
    n_group: Size = 1
    topk_group: Size = 1
    first_k_dense_replace: NonNegativeInt = 0

    @model_validator(mode="after")
    def _chooses_among_experts(self) -> _ExpertsConfig:
        experts, groups = self.n_routed_experts, self.n_group
        if experts % groups or experts // groups < 2:  # the best two of a group stand for it
            raise ValueError(f"{experts} experts have no {groups} equal groups of two and more")
        if self.topk_group > groups:
            raise ValueError(f"topk_group {self.topk_group} is more than the {groups} groups")
        if self.num_experts_per_tok > experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} is more than the {experts} experts"
            )
        return self


class _LinearAttention(BaseModel):
    """Sizes of linear attention as published files have them, apart from the other keys."""

    model_config = ConfigDict(strict=True)

    linear_conv_kernel_dim: Size | None = Field(None, alias="short_conv_kernel_size")
    linear_head_dim: Size | None = Field(None, alias="head_dim")
    linear_num_heads: Size | None = Field(None, alias="num_heads")


class _HybridConfig(_ExpertsConfig):
    hc_mult: Size
    index_head_dim: Size
    index_kpool: Size
    index_n_heads: Size
    index_topk: Size
    kv_lora_rank: Size
    layer_types: list[str] | None = None
    linear_attn_config: _LinearAttention | None = None
    linear_conv_kernel_dim: Size
    linear_head_dim: Size
    linear_num_heads: Size
    head_dim: int | None = None  # 0: there are no rotated ones
    indexer_types: list[str] | None = None
    mlp_layer_types: list[str] | None = None
    q_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Literal[0] = 0
    v_head_dim: Size

    @model_validator(mode="after")
    def _shares_all_angles(self) -> _HybridConfig:
        return self  # nothing is rotated

    @model_validator(mode="after")
    def _names_every_layer(self) -> _HybridConfig:
        for name in ("layer_types", "indexer_types", "mlp_layer_types"):
            kinds = getattr(self, name)
            if kinds is not None and len(kinds) != self.num_hidden_layers:
                raise ValueError(f"{name} does not name every layer")
        return self


class _VisionConfig(BaseModel):
    model_config = ConfigDict(strict=True)

    depth: Layers
    hidden_size: Size
    image_size: Size
    in_channels: Size
    intermediate_size: Size
    num_heads: Size
    out_hidden_size: Size
    patch_size: Size
    spatial_merge_size: Size
    temporal_patch_size: Size
    attention_bias: bool = False
    rope_parameters: _Rotary | None = None

    @model_validator(mode="after")
    def _heads_are_equal(self) -> _VisionConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} has no {self.num_heads} equal heads")
        return self


class _Config(BaseModel):
    """Keys that planning reads, including the ids of an image's tokens."""

    model_config = ConfigDict(strict=True)

    text_config: _TextConfig
    vision_config: _VisionConfig
    image_token_id: Size
    image_start_token_id: Size
    image_end_token_id: Size
    dtype: str | None = None
    torch_dtype: str | None = None

    @model_validator(mode="after")
    def _parts_are_as_wide(self) -> _Config:
        tower, text = self.vision_config.out_hidden_size, self.text_config.hidden_size
        if tower != text:
            raise ValueError(f"out_hidden_size {tower} is not hidden_size {text} of the text part")
        return self


class _ConfigWithExperts(_Config):
    text_config: _ExpertsConfig


class _ConfigOfHybrid(_Config):
    text_config: _HybridConfig


# Keys of an older, flat file that do not belong to the text part, like the ids of images and
# videos.
_OUTER_KEYS = (
    "architectures",
    "dtype",
    "model_type",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "vision_config",
)


def read_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Check a ``config.json`` and return it with a ``text_config``.

    Args:
        config: parsed content of the file.
        where: path of the file, for messages.

    Raises:
        CheckpointError: if a key is missing or invalid.
    """
    nested = _with_text_config(config)
    text = outline_of(nested).text_config
    kind: type[_Config] = _ConfigWithExperts if has_experts(text or {}) else _Config
    if config.get("model_type") == _HYBRID:
        kind = _ConfigOfHybrid
        if text is not None:
            nested = {**nested, "text_config": {**_DEFAULTS, **text}}
    found = checked(kind, nested, where, CheckpointError, _FOREIGN).text_config
    for name, value in _floats(nested):
        if not math.isfinite(value):
            raise CheckpointError(
                f"{where} has {value} for {name}, with which nothing can be computed.", _FOREIGN
            )
    if isinstance(found, _HybridConfig) and found.linear_attn_config is not None:
        apart = found.linear_attn_config.model_dump(exclude_none=True)
        nested = {**nested, "text_config": {**nested["text_config"], **apart}}
    return nested


def _floats(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the floats in parsed JSON, with the names that lead to them."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _floats(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for each in value:
            yield from _floats(each, name)


def head_size(text: Mapping[str, Any]) -> int:
    """Return the values of a head of the text part of a configuration."""
    return text.get("head_dim") or int(text["hidden_size"] // text["num_attention_heads"])


def rotated_values(text: Mapping[str, Any]) -> int:
    """Return the values of a head that are rotated; where it is not said, as transformers does."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    usual = 0.5 if has_experts(text) and not _is_hybrid(text) else 1.0
    share = rope.get("partial_rotary_factor") or text.get("partial_rotary_factor") or usual
    return int(head_size(text) * share)


def _is_hybrid(text: Mapping[str, Any]) -> bool:
    return "kv_lora_rank" in text


def has_experts(text: Mapping[str, Any]) -> bool:
    """Tell whether the text part of a configuration has routed experts."""
    return "n_routed_experts" in text


def _with_text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration for transformers 5, which ignores text keys at the top level."""
    if "text_config" in config or "num_hidden_layers" not in config:
        return config
    outer = {
        key: value
        for key, value in config.items()
        if key in _OUTER_KEYS or key.startswith(("image_", "video_"))
    }
    text = {key: value for key, value in config.items() if key not in outer}
    return {**outer, "text_config": text}
