"""Stage A: the vision tower alone, with dense labels for every patch and visual token."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from training.batches import stream
from training.native.drawn import image_batches
from training.native.heads import DenseHeads
from training.native.network import Network
from training.optimisation import MasterWeights, hold_then_decay

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
) -> None:
    """Train the tower of `network` and `heads` in place; both come back in float32."""
    tower = network.model.visual
    weights = MasterWeights((tower, heads), dtype)
    network.lm_head.to(dtype)  # tells the dtype of all
    started, step = time.monotonic(), 0
    with stream(image_batches, seed, batch) as batches:
        while (progress := (time.monotonic() - started) / 60 / minutes) < 1:
            frames, labels = batches.next(progress).tensors()
            cells, patches = network.visual_tokens(frames)
            loss = heads.loss(cells, patches, labels)
            norm = weights.step(loss, hold_then_decay(learning_rate, step, progress))
            step += 1
            if step % 100 == 0:
                right = heads.accuracy(cells.detach(), labels)
                shown = " ".join(f"{name} {value:.3f}" for name, value in right.items())
                print(
                    f"tower step {step} minute {progress * minutes:.1f} "
                    f"loss {loss.item():.3f} gradient {norm:.2f} {shown}",
                    flush=True,
                )
    precise = {module: weights.full_precision(module) for module in (tower, heads)}
    network.float()
    for module, state in precise.items():
        module.float()
        module.load_state_dict(state)
    save()


def rescale_tower(network: Network, seed: int) -> None:
    """Scale visual tokens to about the deviation of the word embeddings."""
    with stream(image_batches, seed, 64) as batches, torch.no_grad():
        cells, _ = network.visual_tokens(torch.from_numpy(batches.next(0).frames))
        network.model.visual.merger.down_proj.weight.mul_(_EMBEDDING_SPREAD / cells.std())
