"""What is planned with of a ``config.json``, checked; transformers reads the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.outside import checked

__all__ = ["read_config"]

_FOREIGN = "Is this the config.json of a GLM-4.1V, GLM-4.5V, GLM-4.6V or GLM-OCR checkpoint?"

Size = Annotated[int, Field(ge=1, lt=2**31)]
Layers = Annotated[int, Field(ge=1, le=10_000)]  # each of them is looked at


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


class _ExpertsConfig(_TextConfig):
    moe_intermediate_size: Size
    n_routed_experts: Size
    n_shared_experts: Size
    num_experts_per_tok: Size
    first_k_dense_replace: NonNegativeInt = 0


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


class _Config(BaseModel):
    """What is planned with; transformers reads the rest."""

    model_config = ConfigDict(strict=True)

    text_config: _TextConfig
    vision_config: _VisionConfig
    image_token_id: Size
    image_start_token_id: Size
    image_end_token_id: Size
    dtype: str | None = None
    torch_dtype: str | None = None


class _ConfigWithExperts(_Config):
    text_config: _ExpertsConfig


# Keys of an older, flat file that are not about the text part; so are the ids of images and videos.
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
    kind = _ConfigWithExperts if has_experts(nested.get("text_config")) else _Config
    checked(kind, nested, where, CheckpointError, _FOREIGN)
    return nested


def has_experts(text: object) -> bool:
    """Tell whether the text part of a configuration has routed experts."""
    return isinstance(text, Mapping) and "n_routed_experts" in text


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
