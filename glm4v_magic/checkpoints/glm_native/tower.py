"""Units of the vision tower with their sizes and modules, from ``config.json`` alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from glm4v_magic.core.model_shape import Activation, UnitShape
from glm4v_magic.planning import costs

__all__ = ["KEPT_VISUAL", "VISION", "grid_of", "patch_values", "vision_units"]

VISION = "model.visual"

KEPT_VISUAL = 3
"""Copies of the visual tokens: before and after the merger, and those of all images in one."""

_FLOAT32 = 4
_INT32 = 4
_INT64 = 8
_OF_INPUT = 3 * _INT64 + _INT32 + 4 * _INT64
"""Bytes per token where the inputs are: its id twice, its mask, type and positions on four axes."""

_IN_STEP = 2 * (_INT32 + 4 * _INT64) + 2 * _INT64
"""Bytes per token beside these in a decode step: its type and positions, before and after the new
token is appended, and twice what is counted of the mask."""


def vision_units(
    vision: Mapping[str, Any], vocabulary: int, *, is_plain: bool = False, is_clamped: bool = False
) -> Iterator[UnitShape]:
    """Yield patch embedding, each block, then the merge and its projection.

    Args:
        vision: ``vision_config`` of the checkpoint.
        vocabulary: number of tokens; inputs and logits are on the device of the first weight, which
            is the tower's.
        is_plain: whether it is the tower of GLM-OCR and GLM-5.3-Flash, which has no table of
            positions, norms of queries and keys, and biases.
        is_clamped: whether gate and up of its MLPs are clamped, as in GLM-5.3-Flash, so that one
            more of them is alive.
    """
    wide, out = vision["hidden_size"], vision["out_hidden_size"]
    merge = vision["spatial_merge_size"]
    mlp = vision["intermediate_size"] if is_plain else out
    inner = out * vision["in_channels"] if is_plain else vision["intermediate_size"]
    inner = vision.get("projection_intermediate_size", inner)
    yield _patch_embedding(vision, vocabulary, is_plain=is_plain)
    values = 4 * wide * wide + 3 * wide * mlp + 2 * wide
    if vision.get("attention_bias", is_plain):
        values += 4 * wide + 2 * mlp + wide if is_plain else 3 * wide
    if is_plain:
        values += 2 * (wide // vision["num_heads"])
    for index in range(vision["depth"]):
        yield UnitShape(
            f"vision.{index}",
            (f"{VISION}.blocks.{index}",),
            "vision_layer",
            values=values,
            pair_products=2 * wide,
            activations=_vision_block(vision, mlp, is_plain=is_plain, is_clamped=is_clamped),
        )
    projection = out * out + 2 * out + 3 * out * inner
    yield UnitShape(
        "vision.projector",
        tuple(f"{VISION}.{module}" for module in ("post_layernorm", "downsample", "merger")),
        "vision_projector",
        values=wide + (wide * merge * merge + 1) * out + projection,
        activations=(
            costs.gated_projection(out, inner, is_clamped=is_clamped),
            Activation("patch", wide, extra_bytes=costs.norm_bytes(wide)),  # the norm before it
        ),
    )


def _patch_embedding(vision: Mapping[str, Any], vocabulary: int, *, is_plain: bool) -> UnitShape:
    wide, patch = vision["hidden_size"], patch_values(vision)
    table = 0 if is_plain else vision["image_size"] // vision["patch_size"]
    more = () if is_plain else ("embeddings", "post_conv_layernorm")
    return UnitShape(
        "vision.patches",
        tuple(f"{VISION}.{module}" for module in ("patch_embed", *more, "rotary_pos_emb")),
        "vision_embedding",
        values=(patch + 1) * wide + (0 if is_plain else table * table * wide + wide),
        buffer_values=wide // vision["num_heads"] // 2,
        activations=(
            Activation("patch", held_bytes=_FLOAT32 * patch, tower_casts=patch),
            Activation("patch", wide, extra_bytes=2 * _angles(vision))
            if is_plain
            else _positions_added(vision, table),
            *(() if is_plain else (_images_numbered(vision),)),
            *costs.inputs(vocabulary, _OF_INPUT, _IN_STEP),
        ),
    )


def _positions_added(vision: Mapping[str, Any], side: int) -> Activation:
    """Addition of the positions, interpolated in float32 between those of the table.

    Alive per patch: the patches, what was interpolated, in float32 and in the model's dtype, and
    the sum; the table in float32; cosines and sines of a head's size, its row and column, and where
    these are in the table (ten numbers of 4 or 8 bytes).
    """
    wide = vision["hidden_size"]
    return Activation(
        "patch",
        3 * wide,
        extra_bytes=_angles(vision) + 2 * _INT64 + 4 * _FLOAT32,
        cast_bytes=_FLOAT32 * wide,
        fixed_casts=_FLOAT32 * wide * side * side,
    )


def _images_numbered(vision: Mapping[str, Any]) -> Activation:
    """Number of the image of each patch, which is compared with where each image ends.

    Alive per patch: the patch, cosines and sines of a head's size, its row and column, its number
    and its image's; and for each image a truth value.
    """
    return Activation(
        "patch",
        vision["hidden_size"],
        extra_bytes=_angles(vision) + 2 * _INT64,
        image_bytes=1,
    )


def _vision_block(
    vision: Mapping[str, Any], mlp: int, *, is_plain: bool, is_clamped: bool
) -> tuple[Activation, ...]:
    """Block of the vision tower; the peak is in its rotation, its projection or its gated MLP.

    Alive per patch in the rotation (transformers' ``apply_rotary_pos_emb_vision``): the block's
    input and the normed one (2 x hidden), query, key and value in one matrix (3), in GLM-OCR their
    normed query and key, too (2), and in float32 query, key, the rotated query, the key's product,
    its rotated halves and their product (6). Where the attended values are projected, which takes
    more in float32: both inputs, the matrix of three, the rotated query and key (2), the attended
    values of each image and of all (2), and the projection. In the MLP: three inputs and 3 x mlp,
    or 4 where gate and up are clamped.
    Cosines and sines of a head's size are float32 and stay, and so do its row and column (four
    int64).
    """
    wide = vision["hidden_size"]
    angles = _angles(vision)
    rotated = (7 if is_plain else 5) * wide
    rotation = Activation(
        "patch",
        rotated,
        extra_bytes=4 * _FLOAT32 * wide + angles,
        cast_bytes=2 * _FLOAT32 * wide,
    )
    return (
        rotation,
        Activation("patch", 10 * wide, extra_bytes=angles),
        Activation("patch", 3 * wide + (4 if is_clamped else 3) * mlp, extra_bytes=angles),
    )


def _angles(vision: Mapping[str, Any]) -> int:
    """Return the bytes per patch of cosine and sine of a head's size, and of its position."""
    return int(2 * _FLOAT32 * (vision["hidden_size"] // vision["num_heads"]) + 4 * _INT64)


def patch_values(vision: Mapping[str, Any]) -> int:
    """Return the pixel values of one patch: channels x frames x side x side."""
    return int(vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2)


def grid_of(tokens: int) -> tuple[int, int]:
    """Return rows and columns of the largest near-square grid of at most `tokens` tokens."""
    root = math.isqrt(tokens)
    rows = max(range(1 + root // 5, root + 1), key=lambda each: (each * (tokens // each), each))
    return rows, tokens // rows
