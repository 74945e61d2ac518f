"""Stage A: the vision tower alone, with dense labels for every patch and visual token."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from training.batches import stream
from training.native.drawn import ImageBatch, image_batches, moved
from training.native.heads import DenseHeads
from training.native.network import Network
from training.stages import run_tower

__all__ = ["rescale_tower", "train_tower"]

_EMBEDDING_SPREAD = 0.1


def train_tower(
    network: Network,
    heads: DenseHeads,
    save: Callable[[], None],
    *,
    minutes: float,
    seed: int,
    batch: int = 64,
    learning_rate: float = 2e-3,
    dtype: torch.dtype = torch.float32,
    workers: int = 1,
) -> None:
    """Train the tower of `network` and `heads` in place; both come back in float32."""
    network.lm_head.to(dtype)  # tells the dtype of all

    def loss_of(data: ImageBatch) -> tuple[Tensor, Callable[[], dict[str, float]]]:
        frames, labels = data.tensors(network.device)
        cells, patches = network.visual_tokens(frames)
        loss = heads.loss(cells, patches, labels)
        return loss, functools.partial(heads.accuracy, cells.detach(), labels)

    run_tower(
        network.model.visual, heads, image_batches, loss_of, minutes=minutes, seed=seed,
        batch=batch, learning_rate=learning_rate, dtype=dtype, workers=workers,
    )  # fmt: skip
    network.lm_head.float()
    save()


def rescale_tower(network: Network, seed: int) -> None:
    """Scale visual tokens to about the deviation of the word embeddings."""
    with stream(image_batches, seed, 64) as batches, torch.no_grad():
        cells, _ = network.visual_tokens(moved(batches.next(0).frames, network.device))
        network.model.visual.merger.down_proj.weight.mul_(_EMBEDDING_SPREAD / cells.std())
