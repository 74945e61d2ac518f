"""Conversations as rows of token ids, in the layout of the checkpoint's prompt.

``[gMASK]<sop>``, then per message ``<|role|>``, a newline and the text, each part encoded on
its own; the image's three placeholder ids stand before the first question. The model learns
to continue ``<|assistant|>`` with a newline, the answer and ``<|user|>``, which ends it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from training.configuration import special_ids
from training.questions import Exchange
from training.tokenizer import Tokenizer

__all__ = ["IGNORED", "rows"]

IGNORED = -100
"""Target of everything that is not part of an answer."""

Rows = npt.NDArray[np.int64]


def rows(
    tokenizer: Tokenizer, talks: Sequence[list[Exchange]], length: int, *, image: bool
) -> tuple[Rows, Rows]:
    """Return ids and targets ``[B, length]``; exchanges that do not fit in a row are dropped."""
    special = special_ids(len(tokenizer.ranks))
    ids = np.full((len(talks), length), special["<|endoftext|>"], np.int64)
    targets = np.full((len(talks), length), IGNORED, np.int64)
    for row, talk in enumerate(talks):
        told, learnt = _row(tokenizer, special, talk, length, image)
        ids[row, : len(told)] = told
        targets[row, : len(learnt)] = learnt
    return ids, targets


def _row(
    tokenizer: Tokenizer,
    special: dict[str, int],
    talk: list[Exchange],
    length: int,
    image: bool,
) -> tuple[list[int], list[int]]:
    newline = tokenizer.encode("\n")
    told = [special["[gMASK]"], special["<sop>"], special["<|user|>"]]
    placeholders = (
        [special["<|begin_of_image|>"], special["<|endoftext|>"], special["<|end_of_image|>"]]
        if image
        else []
    )
    learnt = [IGNORED] * len(told)
    for exchange in talk:
        asked = newline + placeholders + tokenizer.encode(exchange.question)
        asked.append(special["<|assistant|>"])
        answered = newline + tokenizer.encode(exchange.answer) + [special["<|user|>"]]
        if len(told) + len(asked) + len(answered) > length:
            break
        told += asked + answered
        learnt += [IGNORED] * len(asked) + answered
        placeholders = []
    return told, learnt
