"""Stage B: the whole model, on what it writes in conversations about images."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training.native.batches import ConversationBatch, conversation_batches
from training.native.heads import DenseHeads, around
from training.native.network import Network
from training.native.prompts import IGNORED
from training.native.tokenizer import EDGES, load
from training.stages import Save, run_whole

__all__ = ["EdgeLoss", "train_whole"]


class EdgeLoss:
    """Cross entropy of tokens, where edges of boxes are nearly right beside the right step.

    Args:
        folder: of the tokenizer.
        vocabulary: number of tokens that the model has.
    """

    def __init__(self, folder: Path, vocabulary: int) -> None:
        tokenizer = load(folder)
        ids = [tokenizer.encode(edge, add_special_tokens=False) for edge in EDGES]
        self._edges = torch.tensor([token for (token,) in ids])
        self._step_of = torch.full((vocabulary,), -1)
        self._step_of[self._edges] = torch.arange(len(ids))

    def __call__(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Return the loss of logits ``[n, V]`` for tokens ``[n]``."""
        scores = logits.float().log_softmax(dim=-1)
        steps = self._step_of[wanted]
        is_edge = steps >= 0
        hard = F.nll_loss(scores[~is_edge], wanted[~is_edge], reduction="sum")
        spread = around(steps[is_edge])
        soft = (spread * (spread.clamp_min(1e-9).log() - scores[is_edge][:, self._edges])).sum()
        return (hard + soft) / len(wanted)


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
) -> None:
    """Train `network` in place, giving all weights to `save` every `save_every` minutes.

    `curriculum_from` in [0, 1] skips the first part of the curriculum, for a network that knows
    its basics; `more` holds factors for how often kinds of questions come up, `chinese` is the
    share of Chinese conversations.
    """
    loss_of = EdgeLoss(folder, network.lm_head.out_features)
    make = functools.partial(conversation_batches, folder, length, more or {}, chinese)

    def losses(data: ConversationBatch) -> tuple[Tensor, Tensor, int]:
        return *_losses(network, heads, data, loss_of), len(data.layout.starts)

    run_whole(
        network, heads, make, losses, save, minutes=minutes, seed=seed, batch=batch,
        learning_rate=learning_rate, dtype=dtype, curriculum_from=curriculum_from,
        save_every=save_every,
    )  # fmt: skip


def _losses(
    network: Network, heads: DenseHeads, data: ConversationBatch, loss_of: EdgeLoss
) -> tuple[Tensor, Tensor]:
    """Return the loss of what the model writes, and the dense loss of the images."""
    ids, targets = torch.from_numpy(data.ids), torch.from_numpy(data.targets)
    visual, dense = None, torch.zeros(())
    if data.images is not None:
        frames, labels = data.images.tensors()
        visual, patches = network.visual_tokens(frames)
        dense = heads.loss(visual, patches, labels)
    hidden = network(ids, visual, data.layout)
    states, wanted = hidden[:, :-1], targets[:, 1:]
    learnt = wanted != IGNORED
    return loss_of(network.logits(states[learnt]), wanted[learnt]), dense
