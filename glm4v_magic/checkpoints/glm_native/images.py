"""Images -> patches, through those of transformers' own processors that work on PIL images.

Shapes: P patches of an image, V = P / merge^2 visual tokens.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor

from glm4v_magic.checkpoints.glm_native.families import Family
from glm4v_magic.checkpoints.glm_native.processor_files import image_settings, video_settings
from glm4v_magic.core.errors import CheckpointError, ConversationError, reason
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.video import SourcedVideo
from glm4v_magic.core.wording import pixels
from glm4v_magic.images import to_rgb
from glm4v_magic.outside import checked
from glm4v_magic.outside.lenient import Number

__all__ = ["Patches"]

_LARGEST_RATIO = 200  # of the sides of an image; transformers' `smart_resize` refuses more


class _VideoSize(BaseModel):
    """``size`` of a video processor: pixels of all frames together."""

    shortest_edge: int = Field(default=112 * 112, ge=1)
    longest_edge: int = Field(default=28 * 28 * 2 * 30_000, ge=1)


class _VideoFile(BaseModel):
    size: _VideoSize = _VideoSize()


class _VideoTokens(BaseModel):
    """Limits of GLM-5.3's video processor: visual tokens of all frames."""

    min_image_tokens: int = Field(default=16, ge=1)
    max_image_tokens: int = Field(default=240_000, ge=1)


_Side = Annotated[int, Field(strict=True, ge=1)]
_THREE = Field(min_length=3, max_length=3)


class _ImageFile(BaseModel):
    """Keys of an image processor, with transformers' values of those that it lacks."""

    do_resize: Literal[True]  # patches need sides that they divide
    resample: Annotated[int, Field(ge=0, le=5)]  # filters of Pillow
    rescale_factor: Annotated[Number, Field(gt=0)]
    image_mean: Annotated[list[Number], _THREE]
    image_std: Annotated[list[Annotated[Number, Field(gt=0)]], _THREE]
    merge_size: _Side
    patch_size: _Side
    temporal_patch_size: _Side


def _video_size(folder: Path, rule: str) -> _VideoSize:
    settings = video_settings(folder)
    if rule == "glm5_next":
        tokens = _VideoTokens()
        if settings is not None:
            tokens = checked(_VideoTokens, settings.values, str(settings.file), CheckpointError)
        return _VideoSize(
            shortest_edge=tokens.min_image_tokens, longest_edge=tokens.max_image_tokens
        )
    if settings is not None:
        return checked(_VideoFile, settings.values, str(settings.file), CheckpointError).size
    return _VideoSize(longest_edge=28 * 28 * 2 * 55_790) if rule == "glmga" else _VideoSize()


