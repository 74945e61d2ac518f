"""What the trainings of both demos share: the loops of the two stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

import torch
from torch import Tensor, nn

from training.batches import stream
from training.optimisation import MasterWeights, cosine, hold_then_decay

__all__ = ["Make", "Save", "run_tower", "run_whole"]

Batch = TypeVar("Batch")
Make = Callable[[int, int, "Synchronized[float]"], Iterator[Batch]]
"""Yields batches: of a seed, a size, and how far the training is."""
Save = Callable[[dict[str, Tensor], dict[str, Tensor]], None]
"""Takes the float32 weights of the network and of the heads."""

_DENSE_WEIGHT = 0.3
_SHOWN_EVERY = 100


def run_tower(
    tower: nn.Module,
    heads: nn.Module,
    make: Make[Batch],
    loss_of: Callable[[Batch], tuple[Tensor, Callable[[], dict[str, float]]]],
    *,
    minutes: float,
    seed: int,
    batch: int,
    learning_rate: float,
    dtype: torch.dtype,
    workers: int = 1,
) -> None:
    """Train tower and heads in place; both come back in float32.

    `loss_of` returns the loss of a batch and what measures how much of it is right.
    """
    weights = MasterWeights((tower, heads), dtype)
    started, step = time.monotonic(), 0
    with stream(make, seed, batch, workers) as batches:
        while (progress := (time.monotonic() - started) / 60 / minutes) < 1:
            loss, measure = loss_of(batches.next(progress))
            norm = weights.step(loss, hold_then_decay(learning_rate, step, progress))
            step += 1
            if step % _SHOWN_EVERY == 0:
                shown = " ".join(f"{name} {value:.3f}" for name, value in measure().items())
                print(
                    f"tower step {step} minute {progress * minutes:.1f} "
                    f"loss {loss.item():.3f} gradient {norm.item():.2f} {shown}",
                    flush=True,
                )
    precise = {module: weights.full_precision(module) for module in (tower, heads)}
    for module, state in precise.items():
        module.float()
        module.load_state_dict(state)


def run_whole(
    network: nn.Module,
    heads: nn.Module,
    make: Make[Batch],
    losses: Callable[[Batch], tuple[Tensor, Tensor, int]],
    save: Save,
    *,
    minutes: float,
    seed: int,
    batch: int,
    learning_rate: float,
    dtype: torch.dtype,
    curriculum_from: float,
    save_every: float,
    workers: int = 1,
) -> None:
    """Train network and heads in place, giving all weights to `save` every `save_every` minutes.

    `losses` returns the loss of the answers, that of the heads, and the images of a conversation:
    the loss that is shown is smoothed for each number of them, and beside it the share of the time
    that went to waiting for batches. `curriculum_from` in [0, 1] skips
    the first part of the curriculum.
    """
    weights = MasterWeights((network, heads), dtype)
    started = saved = time.monotonic()
    step, waited = 0, 0.0
    smooth: dict[int, Tensor] = {}
    with stream(make, seed, batch, workers) as batches:
        while (progress := (time.monotonic() - started) / 60 / minutes) < 1:
            begun = time.monotonic()
            data = batches.next(curriculum_from + (1 - curriculum_from) * progress)
            waited += time.monotonic() - begun
            answers, dense, images = losses(data)
            rate = cosine(learning_rate, step, progress)
            norm = weights.step(answers + _DENSE_WEIGHT * dense, rate)
            step += 1
            now = answers.detach()
            smooth[images] = torch.lerp(smooth.get(images, now), now, 0.05)
            if step % _SHOWN_EVERY == 0:
                shown = " ".join(f"{count}: {smooth[count].item():.4f}" for count in sorted(smooth))
                print(
                    f"whole step {step} minute {progress * minutes:.1f} loss by images {shown} "
                    f"dense {dense.item():.3f} gradient {norm.item():.2f} rate {rate:.1e} "
                    f"waited {waited / (time.monotonic() - started):.0%}",
                    flush=True,
                )
            if time.monotonic() - saved > save_every * 60:
                save(weights.full_precision(network), weights.full_precision(heads))
                saved = time.monotonic()
    save(weights.full_precision(network), weights.full_precision(heads))
