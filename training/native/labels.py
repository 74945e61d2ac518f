"""Dense labels of images: what each patch and each visual token shows, and where its edges are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from training.drawing import bounds
from training.labels import FINE, floor_plan, what_is_where
from training.native.configuration import BINS, PALETTE, STEP
from training.scenes import Item, Scene

__all__ = ["CELL_CLASSES", "NOTHING", "PATCH_CLASSES", "Labels", "box_of", "labels_of"]

NOTHING = -1
"""Edge of what a cell without a shape shows."""

PATCH_CLASSES = {"colour": len(PALETTE.colours) + 1, "shape": len(PALETTE.shapes) + 1}
"""Labels of a patch and how many values each has; 0 means that the patch shows nothing."""

CELL_CLASSES = {**PATCH_CLASSES, "centres": 4, "background": len(PALETTE.backgrounds)}
"""Labels of a visual token; "centres" is how many shapes have their centre there."""

_UNIT = 10_000  # pixels of a canvas on which edges are measured


@dataclass(frozen=True, slots=True)
class Labels:
    """What is where in one image, of N patches and M visual tokens.

    Attributes:
        patches: the labels of `PATCH_CLASSES`, in that order: ``[2, N]``, tokens' patches together.
        masks: which parts of each patch show a shape: booleans ``[N, FINE * FINE]``.
        cells: the labels of `CELL_CLASSES`, in that order: ``[4, M]``.
        edges: left, upper, right and lower edge of what each visual token shows, in steps:
            ``[4, M]``.
    """

    patches: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_]
    cells: npt.NDArray[np.int64]
    edges: npt.NDArray[np.int64]


def box_of(item: Item, aspect: float) -> tuple[int, int, int, int]:
    """Return the edges of a shape in thousandths of the image, each the middle of a step."""
    left, upper, right, lower = (STEP * each + STEP // 2 for each in _steps(item, aspect))
    return left, upper, right, lower


def _steps(item: Item, aspect: float) -> tuple[int, ...]:
    width, height = round(_UNIT * aspect), _UNIT
    edges = bounds(item, width, height)
    return tuple(
        min(max(int(edge * BINS / side), 0), BINS - 1)
        for edge, side in zip(edges, (width, height, width, height), strict=True)
    )


def labels_of(scene: Scene, rows: int, columns: int) -> Labels:
    """Label an image of ``rows x columns`` patches."""
    plan = floor_plan(scene, rows, columns)
    classes: list[tuple[int, ...]] = [(0, 0, *(NOTHING,) * 4)]
    for item in scene.items:
        names = PALETTE.colours.index(item.colour) + 1, PALETTE.shapes.index(item.shape) + 1
        classes.append((*names, *_steps(item, scene.aspect)))
    table = np.asarray(classes, np.int64)
    cells = what_is_where(plan, table, rows // 2, 0.06)
    centres = np.zeros((rows // 2, columns // 2), np.int64)
    for item in scene.items:
        centres[int(item.y * rows / 2), int(item.x * columns / 2)] += 1
    background = np.full(cells.shape[1], PALETTE.backgrounds.index(scene.background))
    patches = what_is_where(plan, table[:, :2], rows, 0.12)
    parts = plan.reshape(rows, FINE, columns, FINE).transpose(0, 2, 1, 3) > 0
    masks = parts.reshape(rows * columns, FINE * FINE).T
    return Labels(
        patches=_together(patches, rows, columns),
        masks=_together(masks, rows, columns).T,
        cells=np.stack([*cells[:2], np.minimum(centres, 3).ravel(), background]),
        edges=cells[2:],
    )


Value = TypeVar("Value", bound=np.generic)


def _together(values: npt.NDArray[Value], rows: int, columns: int) -> npt.NDArray[Value]:
    """Put the patches ``[..., N]`` of each visual token side by side."""
    grid = values.reshape(-1, rows // 2, 2, columns // 2, 2).transpose(0, 1, 3, 2, 4)
    return grid.reshape(len(values), -1)
