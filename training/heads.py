"""Throw-away linear heads that tell from the tower's output what each patch and cell shows."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batches import ImageBatch
from training.labels import CELL_CLASSES, FINE, PATCH_CLASSES

__all__ = ["DenseHeads"]

# Row and column are easy and need little push; size and centres must not drown colour and shape.
_CELL_WEIGHTS = {
    "colour": 1.0, "shape": 1.0, "size": 0.5, "across": 0.5, "down": 0.5, "centres": 0.4,
    "row": 0.1, "column": 0.1, "background": 0.3,
}  # fmt: skip
_PATCH_WEIGHT = 0.5


class DenseHeads(nn.Module):
    """Classifiers of patches ``[B, N, width]`` and of merged cells ``[B, M, hidden]``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.cell = nn.Linear(hidden, sum(CELL_CLASSES.values()))
        self.patch = nn.Linear(width, sum(PATCH_CLASSES.values()))
        self.mask = nn.Linear(width, FINE * FINE)

    def loss(self, cells: Tensor, patches: Tensor, labels: ImageBatch) -> Tensor:
        """Return the sum of all losses of the tower's output on a batch."""

        def there(array: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(cells.device)

        return (
            self._cell_loss(cells, there(labels.cells))
            + self._patch_loss(patches, there(labels.patches))
            + self._mask_loss(patches, there(labels.masks))
        )

    def _cell_loss(self, cells: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted cross entropy of all cell labels ``[B, 9, M]``."""
        return sum(
            (
                _CELL_WEIGHTS[name] * F.cross_entropy(scores.transpose(1, 2), labels[:, index])
                for index, (name, scores) in enumerate(self._cell_scores(cells).items())
            ),
            start=cells.new_zeros((), dtype=labels.dtype).float(),
        )

    def _patch_loss(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted cross entropy of patches' colour and shape, labels ``[B, 2, N]``."""
        parts = self.patch(patches).float().split(list(PATCH_CLASSES.values()), dim=-1)
        losses = [F.cross_entropy(s.transpose(1, 2), labels[:, i]) for i, s in enumerate(parts)]
        return _PATCH_WEIGHT * sum(losses, start=losses[0].new_zeros(()))

    def _mask_loss(self, patches: Tensor, masks: Tensor) -> Tensor:
        """Return the cross entropy of masks of covered parts of patches, ``[B, N, FINE * FINE]``.

        Outlines come apart from colours here first; shapes are read from outlines.
        """
        scores = self.mask(patches).float()
        return F.binary_cross_entropy_with_logits(scores, masks.float())

    def accuracy(self, cells: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the accuracy for each label, over the cells that show a shape or a digit."""
        shown = labels[:, list(CELL_CLASSES).index("shape")] > 0
        return {
            name: (scores.argmax(-1) == labels[:, index])[shown].float().mean().item()
            for index, (name, scores) in enumerate(self._cell_scores(cells).items())
        }

    def _cell_scores(self, cells: Tensor) -> dict[str, Tensor]:
        scores = self.cell(self.norm(cells)).float().split(list(CELL_CLASSES.values()), dim=-1)
        return dict(zip(CELL_CLASSES, scores, strict=True))
