"""Units of the vision tower with their sizes and modules, from ``config.json`` alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glm4v_magic.core.model_shape import Activation, UnitShape
from glm4v_magic.planning import costs

__all__ = ["IMAGE_SIDE", "VISION", "patch_values", "patches_per_side", "vision_units"]

IMAGE_SIDE = 1120
"""Side in pixels of the square image that plans and dry runs use."""

VISION = "model.visual"

_FLOAT32 = 4


def vision_units(vision: Mapping[str, Any]) -> Iterator[UnitShape]:
    """Yield patch embedding, each block, then the merge and its projection."""
    wide, out = vision["hidden_size"], vision["out_hidden_size"]
    merge, table = vision["spatial_merge_size"], vision["image_size"] // vision["patch_size"]
    patch = patch_values(vision)
    yield UnitShape(
        "vision.patches",
        tuple(
            f"{VISION}.{module}"
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
            (f"{VISION}.blocks.{index}",),
            "vision_layer",
            values=attention + 3 * wide * out + 2 * wide,
            activations=(_vision_block(wide, out),),
        )
    projection = out * out + 2 * out + 3 * out * vision["intermediate_size"]
    yield UnitShape(
        "vision.projector",
        tuple(f"{VISION}.{module}" for module in ("post_layernorm", "downsample", "merger")),
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


def patch_values(vision: Mapping[str, Any]) -> int:
    """Return the pixel values of one patch: channels x frames x side x side."""
    return int(vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2)


def patches_per_side(vision: Mapping[str, Any]) -> int:
    """Return the patches along a side of the standard image, a multiple of the merge."""
    merge = vision["spatial_merge_size"]
    return max(1, IMAGE_SIDE // (vision["patch_size"] * merge)) * merge