class Patches:
    """Sizes and patches of images.

    Args:
        folder: folder of the checkpoint, with settings of an image processor.
        family: family of the checkpoint.
        vision: ``vision_config`` of the checkpoint.
        image_size: side in pixels of the largest square image that is seen; ``None`` for the
            checkpoint's limit. Frames of a video are no larger.

    Raises:
        CheckpointError: if the file is missing, damaged, or does not suit the vision tower.
    """

    def __init__(
        self,
        folder: Path,
        family: Family,
        vision: dict[str, Any],
        image_size: int | None = None,
    ) -> None:
        module, name = family.images
        self._module = importlib.import_module(module)
        self._folder = folder
        try:
            self._processor = getattr(self._module, name).from_pretrained(
                folder, local_files_only=True
            )
        except Exception as error:  # OSError, or whatever a value of any type leads to
            raise CheckpointError(
                f"The image processor of {folder} cannot be read: {reason(error)}.",
                "Every checkpoint of this kind has a preprocessor_config.json; download it again.",
            ) from error
        self._check(vision)
        # A file may name keys of other families, which transformers sets all the same.
        self._counts_tokens = family.counts_tokens
        self._most = None if image_size is None else image_size**2
        self._lower_limit()
        self._video = _VideoSize() if family.video is None else _video_size(folder, family.video)

    def _lower_limit(self) -> None:
        """Make the limit of transformers' processor, which resizes, no higher than ours."""
        if self._most is None:
            return
        processor = self._processor
        if self._counts_tokens:
            most = max(1, self._most // self._side**2)
            processor.max_image_tokens = min(processor.max_image_tokens, most)
        else:
            most = self._most * processor.temporal_patch_size
            processor.size.longest_edge = min(processor.size.longest_edge, most)

    def _check(self, vision: dict[str, Any]) -> None:
        pairs = {
            "patch_size": "patch_size",
            "temporal_patch_size": "temporal_patch_size",
            "merge_size": "spatial_merge_size",
        }
        settings = image_settings(self._folder)
        assert settings is not None  # which transformers has read
        file = settings.file
        named = {name: getattr(self._processor, name) for name in _ImageFile.model_fields}
        checked(_ImageFile, named, str(file), CheckpointError, "Download it again.")
        for name, in_config in pairs.items():
            found, expected = named[name], vision[in_config]
            if found != expected:
                raise CheckpointError(
                    f"{file} has {found!r} for {name}, but "
                    f"config.json has {expected!r} for {in_config}.",
                    "The files do not belong together; download them again.",
                )

    @cached_property
    def _side(self) -> int:
        """Side in pixels of the square that becomes one visual token."""
        return int(self._processor.patch_size * self._processor.merge_size)

    def size(self, image: SourcedImage) -> tuple[int, int]:
        """Return the width and height in pixels in which the model sees an image.

        Raises:
            ConversationError: if the image is too long and narrow.
        """
        width, height = image.image.size
        self._check_ratio(image.source, image.image.size)
        frames = self._processor.temporal_patch_size
        fewest, most = self._limits
        rows, columns = self._module.smart_resize(
            num_frames=frames,
            height=height,
            width=width,
            temporal_factor=frames,
            factor=self._side,
            min_pixels=fewest,
            max_pixels=most,
        )
        self._check_cap(image.source, image.image.size, (columns, rows))
        return columns, rows

    def _check_cap(self, source: str, size: tuple[int, int], seen: tuple[int, int]) -> None:
        # A side is at least that of a visual token, whatever the limit.
        if self._most is not None and seen[0] * seen[1] > max(self._most, self._side**2):
            side = math.isqrt(self._most)
            raise ConversationError(
                f"{source} is {pixels(size)}, too long and narrow for the model to see in as many "
                f"pixels as {side} x {side}.",
                "Crop it, or load the model with a larger image_size.",
            )

    def _check_ratio(self, source: str, size: tuple[int, int]) -> None:
        if max(size) > _LARGEST_RATIO * min(size):
            raise ConversationError(
                f"{source} is {pixels(size)}: one side is more than {_LARGEST_RATIO} times the "
                "other, which the model does not take.",
                "Crop it.",
            )

    @cached_property
    def _limits(self) -> tuple[int, int]:
        """Smallest and largest size of an image, in the processor's unit: pixels or tokens."""
        processor = self._processor
        if self._counts_tokens:
            return processor.min_image_tokens, processor.max_image_tokens
        return processor.size.shortest_edge, processor.size.longest_edge

    def grid(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return frames, rows and columns of the patches of an image that is seen at `size`."""
        patch = int(self._processor.patch_size)
        return 1, size[1] // patch, size[0] // patch

    def visual_tokens(self, grid: tuple[int, int, int]) -> int:
        """Return the number of visual tokens of a grid of patches."""
        frames, rows, columns = grid
        return frames * rows * columns // int(self._processor.merge_size) ** 2

    def video_size(self, video: SourcedVideo, number: int) -> tuple[int, int]:
        """Return the width and height in pixels in which the model sees each of `number` frames.

        Raises:
            ConversationError: if a frame is too long and narrow.
        """
        self._check_ratio(video.source, video.size)
        width, height = video.size
        most = self._video.longest_edge
        if self._most is not None:
            limit = self._most * number
            if self._counts_tokens:
                limit = limit // (self._processor.temporal_patch_size * self._side**2)
            most = min(most, limit)
        rows, columns = self._module.smart_resize(
            num_frames=number,
            height=height,
            width=width,
            temporal_factor=self._processor.temporal_patch_size,
            factor=self._side,
            min_pixels=self._video.shortest_edge,
            max_pixels=most,
        )
        self._check_cap(video.source, video.size, (columns, rows))
        return columns, rows

    def frame_size(
        self, video: SourcedVideo, number: int, seen: tuple[int, int]
    ) -> tuple[int, int]:
        """Return width and height in pixels of `number` frames within what the model sees, `seen`.

        Models whose images are limited in tokens keep a frame's proportions and pad it with black.
        """
        if not self._counts_tokens:
            return seen
        width, height = video.size
        scale = min(seen[0] / width, seen[1] / height)
        fewest = self._video.shortest_edge * self._processor.temporal_patch_size * self._side**2
        if number * width * height >= fewest:
            scale = min(1.0, scale)
        across, down = (max(1, math.floor(side * scale)) for side in (width, height))
        return min(seen[0], across), min(seen[1], down)

    def frame_values(self, frames: Sequence[Image.Image], seen: tuple[int, int]) -> Tensor:
        """Normalise and cut the frames of one patch in time: (P, values of a patch) float32.

        Args:
            frames: the frames.
            seen: width and height of what the model sees of each.
        """
        frames = [each if each.size == seen else each.crop((0, 0, *seen)) for each in frames]
        p, m = int(self._processor.patch_size), int(self._processor.merge_size)
        values = np.stack([np.asarray(frame, np.float32) for frame in frames])
        values = values * np.float32(self._processor.rescale_factor)
        mean, std = (np.array(each, np.float32) for each in self._normal)
        values = ((values - mean) / std).transpose(0, 3, 1, 2)
        t, _, height, width = values.shape
        blocks = values.reshape(t, 3, height // p // m, m, p, width // p // m, m, p)
        patches = blocks.transpose(2, 5, 3, 6, 1, 0, 4, 7).reshape(-1, 3 * t * p * p)
        return torch.from_numpy(np.ascontiguousarray(patches))

    @property
    def _normal(self) -> tuple[Sequence[float], Sequence[float]]:
        return self._processor.image_mean, self._processor.image_std

    def pixel_values(self, image: Image.Image) -> Tensor:
        """Resize, normalise and cut into patches: (P, values of a patch) float32."""
        patches: Tensor = self._processor([to_rgb(image)], return_tensors="pt")["pixel_values"]
        return patches
