"""GLM-4.1V, GLM-4.5V and GLM-4.6V through transformers' own classes, for plans and dry runs.

Shapes: P patches of an image, n = P / merge^2 visual tokens, H width of the text part. An image is
``start, n x image, end`` in the ids, each id with its own KV cache entry. These models keep the
proportions of images; plans and dry runs use an image of 1,120 x 1,120 pixels (6,400 patches,
1,600 visual tokens), the size that GLM-4V-9B always uses. The context length counts visual tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from glm4v_magic.core.errors import CheckpointError, OptionError
from glm4v_magic.core.model_shape import Activation, ModelShape, ModuleTree, UnitShape
from glm4v_magic.outside import checked
from glm4v_magic.planning import costs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["MODEL_TYPES", "NativeArchitecture", "matches"]

MODEL_TYPES = ("glm4v", "glm4v_moe", "glm46v")
"""As in ``config.json``: GLM-4.1V; GLM-4.5V and GLM-4.6V; GLM-4.6V-Flash."""

IMAGE_SIDE = 1120
"""Side in pixels of the square image that plans and dry runs use."""

_TEXT = "model.language_model"
_VISION = "model.visual"
_TEXT_ID = 1  # any id that does not stand for an image
_FLOAT32 = 4
_INT64 = 8

_FOREIGN = "Is this the config.json of a GLM-4.1V, GLM-4.5V or GLM-4.6V checkpoint?"

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
    attention_bias: bool = True
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


def matches(config: Mapping[str, Any]) -> bool:
    """Tell whether a ``config.json`` is of this family."""
    return config.get("model_type") in MODEL_TYPES


class NativeArchitecture:
    """An `Architecture` whose modules are transformers' own.

    Args:
        name: name of the checkpoint, as the user would type it.
        config: a published ``config.json``, with a ``text_config`` or, in older files, with the
            text keys at the top level.
        where: path of the file, for messages.

    Raises:
        CheckpointError: if a key is missing or invalid.
    """

    max_images: int | None = None

    def __init__(self, name: str, config: dict[str, Any], where: str) -> None:
        self.name = name
        self.config = config
        self._nested = _with_text_config(config)
        text = self._nested.get("text_config")
        self._is_moe = isinstance(text, Mapping) and "n_routed_experts" in text
        kind = _ConfigWithExperts if self._is_moe else _Config
        checked(kind, self._nested, where, CheckpointError, _FOREIGN)
        self._text: Mapping[str, Any] = self._nested["text_config"]
        self._vision: Mapping[str, Any] = config["vision_config"]

    def module_tree(self) -> ModuleTree:
        """Return the names of the model's modules and weights."""
        from glm4v_magic.dispatch.module_tree import tree_of

        return tree_of(self.build_meta(self.shape().dtype))

    def build_meta(self, dtype: str) -> PreTrainedModel:
        """Build the model on the ``meta`` device.

        Raises:
            CheckpointError: if transformers does not accept the configuration.
        """
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        from glm4v_magic.torch_state import torch_state_kept

        with torch_state_kept():
            try:
                config = AutoConfig.for_model(**self._nested)
                with torch.device("meta"):
                    model = AutoModelForImageTextToText.from_config(
                        config, attn_implementation="sdpa"
                    )
            except Exception as error:  # its checks raise half a dozen unrelated types
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise CheckpointError(
                    f"transformers cannot build {self.name} from its configuration ({reason})."
                ) from error
            return model.to(getattr(torch, dtype)).eval()

    def prompt_inputs(self, images: int, text_tokens: int, batch: int = 1) -> dict[str, Tensor]:
        """Make ids, types, mask, pixels and grids of a prompt; images come first in their row."""
        import torch

        if text_tokens < 1:
            raise OptionError(f"A prompt has at least 1 token of text, not {text_tokens}.")
        config, vision, shape = self.config, self._vision, self.shape()
        image = [
            config["image_start_token_id"],
            *[config["image_token_id"]] * (shape.visual_tokens - 2),
            config["image_end_token_id"],
        ]
        ids = torch.tensor([image * images + [_TEXT_ID] * text_tokens]).repeat(batch, 1)
        mask = torch.ones_like(ids)
        if batch > 1:
            ids[0] = ids[0].roll(1)
            mask[0, 0] = 0
        types = (ids == config["image_token_id"]).int()
        inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}
        if images:
            count, side = batch * images, _patches_per_side(vision)
            inputs["pixel_values"] = torch.zeros(count * shape.patches, _patch_values(vision))
            inputs["image_grid_thw"] = torch.tensor([[1, side, side]] * count)
        return inputs

    def shape(self) -> ModelShape:
        """Return the model's sizes."""
        text, vision = self._text, self._vision
        patches = _patches_per_side(vision) ** 2
        visual_tokens = patches // vision["spatial_merge_size"] ** 2 + 2  # with start and end
        dtype = text.get("dtype") or self.config.get("dtype") or self.config.get("torch_dtype")
        return ModelShape(
            name=self.name,
            units=(*_vision_units(vision), *self._text_units()),
            vision_modules=(_VISION,),
            dtype=str(dtype or "bfloat16"),
            max_context=text["max_position_embeddings"],
            patches=patches,
            visual_tokens=visual_tokens,
            image_positions=visual_tokens,
        )

    def _text_units(self) -> Iterator[UnitShape]:
        """Yield embedding with rotary, each decoder layer, then the final norm with the head."""
        text = self._text
        wide, vocabulary = text["hidden_size"], text["vocab_size"]
        yield UnitShape(
            "embedding",
            (f"{_TEXT}.embed_tokens", f"{_TEXT}.rotary_emb"),
            "embedding",
            values=vocabulary * wide,
            activations=costs.embedding(wide),
        )
        first_moe = text.get("first_k_dense_replace", 0) if self._is_moe else None
        for index in range(text["num_hidden_layers"]):
            is_moe = first_moe is not None and index >= first_moe
            yield (_moe_layer if is_moe else _dense_layer)(text, index, self._is_moe)
        yield UnitShape(
            "head",
            (f"{_TEXT}.norm", "lm_head"),
            "head",
            values=wide + vocabulary * wide,
            activations=costs.head(wide, vocabulary),
        )


