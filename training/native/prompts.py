"""Conversations as rows of token ids, exactly as the checkpoint's chat template writes them."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from training.native.questions import Exchange

__all__ = ["IGNORED", "Mode", "Writer"]

IGNORED = -100
"""Target of everything that is not written by the model."""

Mode = Literal["off", "on", "past"]
"""How an answer comes: thinking is switched off, it thinks, or the turn is one of the past, whose
thoughts are left out."""

Rows = npt.NDArray[np.int64]


class Writer:
    """Writes rows for one tokenizer.

    Args:
        tokenizer: the tokenizer of the checkpoint.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._encode = functools.lru_cache(maxsize=20_000)(self._encoded)
        self._tokens: dict[str, int] = tokenizer.get_added_vocab()
        self._begin, self._image, self._end = (
            self._tokens[each] for each in ("<|begin_of_image|>", "<|image|>", "<|end_of_image|>")
        )

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, control tokens included."""
        return self._encode(text)

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.backend_tokenizer.encode(
            text, add_special_tokens=False
        ).ids
        return ids

    def images(self, count: int, tokens: int) -> list[int]:
        """Return the ids of `count` images of so many visual tokens each."""
        return [self._begin, *[self._image] * tokens, self._end] * count

    def clip(self, stamps: Sequence[str], tokens: int) -> list[int]:
        """Return the ids of a clip: each pair of frames with its time behind it."""
        frames = [
            token for stamp in stamps for token in (*self.images(1, tokens), *self.ids(stamp))
        ]
        video = (self._tokens["<|begin_of_video|>"], self._tokens["<|end_of_video|>"])
        return [video[0], *frames, video[1]]

    def starts(self, shown: Sequence[int]) -> tuple[int, ...]:
        """Return where the visual tokens of each image begin in a row that shows these ids."""
        lead = len(self.ids("[gMASK]<sop><|user|>\n"))
        return tuple(lead + at + 1 for at, token in enumerate(shown) if token == self._begin)

    def rows(
        self,
        rng: random.Random,
        talks: Sequence[Sequence[Exchange]],
        shown: Sequence[int],
        length: int,
    ) -> tuple[Rows, Rows]:
        """Return ids and targets ``[B, T]``; exchanges beyond `length` tokens are dropped.

        Args:
            rng: decides which answers are thought about.
            talks: the conversations.
            shown: ids of the images in front of each first question.
            length: longest row without `shown`.
        """
        told = [self._row(rng, talk, shown, length + len(shown)) for talk in talks]
        longest = max(len(ids) for ids, _ in told)
        padding = self._tokens["<|endoftext|>"]
        rows = np.full((len(told), longest), padding, np.int64)
        targets = np.full((len(told), longest), IGNORED, np.int64)
        for row, (ids, learnt) in enumerate(told):
            rows[row, : len(ids)] = ids
            targets[row, : len(learnt)] = learnt
        return rows, targets

    def _row(
        self, rng: random.Random, talk: Sequence[Exchange], shown: Sequence[int], length: int
    ) -> tuple[list[int], list[int]]:
        ids = list(self.ids("[gMASK]<sop>"))
        learnt = [IGNORED] * len(ids)
        for turn, exchange in enumerate(talk):
            mode: Mode = rng.choices(("off", "on", "past"), (5, 3, 1))[0]
            asked, answered = self.turn(exchange, mode, shown if turn == 0 else ())
            if len(ids) + len(asked) + len(answered) > length:
                break
            ids += asked + answered
            learnt += [IGNORED] * len(asked) + answered
        return ids, learnt

    def turn(
        self, exchange: Exchange, mode: Mode, shown: Sequence[int] = ()
    ) -> tuple[list[int], list[int]]:
        """Return the ids of a question, and those that the model writes then."""
        off = "/nothink" if mode == "off" else ""
        asked = [
            *self.ids("<|user|>\n"),
            *shown,
            *self.ids(f"{exchange.question}{off}<|assistant|>"),
        ]
        if not shown:
            asked = [*self.ids(f"<|user|>\n{exchange.question}{off}<|assistant|>")]
        if mode == "on":
            answer = f"\n<think>{exchange.thought}</think>\n{exchange.answer}<|user|>"
        else:
            asked += self.ids("\n<think></think>")
            answer = f"\n{exchange.answer}<|user|>"
        return asked, list(self.ids(answer))
