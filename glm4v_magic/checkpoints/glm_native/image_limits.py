"""Least and most visual tokens of an image, from ``preprocessor_config.json``; imports no torch.

`images` reads the same file through transformers; this is for plans, which may have no such file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator

from glm4v_magic.checkpoints.files import read_json
from glm4v_magic.checkpoints.glm_native.families import Family
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.outside import checked

__all__ = ["FILE", "ImageLimits", "image_limits"]

FILE = "preprocessor_config.json"

_LEAST_TOKENS = 16  # of all published files: 112 x 112 pixels
_LARGEST = 2**40


class _Size(BaseModel):
    """Pixels of an image and its repetition in time, as transformers' classes have them."""

    shortest_edge: int = Field(default=112 * 112, ge=1, le=_LARGEST)
    longest_edge: int = Field(default=28 * 28 * 15_000, ge=1, le=_LARGEST)


class _File(BaseModel):
    size: _Size = _Size()
    min_image_tokens: int = Field(default=_LEAST_TOKENS, ge=1, le=_LARGEST)
    max_image_tokens: int = Field(default=8000, ge=1, le=_LARGEST)

    @model_validator(mode="after")
    def _leaves_something(self) -> _File:
        if self.min_image_tokens > self.max_image_tokens:
            raise ValueError(
                f"min_image_tokens {self.min_image_tokens} is more than max_image_tokens "
                f"{self.max_image_tokens}"
            )
        return self


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of an image in visual tokens, without those around it."""

    least: int
    most: int


def image_limits(folder: Path, family: Family, vision: Mapping[str, Any]) -> ImageLimits:
    """Return the limits of a checkpoint, or the published ones of its family without a file.

    Args:
        folder: where the file would be.
        family: family of the checkpoint.
        vision: ``vision_config`` of the checkpoint.

    Raises:
        CheckpointError: if the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return ImageLimits(_LEAST_TOKENS, family.image_tokens)
    found = checked(_File, read_json(file), str(file), CheckpointError)
    if family.counts_tokens:
        return ImageLimits(found.min_image_tokens, max(found.max_image_tokens, 1))
    token = (vision["patch_size"] * vision["spatial_merge_size"]) ** 2
    token *= vision["temporal_patch_size"]
    most = -(-found.size.longest_edge // token)  # rounded up, as a processor may reach it
    return ImageLimits(min(-(-found.size.shortest_edge // token), most), most)
