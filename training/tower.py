"""Stage A: the vision tower alone, with dense labels for every patch and cell.

Training the whole model at once from answers only does not get off the ground in the same
time: the text part cannot use visual tokens that mean nothing yet, and so teaches the tower
nothing. A tower that already says what is where makes the rest quick.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from training.batches import ImageBatch, image_batches
from training.heads import DenseHeads
from training.network import Network, normalised
from training.stages import run_tower

__all__ = ["train_tower"]


def train_tower(
    network: Network,
    heads: DenseHeads,
    *,
    minutes: float,
    seed: int,
    batch: int = 64,
    learning_rate: float = 2e-3,
    dtype: torch.dtype = torch.float32,
    workers: int = 1,
) -> None:
    """Train the tower of `network` and `heads` in place; both come back in float32."""
    tower = network.transformer.vision
    device = tower.boi.device

    def loss_of(data: ImageBatch) -> tuple[Tensor, Callable[[], dict[str, float]]]:
        images = torch.from_numpy(data.images).to(device)
        cells, patches = network.visual_tokens(normalised(images, dtype))
        right = torch.from_numpy(data.cells).to(device)
        loss = heads.loss(cells, patches, data)
        return loss, functools.partial(heads.accuracy, cells.detach(), right)

    run_tower(
        tower, heads, image_batches, loss_of, minutes=minutes, seed=seed, batch=batch,
        learning_rate=learning_rate, dtype=dtype, workers=workers,
    )  # fmt: skip
