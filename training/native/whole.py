"""Stage B: the whole model, on what it writes in conversations about images."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.native.batches import ConversationBatch, conversation_batches
from training.native.drawn import moved
from training.native.gaze import Gazes, watches
from training.native.heads import DenseHeads, around
from training.native.network import Network
from training.native.prompts import IGNORED
from training.native.tokenizer import EDGES, load
from training.stages import Save, run_whole

__all__ = ["EdgeLoss", "train_whole"]

_GAZE_WEIGHT = 0.5


class EdgeLoss:
    """Cross entropy of tokens, where edges of boxes are nearly right beside the right step.

    Args:
        folder: of the tokenizer.
        vocabulary: number of tokens that the model has.
        device: of what it is given.
    """

    def __init__(self, folder: Path, vocabulary: int, device: torch.device | None = None) -> None:
        tokenizer = load(folder)
        ids = [tokenizer.encode(edge, add_special_tokens=False) for edge in EDGES]
        self._edges = torch.tensor([token for (token,) in ids], device=device)
        self._step_of = torch.full((vocabulary,), -1, device=device)
        self._step_of[self._edges] = torch.arange(len(ids), device=device)

    def __call__(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Return the loss of logits ``[n, V]`` for tokens ``[n]``."""
        scores = logits.float().log_softmax(dim=-1)
        steps = self._step_of[wanted]
        hard = F.nll_loss(scores, wanted, reduction="none")
        spread = around(steps.clamp_min(0))
        soft = (spread * (spread.clamp_min(1e-9).log() - scores[:, self._edges])).sum(-1)
        return torch.where(steps >= 0, soft, hard).mean()


def train_whole(
    network: Network,
    heads: DenseHeads,
    folder: Path,
    save: Save,
    *,
    minutes: float,
    seed: int,
    batch: int = 32,
    length: int = 112,
    learning_rate: float = 1.5e-3,
    dtype: torch.dtype = torch.float32,
    curriculum_from: float = 0.0,
    more: Mapping[str, float] | None = None,
    chinese: float = 0.15,
    save_every: float = 4.0,
    workers: int = 1,
) -> None:
    """Train `network` in place, giving all weights to `save` every `save_every` minutes.

    `curriculum_from` in [0, 1] skips the first part of the curriculum, for a network that knows
    its basics; `more` holds factors for how often kinds of questions come up, `chinese` is the
    share of Chinese conversations.
    """
    vocabulary = network.lm_head.out_features
    loss_of = EdgeLoss(folder, vocabulary, network.device)
    gazes = Gazes(folder, vocabulary, len(network.model.language_model.layers))
    make = functools.partial(conversation_batches, folder, length, more or {}, chinese)

    def losses(data: ConversationBatch) -> tuple[Tensor, Tensor, int]:
        return *_losses(network, heads, data, loss_of, gazes), len(data.layout.starts)

    run_whole(
        network, heads, make, losses, save, minutes=minutes, seed=seed, batch=batch,
        learning_rate=learning_rate, dtype=dtype, curriculum_from=curriculum_from,
        save_every=save_every, workers=workers,
    )  # fmt: skip


def _losses(
    network: Network,
    heads: DenseHeads,
    data: ConversationBatch,
    loss_of: EdgeLoss,
    gazes: Gazes,
) -> tuple[Tensor, Tensor]:
    """Return the loss of what the model writes, and that of the images and of looking elsewhere."""
    device = network.device
    # What is learnt is chosen here and not on a GPU, which would have to be waited for.
    learnt = np.flatnonzero(data.targets[:, 1:] != IGNORED)
    wanted = moved(data.targets[:, 1:].reshape(-1)[learnt], device)
    visual, dense = None, torch.zeros((), device=device)
    if data.images is not None:
        frames, labels = data.images.tensors(device)
        visual, patches = network.visual_tokens(frames)
        dense = heads.loss(visual, patches, labels)
    taught = gazes.of(data, device)
    hidden = network(moved(data.ids, device), visual, data.layout, watches(taught))
    states = hidden[:, :-1].flatten(0, 1)[moved(learnt, device)]
    answers = loss_of(network.logits(states), wanted)
    return answers, sum((_GAZE_WEIGHT * gaze.loss for gaze in taught), dense)