def _head_size(text: Mapping[str, Any]) -> int:
    return int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])


def _attention_values(text: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return weights of the four matrices, biases, and keys and values per KV cache entry."""
    wide, heads, groups = (
        text["hidden_size"],
        text["num_attention_heads"],
        text["num_key_value_heads"],
    )
    head = _head_size(text)
    rows = (heads + 2 * groups) * head
    bias = rows if text.get("attention_bias", True) else 0
    return wide * rows + heads * head * wide, bias, 2 * groups * head


def _attention(text: Mapping[str, Any]) -> Activation:
    """Attention of a decoder layer; its peak is at the kernel.

    Alive per token: the layer's input, the residual and the normed input (3 x hidden); the query
    before and after its rotation and the attended values (3 x heads x head size), keys and values
    of the same layer (2 x groups x head size, twice: rotated, and as the cache keeps them).
    """
    wide, heads, groups = (
        text["hidden_size"],
        text["num_attention_heads"],
        text["num_key_value_heads"],
    )
    head = _head_size(text)
    return Activation("text", 3 * wide + (3 * heads + 4 * groups) * head, extra_bytes=8)


def _dense_layer(text: Mapping[str, Any], index: int, in_moe: bool) -> UnitShape:
    """Decoder layer with one gated MLP; it has four norms in GLM-4.1V and two in the others."""
    wide, mlp = text["hidden_size"], text["intermediate_size"]
    matrices, bias, cache = _attention_values(text)
    linear = matrices + 3 * wide * mlp
    norms = 2 if in_moe else 4
    rotary = _head_size(text) // 2
    return UnitShape(
        f"layer.{index}",
        (f"{_TEXT}.layers.{index}",),
        "text_layer",
        values=linear + bias + norms * wide,
        linear_values=linear,
        linear_rows=bias + wide + 2 * mlp + wide,
        widest_linear=(2 * mlp, wide),
        cache_values=cache,
        activations=(costs.text_layer(wide, mlp, rotary), _attention(text)),
    )


def _moe_layer(text: Mapping[str, Any], index: int, in_moe: bool) -> UnitShape:
    """Decoder layer with routed and shared experts; the routed ones are not quantised.

    The router's score correction, one value per expert, is a buffer and not counted.
    """
    wide, mlp, chosen = (
        text["hidden_size"],
        text["moe_intermediate_size"],
        text["num_experts_per_tok"],
    )
    experts = text["n_routed_experts"]
    matrices, bias, cache = _attention_values(text)
    shared = 3 * wide * mlp * text["n_shared_experts"]
    values = matrices + bias + 2 * wide + shared + experts * (3 * wide * mlp + wide)
    return UnitShape(
        f"layer.{index}",
        (f"{_TEXT}.layers.{index}",),
        "text_layer",
        values=values,
        linear_values=matrices + shared,
        linear_rows=bias + wide,
        widest_linear=(text["num_attention_heads"] * _head_size(text), wide),
        cache_values=cache,
        activations=(_experts(wide, chosen), _attention(text)),
    )


def _experts(wide: int, chosen: int) -> Activation:
    """Routed experts in one grouped product; the peak is where results are put back in order.

    Alive per token and chosen expert (transformers' ``grouped_mm_experts_forward``): the gathered
    input and the experts' results (2 x hidden), the weighted results in two orders in float32
    (2 x hidden: the router's weights are float32), five int64 of sorting; per token the layer's
    input, the residual and the normed residual (3 x hidden).
    """
    per_expert = 2 * _FLOAT32 * wide + 5 * _INT64
    return Activation("text", (2 * chosen + 3) * wide, extra_bytes=chosen * per_expert)


def _vision_units(vision: Mapping[str, Any]) -> Iterator[UnitShape]:
    """Yield patch embedding, each block, then the merge and its projection."""
    wide, out = vision["hidden_size"], vision["out_hidden_size"]
    merge, table = vision["spatial_merge_size"], vision["image_size"] // vision["patch_size"]
    patch = _patch_values(vision)
    yield UnitShape(
        "vision.patches",
        tuple(
            f"{_VISION}.{module}"
            for module in ("patch_embed", "embeddings", "post_conv_layernorm", "rotary_pos_emb")
        ),
        "vision_embedding",
        values=(patch + 1) * wide + table * table * wide + wide,
        activations=(
            Activation("patch", held_bytes=_FLOAT32 * patch, held_values=patch),
            Activation("patch", 2 * wide, extra_bytes=3 * _FLOAT32 * wide),
        ),
    )
    attention = 4 * wide * wide + (3 * wide if vision.get("attention_bias") else 0)
    for index in range(vision["depth"]):
        yield UnitShape(
            f"vision.{index}",
            (f"{_VISION}.blocks.{index}",),
            "vision_layer",
            values=attention + 3 * wide * out + 2 * wide,
            activations=(_vision_block(wide, out),),
        )
    projection = out * out + 2 * out + 3 * out * vision["intermediate_size"]
    yield UnitShape(
        "vision.projector",
        tuple(f"{_VISION}.{module}" for module in ("post_layernorm", "downsample", "merger")),
        "vision_projector",
        values=wide + (wide * merge * merge + 1) * out + projection,
        activations=(costs.gated_projection(out, vision["intermediate_size"]),),
    )


def _vision_block(wide: int, mlp: int) -> Activation:
    """Block of the vision tower; the peak is at the rotation of its queries or its gated MLP.

    Alive per patch in the rotation: the tower's and the block's input and the normed one
    (3 x hidden), query, key and value (3), and in float32 query, key, a rotated half and its
    product (4); in the MLP: three inputs and 3 x mlp.
    """
    rotation = Activation("patch", 6 * wide, extra_bytes=4 * _FLOAT32 * wide)
    gated = 3 * wide + 3 * mlp
    return rotation if 6 * wide + 8 * wide > gated else Activation("patch", gated)


def _patch_values(vision: Mapping[str, Any]) -> int:
    """Return the pixel values of one patch: channels x frames x side x side."""
    return int(vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2)


def _patches_per_side(vision: Mapping[str, Any]) -> int:
    """Return the patches along a side of the standard image, a multiple of the merge."""
    merge = vision["spatial_merge_size"]
    return max(1, IMAGE_SIDE // (vision["patch_size"] * merge)) * merge


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
