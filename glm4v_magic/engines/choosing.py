"""Scores of given texts: how probable the model finds each of them as its whole answer.

Prompts are prefilled together, or taken from the prefix cache; the texts then follow them in
batches, those of one prompt and of several alike.

Shapes: K texts, W tokens of the longest, L tokens of a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glm4v_magic.engines.decoding import Chosen, are_finite, with_logprobs
from glm4v_magic.engines.kv_block import KVBlock
from glm4v_magic.engines.prefill import Prefill, Vision
from glm4v_magic.engines.prefixes import PrefixStore
from glm4v_magic.engines.prompts import Prompt

__all__ = ["Asked", "ChoiceScorer", "Scored", "Scoring"]


@dataclass(frozen=True, slots=True)
class Scoring:
    """How texts are scored.

    Attributes:
        ends: stop token ids.
        logprobs: number of likeliest tokens to report with each; ``None`` for no probabilities.
    """

    ends: Collection[int]
    logprobs: int | None


@dataclass(frozen=True, slots=True)
class Scored:
    """A text as the whole answer to a prompt.

    Attributes:
        logprob: log-probability: the sum over its tokens, and over the end of the turn after it,
            which may be any stop token.
        tokens: its tokens, and the likeliest stop token.
    """

    logprob: float
    tokens: tuple[Chosen, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt and the texts that may answer it.

    Attributes:
        prompt: the prompt.
        texts: ids of each text, at least one; one may be the beginning of another.
        scoring: how they are scored.
        shared: length of the prefix that the prompt has in common with others, here or waiting.
        is_kept: whether the KV cache of the prompt is kept, since a chat may go on from it.
    """

    prompt: Prompt
    texts: Sequence[Sequence[int]]
    scoring: Scoring
    shared: int = 0
    is_kept: bool = False


class ChoiceScorer:
    """Scores texts in a call of the engine.

    Args:
        model: the model.
        kept: KV caches of earlier prompts; that of a prompt which is alone is added.
        vision: encodes images.
        at_once: maximum number of texts in a batch.
    """

    def __init__(self, model: Any, kept: PrefixStore, vision: Vision, at_once: int) -> None:
        self._kept, self._at_once = kept, at_once
        self._prefill = Prefill(model, kept, vision)

    def score(self, asked: Sequence[Asked], *, is_only: bool) -> list[list[Scored] | None]:
        """Score each text as the whole answer to its prompt.

        ``None`` for a prompt where the logits of a text, or of any before it, are not finite.

        Args:
            asked: the prompts with their texts.
            is_only: whether it is a single one, with nothing beside it and nothing waiting.
        """
        alone = {at for at, each in enumerate(asked) if is_only or each.is_kept}
        starts, begun = self._prefill.begun(
            [(each.prompt, each.shared) for each in asked], alone, is_only=is_only
        )
        features = self._prefill.features(
            image
            for each, start in zip(asked, starts, strict=True)
            for image in each.prompt.images_in(start, len(each.prompt))
        )
        found: list[list[Scored] | None] = [None for _ in asked]
        for block, which in begun:
            prompts = [asked[at].prompt for at in which]
            if len(which) == 1 and which[0] in alone:
                logits = self._prefill.read_alone(block, prompts[0], starts[which[0]], features)
            else:
                logits = self._prefill.read(block, prompts, [starts[at] for at in which], features)
            those = [asked[at] for at in which]
            own = self._prefill.attempt(partial(self._followed, block, logits, those))
            for at, each in zip(which, own, strict=True):
                found[at] = each
            for row in range(len(which)):
                is_kept = which[row] in alone and own[row] is not None
                if is_kept and not self._kept.is_recurrent:
                    self._keep(block, prompts[row], row)
        return found

    def _keep(self, block: KVBlock, prompt: Prompt, row: int) -> None:
        prefix = self._prefill.attempt.spare(partial(block.prefix, prompt.keys, row))
        if prefix is not None:
            self._kept.put(prefix)

    def _followed(
        self, block: KVBlock, logits: Tensor, asked: Sequence[Asked]
    ) -> list[list[Scored] | None]:
        """Score the texts of the rows of a block, given the logits after its prompts."""
        first = logits.log_softmax(dim=-1)
        are_sound: list[bool] = are_finite(logits).tolist()
        texts = [(row, ids) for row, each in enumerate(asked) for ids in each.texts]
        found: list[list[Scored]] = [[] for _ in asked]
        for start in range(0, len(texts), self._at_once):
            batch = texts[start : start + self._at_once]
            width = max(len(ids) for _, ids in batch)
            # Padding comes last and changes nothing before it.
            padded = [[*ids, *[0] * (width - len(ids))] for _, ids in batch]
            logits = block.followed(padded, [row for row, _ in batch])
            finite: list[list[bool]] = are_finite(logits).tolist()
            after = logits.log_softmax(dim=-1)
            for at, (row, ids) in enumerate(batch):
                # One more place than there are tokens: the last is for the end of the turn.
                steps = torch.cat((first[row : row + 1], after[at, : len(ids)]))
                are_sound[row] = are_sound[row] and all(finite[at][: len(ids)])
                found[row].append(_score(ids, steps, asked[row].scoring))
        return [
            texts if is_sound and any(math.isfinite(each.logprob) for each in texts) else None
            for texts, is_sound in zip(found, are_sound, strict=True)
        ]


def _score(text: Sequence[int], steps: Tensor, scoring: Scoring) -> Scored:
    """Score a text by the log-probabilities at each of its places, (tokens + 1, vocabulary)."""
    ends = sorted(scoring.ends)
    said = steps[range(len(text)), list(text)].sum()
    logprob = float(said + steps[-1, ends].logsumexp(dim=-1))
    ids = [*text, ends[int(steps[-1, ends].argmax())]]
    if scoring.logprobs is None:
        return Scored(logprob, tuple(map(Chosen, ids)))
    return Scored(logprob, tuple(with_logprobs(ids, steps, [scoring.logprobs] * len(ids))))
