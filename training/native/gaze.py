"""Teaches the model where to look: at a name and what it means, and at what has changed.

Answers alone do not teach it. After 18,000 steps the boxes of all shapes in reading order were
right, and a box that was asked for by name was that of any shape: 0.93 of overlap with one shape in
the image, 0.57 with two, 0.38 with three. Only the first edge of a box tells which shape was meant
(the others follow from it), and by several numbers instead of one word.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.native.batches import ConversationBatch
from training.native.configuration import PALETTE
from training.native.drawn import moved
from training.native.network import Watch
from training.native.prompts import IGNORED
from training.native.tokenizer import EDGES, load
from training.phrases import CHINESE_COLOURS, CHINESE_SHAPES

__all__ = ["Gaze", "Gazes", "watches"]

_NAMES = [
    *PALETTE.colours, *PALETTE.shapes, *CHINESE_COLOURS.values(), *CHINESE_SHAPES.values(),
]  # fmt: skip
_TOLD = ["is", "moves"]
"""What stands behind the name of what differs or moves."""

Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_EDGES = 4
_BACK = 9
"""Tokens in front of a box among which its name stands: `green triangle is at [[`."""


@dataclass(slots=True)
class Gaze:
    """Tokens of which the attention is taught, and what they have to look at.

    Attributes:
        rows: row of each of the n tokens.
        places: its index in its row.
        right: the tokens of the row to look at: ``[n, T]``.
        layer: index of the layer.
        group: number of the key that the heads which are taught share.
        loss: what attention to anything else costs; 0 until `look` was called.
    """

    rows: Tensor
    places: Tensor
    right: Tensor
    layer: int
    group: int
    loss: Tensor

    def look(self, query: Tensor, key: Tensor) -> None:
        """Measure the attention of queries ``[B, heads, T, size]``, keys ``[B, keys, T, size]``."""
        shared = query.shape[1] // key.shape[1]
        query, key = query[:, self.group * shared :][:, :shared], key[:, self.group, None]
        scores = (query @ key.transpose(-1, -2))[self.rows, :, self.places].float()
        scores = scores * query.shape[-1] ** -0.5
        later = torch.arange(key.shape[2], device=key.device) > self.places[:, None]
        scores = scores.masked_fill(later[:, None], -torch.inf)
        right = scores.masked_fill(~self.right[:, None], -torch.inf)
        self.loss = (scores.logsumexp(-1) - right.logsumexp(-1)).mean()


def watches(gazes: Iterable[Gaze]) -> dict[int, Watch]:
    """Return what shows the gazes of each layer its queries and keys."""
    by_layer: dict[int, list[Gaze]] = {}
    for gaze in gazes:
        by_layer.setdefault(gaze.layer, []).append(gaze)
    return {layer: functools.partial(_look, found) for layer, found in by_layer.items()}


def _look(gazes: list[Gaze], query: Tensor, key: Tensor) -> None:
    for gaze in gazes:
        gaze.look(query, key)


class Gazes:
    """Finds what is to be looked at in a batch.

    Args:
        folder: of the tokenizer.
        vocabulary: number of tokens that the model has.
        layers: of the text part.
    """

    def __init__(self, folder: Path, vocabulary: int, layers: int) -> None:
        tokenizer = load(folder)
        decoded = [tokenizer.decode([each]).strip() for each in range(vocabulary)]
        self._words = np.array(decoded, dtype=object)
        self._steps = np.array([EDGES.index(w) if w in EDGES else -1 for w in decoded])
        # A name is read, and an image compared with the one before, before it is said what is
        # there; the last layer then turns it into words.
        self._reading, self._finding = layers - 3, layers - 2

    def of(self, data: ConversationBatch, device: torch.device) -> list[Gaze]:
        """Return the gazes of a batch that has images, on a device."""
        if data.images is None:
            return []
        boxes = np.nonzero(self.steps(data.targets) >= 0)
        rows, edges = (each[::_EDGES] for each in boxes)
        firsts = rows, edges - 1
        found = [
            _gaze(*firsts, self.names(data, *firsts), self._reading, 0, device),
            _gaze(*firsts, self.shapes(data, rows), self._finding, 0, device),
        ]
        if len(data.layout.starts) > 1:
            changes = np.nonzero(self.changes(data.targets))
            tellers = changes[0], changes[1] - 1
            found += [
                _gaze(*tellers, changed(data)[changes[0]], self._finding, 0, device),
                _gaze(*places_before(data), self._reading, 1, device),
            ]
        return [gaze for gaze in found if gaze is not None]

    def steps(self, targets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the step of each target that is an edge of a box, -1 of all others."""
        return np.where(targets == IGNORED, -1, self._steps[targets])

    def changes(self, targets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which targets begin to name what differs or moves: `The green star moves up`.

        Answers about one of several images have its number first: `The star in image 1 is green`.
        """
        words = np.where(targets == IGNORED, "", self._words[targets])
        named = np.isin(words, _NAMES)
        tells = np.isin(words, _TOLD)
        begun = named & (_later(words, -1) == "The")
        return begun & (_later(tells, 1) | (_later(named, 1) & _later(tells, 2)))

    def names(self, data: ConversationBatch, rows: Places, places: Places) -> Mask:
        """Return where the name stands of what a box is about that begins behind each place."""
        named = np.isin(self._words[data.ids], _NAMES)
        away = places[:, None] - np.arange(data.ids.shape[1])
        return named[rows] & (away > 0) & (away < _BACK)

    def shapes(self, data: ConversationBatch, rows: Places) -> Mask:
        """Return the visual tokens that show what each box is about; `rows` has their rows.

        A shape that two images share is right in both: its box is the same.
        """
        steps = self.steps(data.targets)
        boxes = steps[steps >= 0].reshape(-1, 1, _EDGES, 1)
        return _in_rows(data, (_by_row(data, "edges")[rows] == boxes).all(axis=2))


def changed(data: ConversationBatch) -> Mask:
    """Return which visual tokens show something else than the image before, ``[B, T]``."""
    shown = np.concatenate((_by_row(data, "edges"), _by_row(data, "cells")[:, :, :2]), axis=2)
    differs = np.zeros((*shown.shape[:2], shown.shape[-1]), np.bool_)
    differs[:, 1:] = (shown[:, 1:] != shown[:, :-1]).any(axis=2)
    return _in_rows(data, differs)


def places_before(data: ConversationBatch) -> tuple[Places, Places, Mask]:
    """Return rows and places of visual tokens, and those at their places in the image before."""
    starts = np.array(data.layout.starts)[:, None] + np.arange(data.layout.tokens)
    here, before = starts[1:].ravel(), starts[:-1].ravel()
    rows, length = data.ids.shape
    right = np.arange(length) == before[:, None]
    return np.arange(rows).repeat(len(here)), np.tile(here, rows), np.tile(right, (rows, 1))


def _by_row(data: ConversationBatch, name: str) -> npt.NDArray[np.int64]:
    """Return labels of the visual tokens of each row: ``[B, K, n, M]``."""
    assert data.images is not None
    labels: npt.NDArray[np.int64] = data.images.labels[name]
    return labels.reshape(len(data.ids), len(data.layout.starts), *labels.shape[1:])


def _in_rows(data: ConversationBatch, shown: Mask) -> Mask:
    """Put visual tokens ``[n, K, M]`` to their places in rows ``[n, T]``."""
    found = np.zeros((len(shown), data.ids.shape[1]), np.bool_)
    for index, start in enumerate(data.layout.starts):
        found[:, start : start + data.layout.tokens] = shown[:, index]
    return found


def _later(values: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Return the values so many tokens later in each row."""
    return np.roll(values, -count, axis=1)


def _gaze(
    rows: Places, places: Places, right: Mask, layer: int, group: int, device: torch.device
) -> Gaze | None:
    found = right.any(axis=1)  # the smallest shapes fill no visual token
    if not found.any():
        return None
    return Gaze(
        rows=moved(rows[found], device),
        places=moved(places[found], device),
        right=moved(right[found], device),
        layer=layer,
        group=group,
        loss=torch.zeros((), device=device),
    )
