"""Stage A: the vision tower alone, with dense labels for every patch and cell.

Training the whole model at once from answers only does not get off the ground in the same
time: the text part cannot use visual tokens that mean nothing yet, and so teaches the tower
nothing. A tower that already says what is where makes the rest quick.
"""

from __future__ import annotations

import time

import torch

from training.batches import image_batches, stream
from training.heads import DenseHeads
from training.network import Network, normalised
from training.optimisation import MasterWeights, hold_then_decay

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
) -> None:
    """Train the tower of `network` and `heads` in place; both come back in float32."""
    tower = network.transformer.vision
    device = tower.boi.device
    weights = MasterWeights((tower, heads), dtype)
    started, step = time.monotonic(), 0
    with stream(image_batches, seed, batch) as batches:
        while (progress := (time.monotonic() - started) / 60 / minutes) < 1:
            data = batches.next(progress)
            images = torch.from_numpy(data.images).to(device)
            cells, patches = network.visual_tokens(normalised(images, dtype))
            loss = heads.loss(cells, patches, data)
            norm = weights.step(loss, hold_then_decay(learning_rate, step, progress))
            step += 1
            if step % 200 == 0:
                right = heads.accuracy(cells.detach(), torch.from_numpy(data.cells).to(device))
                shown = " ".join(f"{name} {value:.3f}" for name, value in right.items())
                print(
                    f"tower step {step} minute {progress * minutes:.1f} "
                    f"loss {loss.item():.3f} gradient {norm:.2f} {shown}",
                    flush=True,
                )
    precise = {module: weights.full_precision(module) for module in (tower, heads)}
    for module, state in precise.items():
        module.float()
        module.load_state_dict(state)
