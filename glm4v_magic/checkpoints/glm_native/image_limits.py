"""Least and most visual tokens of an image, from its processor's settings; imports no torch.

`images` reads the same file through transformers; this is for plans, which may have no such file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator

from glm4v_magic.checkpoints.glm_native.families import Family
from glm4v_magic.checkpoints.glm_native.processor_files import image_settings
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.outside import checked

__all__ = ["ImageLimits", "image_limits"]

_LEAST_TOKENS = 16  # of all published files: 112 x 112 pixels
_LARGEST = 2**40
_DAMAGED = "The file is damaged; download it again."


class _Size(BaseModel):
    """Pixels of an image and its repetition in time: of no use without both."""

    shortest_edge: int = Field(ge=1, le=_LARGEST)
    longest_edge: int = Field(ge=1, le=_LARGEST)


class _InPixels(BaseModel):
    """Keys of models that limit pixels, with transformers' values of those that are missing."""

    size: _Size = _Size(shortest_edge=112 * 112, longest_edge=28 * 28 * 15_000)


class _InTokens(BaseModel):
    """Keys of models that limit visual tokens, likewise."""

    min_image_tokens: int = Field(default=_LEAST_TOKENS, ge=1, le=_LARGEST)
    max_image_tokens: int = Field(default=8000, ge=1, le=_LARGEST)

    @model_validator(mode="after")
    def _leaves_something(self) -> _InTokens:
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
    settings = image_settings(folder)
    if settings is None:
        return ImageLimits(_LEAST_TOKENS, family.image_tokens)
    given, where = settings.values, str(settings.file)
    tokens = checked(_InTokens, given, where, CheckpointError)
    if family.counts_tokens:
        return ImageLimits(tokens.min_image_tokens, max(tokens.max_image_tokens, 1))
    size = checked(_InPixels, given, where, CheckpointError, _DAMAGED).size
    token = (vision["patch_size"] * vision["spatial_merge_size"]) ** 2
    token *= vision["temporal_patch_size"]
    most = -(-size.longest_edge // token)  # rounded up, as a processor may reach it
    return ImageLimits(min(-(-size.shortest_edge // token), most), most)
