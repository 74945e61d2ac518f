"""Throw-away linear heads that tell from the tower's output what is where."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.labels import FINE
from training.native.configuration import BINS
from training.native.labels import CELL_CLASSES, NOTHING, PATCH_CLASSES

__all__ = ["DenseHeads", "DenseLabels", "around"]

DenseLabels = dict[str, Tensor]
"""A batch of `labels.Labels`: patches ``[B, 2, N]``, masks, cells and edges, by name."""

_CELL_WEIGHTS = {"colour": 1.0, "shape": 1.0, "centres": 0.4, "background": 0.2}
_PATCH_WEIGHT = 0.5
_EDGE_WEIGHT = 0.25
_NEAR = 0.8  # steps; deviation of the target around an edge


def around(steps: Tensor) -> Tensor:
    """Spread edges ``[...]`` over the steps beside them: targets ``[..., BINS]``.

    A step too far is nearly right: with one right answer the classes would have no order.
    """
    distances = torch.arange(BINS, device=steps.device) - steps[..., None]
    return (-0.5 * (distances / _NEAR) ** 2).softmax(dim=-1)


class DenseHeads(nn.Module):
    """Classifiers of patches ``[B, N, width]`` and of visual tokens ``[B, M, hidden]``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.cell = nn.Linear(hidden, sum(CELL_CLASSES.values()))
        self.edge = nn.Linear(hidden, 4 * BINS)
        self.patch = nn.Linear(width, sum(PATCH_CLASSES.values()))
        self.mask = nn.Linear(width, FINE * FINE)

    def loss(self, cells: Tensor, patches: Tensor, labels: DenseLabels) -> Tensor:
        """Return the sum of all losses of the tower's output on a batch."""
        normal = self.norm(cells)
        loss = cells.new_zeros((), dtype=torch.float32)
        for index, (name, scores) in enumerate(self._named(self.cell(normal)).items()):
            each = F.cross_entropy(scores.transpose(1, 2), labels["cells"][:, index])
            loss = loss + _CELL_WEIGHTS[name] * each
        loss = loss + _EDGE_WEIGHT * self._edge_loss(normal, labels["edges"])
        parts = self.patch(patches).float().split(list(PATCH_CLASSES.values()), dim=-1)
        for index, scores in enumerate(parts):
            each = F.cross_entropy(scores.transpose(1, 2), labels["patches"][:, index])
            loss = loss + _PATCH_WEIGHT * each
        masks = labels["masks"].float()
        return loss + F.binary_cross_entropy_with_logits(self.mask(patches).float(), masks)

    def _edge_loss(self, normal: Tensor, edges: Tensor) -> Tensor:
        edges = edges.transpose(1, 2)
        shown = edges[..., 0] != NOTHING
        scores = self.edge(normal).float().unflatten(-1, (4, BINS))
        wanted = around(edges.clamp_min(0))
        surprise = (wanted * (wanted.clamp_min(1e-9).log() - scores.log_softmax(dim=-1))).sum(-1)
        # Sums with zeros: to choose what is shown by its index waits for a GPU.
        return (surprise.sum(-1) * shown).sum() / shown.sum().clamp_min(1)

    def accuracy(self, cells: Tensor, labels: DenseLabels) -> dict[str, float]:
        """Return shares of right colours and shapes, and how many steps edges are off."""
        normal = self.norm(cells)
        edges = labels["edges"].transpose(1, 2)
        shown = edges[..., 0] != NOTHING
        right = {
            name: (scores.argmax(-1) == labels["cells"][:, index])[shown].float().mean().item()
            for index, (name, scores) in enumerate(self._named(self.cell(normal)).items())
        }
        found = self.edge(normal[shown]).view(-1, 4, BINS).argmax(-1)
        off = (found - edges[shown]).abs().float().mean().item()
        return {**right, "steps off": off}

    def _named(self, scores: Tensor) -> dict[str, Tensor]:
        parts = scores.float().split(list(CELL_CLASSES.values()), dim=-1)
        return dict(zip(CELL_CLASSES, parts, strict=True))
