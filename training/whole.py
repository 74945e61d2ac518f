"""Stage B: the whole model, on the answers of conversations about images."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training.batches import ConversationBatch, ImageBatch, conversation_batches
from training.heads import DenseHeads
from training.network import BOI_INDEX, Network, normalised
from training.prompts import IGNORED
from training.stages import Save, run_whole

__all__ = ["rescale_tower", "train_whole"]

_EMBEDDING_SPREAD = 0.1


def rescale_tower(network: Network, images: Tensor) -> None:
    """Scale the visual tokens of `images` to about the deviation of the word embeddings."""
    vision = network.transformer.vision
    with torch.no_grad():
        cells, _ = network.visual_tokens(normalised(images, torch.float32))
        factor = _EMBEDDING_SPREAD * vision.scaling_factor / cells.std()
        vision.linear_proj.dense_4h_to_h.weight.mul_(factor)


def train_whole(
    network: Network,
    heads: DenseHeads,
    tokenizer_file: Path,
    save: Save,
    *,
    minutes: float,
    seed: int,
    batch: int = 32,
    length: int = 96,
    learning_rate: float = 1.5e-3,
    dtype: torch.dtype = torch.float32,
    curriculum_from: float = 0.0,
    more: Mapping[str, float] | None = None,
    chinese: float = 0.35,
    alike: float = 0.0,
    save_every: float = 4.0,
    workers: int = 1,
) -> None:
    """Train `network` in place, giving all weights to `save` every `save_every` minutes.

    `curriculum_from` in [0, 1] skips the first part of the curriculum, for a network that knows
    its basics; `more` holds factors for how often kinds of questions come up, `chinese` is the
    share of Chinese conversations, and `alike` that of images whose shapes have one outline.
    """
    make = functools.partial(
        conversation_batches, tokenizer_file, length, more or {}, chinese, alike
    )

    def losses(data: ConversationBatch) -> tuple[Tensor, Tensor, int]:
        return *_losses(network, heads, data, dtype), int(data.images is not None)

    run_whole(
        network, heads, make, losses, save, minutes=minutes, seed=seed, batch=batch,
        learning_rate=learning_rate, dtype=dtype, curriculum_from=curriculum_from,
        save_every=save_every, workers=workers,
    )  # fmt: skip


def _losses(
    network: Network, heads: DenseHeads, data: ConversationBatch, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the cross entropy of the answers' tokens, and the dense loss of the images."""
    device = network.transformer.output_layer.weight.device
    ids = torch.from_numpy(data.ids).to(device)
    targets = torch.from_numpy(data.targets).to(device)
    cells, dense = None, torch.zeros((), device=device)
    first = 1
    if data.images is not None:
        cells, dense = _look(network, heads, data.images, dtype)
        first = BOI_INDEX + 3
    hidden = network(ids, cells)
    # Text after the image keeps its order; only its distance from the start has changed.
    shift = hidden.shape[1] - ids.shape[1]
    states, wanted = hidden[:, first + shift : -1], targets[:, first + 1 :]
    learnt = wanted != IGNORED
    return F.cross_entropy(network.logits(states[learnt]).float(), wanted[learnt]), dense


def _look(
    network: Network, heads: DenseHeads, shown: ImageBatch, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    device = network.transformer.output_layer.weight.device
    images = torch.from_numpy(shown.images).to(device)
    cells, patches = network.visual_tokens(normalised(images, dtype))
    return cells, heads.loss(cells, patches, shown)
