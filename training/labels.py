"""Dense labels: what each patch and each merged cell of an image shows.

They teach the vision tower before there is any text (see `training.train`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from training.drawing import paint, write_digit
from training.scenes import COLOURS, LARGE_FROM, SHAPES, SMALL_UP_TO, Scene

__all__ = [
    "CELL_CLASSES",
    "FINE",
    "GRID",
    "PATCH_CLASSES",
    "DenseLabels",
    "dense_labels",
    "floor_plan",
    "what_is_where",
]

GRID = 8
"""Patches along one side of an image; merged cells are two patches wide."""

_NOISE = len(COLOURS) + 1
_NAMES = tuple(COLOURS)
_PLACES = 12  # a multiple of 3 (the words for places) and of 4 (the cells)

PATCH_CLASSES: dict[str, int] = {"colour": len(COLOURS) + 2, "shape": 1 + len(SHAPES) + 10}
"""Labels of a patch and how many values each has; 0 means that the patch shows nothing."""

CELL_CLASSES: dict[str, int] = {
    **PATCH_CLASSES, "size": 9, "across": _PLACES + 1, "down": _PLACES + 1, "centres": 4,
    "row": GRID // 2, "column": GRID // 2, "background": len(COLOURS) + 1,
}  # fmt: skip
"""Labels of a merged cell. Row and column look trivial, but all visual tokens share one text
position: where a token stands must be read from the token itself. A shape covers several cells,
so that the cells' own places say only roughly where it is: "across" and "down" are the place of
the centre of what a cell shows, in `_PLACES` steps."""

_Labels = npt.NDArray[np.int64]
FINE = 4
"""Parts along one side of a patch when coverage is measured."""

_SIZE_BOUNDS = (0.113, SMALL_UP_TO, 0.142, 0.16, LARGE_FROM, 0.2, 0.225)


@dataclass(frozen=True, slots=True)
class DenseLabels:
    """What is where in one image.

    Attributes:
        patches: the labels of `PATCH_CLASSES`, in that order: ``[2, N]``.
        masks: which parts of each patch show a shape or a digit: booleans ``[N, FINE * FINE]``.
        cells: the labels of `CELL_CLASSES`, in that order: ``[9, M]``.
    """

    patches: _Labels
    masks: npt.NDArray[np.bool_]
    cells: _Labels


def dense_labels(scene: Scene) -> DenseLabels:
    """Label every patch and every merged cell of `scene`."""
    plan = floor_plan(scene, GRID, GRID)
    classes = _classes(scene)
    grid, cells = GRID, GRID // 2
    things = what_is_where(plan, classes, cells, 0.08)
    centres = np.zeros((cells, cells), np.int64)
    for item in scene.items:
        centres[int(item.y * cells), int(item.x * cells)] += 1
    background = _NAMES.index(scene.background) + 1 if scene.background else 0
    rows, columns = np.divmod(np.arange(cells * cells), cells)
    parts = plan.reshape(grid, FINE, grid, FINE).transpose(0, 2, 1, 3) > 0
    return DenseLabels(
        patches=what_is_where(plan, classes, grid, 0.12)[:2],
        masks=parts.reshape(grid * grid, FINE * FINE),
        cells=np.concatenate(
            [
                things,
                np.minimum(centres, 3).reshape(1, -1),
                rows[None],
                columns[None],
                np.full((1, cells * cells), background),
            ]
        ),
    )


def floor_plan(scene: Scene, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Return a map of things: 0 or the number of the thing, `FINE` pixels a patch."""
    width, height = columns * FINE, rows * FINE
    plan = Image.new("L", (width, height), 0)
    canvas = ImageDraw.Draw(plan)
    for index, item in enumerate(scene.items, start=1):
        paint(canvas, item, width, height, index)
    if scene.glyph is not None:
        write_digit(canvas, scene.glyph, width, height, 1)
    return np.asarray(plan)


def what_is_where(
    plan: npt.NDArray[np.uint8], classes: _Labels, rows: int, least: float
) -> _Labels:
    """Return the labels of what covers most of each square, if it covers at least `least`.

    Args:
        plan: see `floor_plan`.
        classes: labels ``[1 + things, L]`` of nothing, then of each thing.
        rows: number of squares from top to bottom.
        least: share of a square.

    Returns:
        Labels ``[L, squares]``, row by row.
    """
    side = len(plan) // rows
    columns = plan.shape[1] // side
    fields = plan.reshape(rows, side, columns, side)
    kinds = np.arange(1, len(classes)).reshape(-1, 1, 1, 1, 1)
    if kinds.size == 0:
        return np.repeat(classes[:1].T, rows * columns, axis=1)
    cover = (fields == kinds).mean(axis=(2, 4)).reshape(len(kinds), -1)
    best = np.where(cover.max(axis=0) >= least, cover.argmax(axis=0) + 1, 0)
    return classes[best].T


def _classes(scene: Scene) -> _Labels:
    """Return rows (colour, shape, size, across, down): of nothing, then of each thing."""
    rows = [(_NOISE if scene.kind == "noise" else 0, 0, 0, 0, 0)]
    for item in scene.items:
        size = 1 + sum(item.radius > bound for bound in _SIZE_BOUNDS)
        colour, shape = _NAMES.index(item.colour) + 1, SHAPES.index(item.shape) + 1
        rows.append((colour, shape, size, _step(item.x), _step(item.y)))
    if scene.glyph is not None:
        glyph = scene.glyph
        colour, shape = _NAMES.index(glyph.colour) + 1, 1 + len(SHAPES) + glyph.digit
        rows.append((colour, shape, 0, _step(glyph.x), _step(glyph.y)))
    return np.asarray(rows, np.int64)


def _step(fraction: float) -> int:
    """Return the step of a place, 1 to `_PLACES`."""
    return 1 + int(fraction * _PLACES)
