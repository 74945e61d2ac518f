"""Batches of labelled images, all of one size."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from training.drawing import draw_scene
from training.native.configuration import GRIDS, PALETTE, PATCH
from training.native.labels import Labels, labels_of
from training.scenes import Scene, rng_for, sample_scene

__all__ = [
    "ImageBatch",
    "drawn",
    "image_batch",
    "image_batches",
    "moved",
    "sampled",
    "sampled_grid",
]

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """B images of one or two frames, ``[B, F, height, width, 3]``, and their stacked labels."""

    frames: npt.NDArray[np.uint8]
    labels: dict[str, npt.NDArray[Any]]

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the same as tensors on a device."""
        labels = {name: moved(values, device) for name, values in self.labels.items()}
        return moved(self.frames, device), labels


def moved(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; a GPU takes it when it gets there, and nobody waits."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def sampled_grid(rng: random.Random) -> Grid:
    """Draw the number of rows and columns of patches."""
    return rng.choices(list(GRIDS), [share for share, _ in GRIDS.values()])[0]


def sampled(rng: random.Random, grid: Grid, shapes: tuple[int, int], *, alike: bool) -> Scene:
    """Draw a scene that the image processor resizes to a grid."""
    aspect = rng.uniform(*GRIDS[grid][1])
    return sample_scene(rng, "shapes", shapes, alike=alike, palette=PALETTE, aspect=aspect)


def drawn(scene: Scene, grid: Grid, rng: random.Random) -> npt.NDArray[np.uint8]:
    """Draw a scene as a user's image arrives at the model: drawn larger, then resized."""
    rows, columns = grid
    size = columns * PATCH, rows * PATCH
    image = draw_scene(scene, min(size) * rng.choice((1, 2, 2, 3)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def image_batch(frames: list[npt.NDArray[np.uint8]], labels: list[Labels]) -> ImageBatch:
    """Stack images, each ``[F, height, width, 3]``, and their labels."""
    names = ("patches", "masks", "cells", "edges")
    stacked = {name: np.stack([getattr(each, name) for each in labels]) for name in names}
    return ImageBatch(np.stack(frames), stacked)


def image_batches(seed: int, size: int, progress: Synchronized[float]) -> Iterator[ImageBatch]:
    """Yield crowded images, since each labelled cell teaches the tower something."""
    rng = rng_for("train-native-tower", seed)
    while True:
        grid = sampled_grid(rng)
        frames, labels = [], []
        for _ in range(size):
            most = (2, 4) if rng.random() < 0.7 else (0, 2)
            scene = sampled(rng, grid, most, alike=rng.random() < 0.2)
            frames.append(drawn(scene, grid, rng)[None])
            labels.append(labels_of(scene, *grid))
        yield image_batch(frames, labels)
