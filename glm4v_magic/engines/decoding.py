"""The decode loop: from prefill to the last stop token, one forward per step for all open rows.

transformers supplies forward, cache and logits processors; its `generate` gives the same ids. It is
not used because it has one stop condition for all rows, keeps rows that have ended, prefills every
prompt from its beginning, cannot add a row while it runs, and cannot be left between two steps.

Waiting rows enter as soon as there is room: they are prefilled by themselves and get their first
token, then join the others. Rows that have ended leave. Either costs one copy of the KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from glm4v_magic.checkpoints.encoding import DecodeStep
from glm4v_magic.engines.attempts import Attempts
from glm4v_magic.engines.kv_block import KVBlock, joined
from glm4v_magic.engines.prefill import Prefill, Vision
from glm4v_magic.engines.prefixes import Keys, PrefixStore
from glm4v_magic.engines.prompts import Prompt
from glm4v_magic.engines.sampling import TokenSampler

__all__ = [
    "Chosen",
    "Entrant",
    "RowTerms",
    "Waiting",
    "are_finite",
    "decode",
    "with_logprobs",
]


@dataclass(frozen=True, slots=True)
class RowTerms:
    """Decoding parameters of one row.

    Attributes:
        limit: maximum number of generated tokens, at least 1.
        ends: stop token ids.
        sampler: sampler of its tokens.
        logprobs: number of likeliest tokens to report with each; ``None`` for no probabilities.
        is_kept: whether its KV cache is kept when it ends, since the caller goes on with it.
    """

    limit: int
    ends: Collection[int]
    sampler: TokenSampler
    logprobs: int | None = None
    is_kept: bool = False


class Chosen(NamedTuple):
    """A chosen token.

    Attributes:
        id: token id.
        logprob: its log-probability under the model's own distribution, before any sampling option;
            ``None`` if the row does not ask for it.
        likeliest: the likeliest tokens, likeliest first, each with its log-probability.
    """

    id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Entrant:
    """A row that is about to enter the batch.

    Attributes:
        row: number of the row.
        prompt: its prompt.
        terms: its decoding parameters.
        shared: length of the prefix that it has in common with other rows, entering or waiting.
    """

    row: int
    prompt: Prompt
    terms: RowTerms
    shared: int = 0


class Waiting(Protocol):
    """Rows that have not entered yet."""

    @property
    def is_empty(self) -> bool:
        """Whether no row is waiting, and none will come."""

    @property
    def left(self) -> Collection[int]:
        """Numbers of rows that are not decoded any further; more may be added between steps."""

    def take(self, most: int) -> Sequence[Entrant]:
        """Return at most `most` of the next rows; empty if none is waiting."""


def decode(
    model: Any,
    waiting: Waiting,
    at_once: int,
    kept: PrefixStore,
    vision: Vision,
    quick: Callable[[], DecodeStep | None] = lambda: None,
) -> Generator[dict[int, Chosen | None], None, None]:
    """Yield the next token of open rows, by row number, until all rows have ended.

    A row whose logits are not finite ends with ``None`` instead of a token; the others go on.

    No context is open between two steps: the caller enters torch's contexts around each ``next``,
    may stop at any step, and may add waiting rows between steps.

    Args:
        model: the model.
        waiting: rows to decode.
        at_once: maximum number of open rows.
        kept: KV caches of earlier prompts; that of a row which is alone is added at the end,
            however it ends.
        vision: encodes images.
        quick: returns a faster step than the model's forward, if there is one; called once.
    """
    batch = _Batch(model, kept, vision, quick)
    try:
        while True:
            while entrants := waiting.take(at_once - len(batch)):
                latest = batch.enter(entrants, is_only=waiting.is_empty)
                batch.leave()
                yield latest
                batch.leave(waiting.left)
            if not len(batch):
                return
            latest = batch.step()
            batch.leave()
            yield latest
            batch.leave(waiting.left)
    except Exception:
        batch.give_up()
        raise
    finally:
        batch.keep()


@dataclass(slots=True)
class _Row:
    """An open row and the ids that it has generated.

    Attributes:
        entrant: the row as it entered.
        said: these ids.
        is_broken: whether the logits of its next token were not finite, which ends it.
    """

    entrant: Entrant
    said: list[int] = field(default_factory=list)
    is_broken: bool = False

    @property
    def number(self) -> int:
        return self.entrant.row

    @property
    def prompt(self) -> Prompt:
        return self.entrant.prompt

    @property
    def has_ended(self) -> bool:
        terms = self.entrant.terms
        return self.is_broken or self.said[-1] in terms.ends or len(self.said) >= terms.limit

    @property
    def ids(self) -> Tensor:
        """Prompt and generated ids, (1, L); only the prompt if the sampler does not read ids."""
        prompt = self.prompt.ids
        if not self.entrant.terms.sampler.reads_ids or not self.said:
            return prompt
        return torch.cat((prompt, torch.tensor([self.said], device=prompt.device)), dim=1)


class _Batch:
    """The open rows and their KV cache, which is in several blocks until the next step."""

    def __init__(
        self,
        model: Any,
        kept: PrefixStore,
        vision: Vision,
        quick: Callable[[], DecodeStep | None],
    ) -> None:
        self._model, self._kept, self._quick = model, kept, quick
        self._prefill = Prefill(model, kept, vision)
        self._blocks: list[tuple[KVBlock, list[_Row]]] = []
        self._only: _Row | None = None
        self._left: set[int] = set()

    def __len__(self) -> int:
        return sum(len(self._open(rows)) for _, rows in self._blocks)

    def _open(self, rows: Sequence[_Row]) -> list[int]:
        """Return the indices of the rows of a block that have not left."""
        return [at for at, row in enumerate(rows) if row.number not in self._left]

    def enter(self, entrants: Sequence[Entrant], *, is_only: bool) -> dict[int, Chosen | None]:
        """Prefill rows and choose the first token of each.

        Args:
            entrants: the rows.
            is_only: whether no others are waiting.
        """
        rows = [_Row(each) for each in entrants]
        self._only = rows[0] if is_only and len(rows) == 1 and not self._blocks else None
        alone = {at for at, each in enumerate(entrants) if each.terms.is_kept}
        starts, begun = self._prefill.begun(
            [(each.prompt, each.shared) for each in entrants],
            alone,
            is_only=self._only is not None,
        )
        features = self._prefill.features(
            image
            for row, start in zip(rows, starts, strict=True)
            for image in row.prompt.images_in(start, len(row.prompt))
        )
        latest: dict[int, Chosen | None] = {}
        for block, which in begun:
            own = [rows[at] for at in which]
            self._blocks.append((block, own))
            prompts = [row.prompt for row in own]
            if self._only is not None or (len(which) == 1 and which[0] in alone):
                logits = self._prefill.read_alone(block, prompts[0], starts[which[0]], features)
            else:
                logits = self._prefill.read(block, prompts, [starts[at] for at in which], features)
            latest |= self._chosen(own, logits)
        return latest

    def step(self) -> dict[int, Chosen | None]:
        """Run one decode step and choose the next token of each open row."""
        block, rows = self._joined()
        latest = [row.said[-1] for row in rows]
        logits = block.step(latest, self._prefill.attempt, self._decode_step)
        return self._chosen(rows, logits)

    @cached_property
    def _decode_step(self) -> DecodeStep | None:
        return self._prefill.attempt(self._quick)

    def _joined(self) -> tuple[KVBlock, list[_Row]]:
        """Bring all open rows into one block, without those that have left."""
        parts = [(block, rows, self._open(rows)) for block, rows in self._blocks]
        parts = [part for part in parts if part[2]]
        (block, rows, which), *others = parts
        if others or len(which) < len(rows):
            rows = [rows[at] for _, rows, which in parts for at in which]
            chosen = [(block, which) for block, _, which in parts]
            block = joined(self._model, chosen, self._prefill.attempt)
        self._blocks = [(block, rows)]
        return block, rows

    def _chosen(self, rows: Sequence[_Row], logits: Tensor) -> dict[int, Chosen | None]:
        """Sample the next token of each row and append it."""
        terms = [row.entrant.terms for row in rows]
        attempt = self._prefill.attempt
        asking = [at for at, each in enumerate(terms) if each.logprobs is not None]
        # A copy: a sampler may change the logits.
        own = attempt(lambda: logits[asking].log_softmax(dim=-1)) if asking else None
        found = _chosen(rows, logits, attempt)
        latest = [None if each is None else Chosen(each) for each in found]
        if own is not None:
            counts = [terms[at].logprobs or 0 for at in asking]
            ids = [found[at] or 0 for at in asking]
            told = attempt(partial(with_logprobs, ids, own, counts))
            for at, each in zip(asking, told, strict=True):
                latest[at] = None if found[at] is None else each
        for row, token in zip(rows, latest, strict=True):
            if token is None:
                row.is_broken = True
            else:
                row.said.append(token.id)
        return {row.number: token for row, token in zip(rows, latest, strict=True)}

    def leave(self, others: Collection[int] = ()) -> None:
        """Let rows that have ended leave; their memory is dropped at the next step.

        Args:
            others: numbers of rows that leave before their end.
        """
        gone = self._left.union(others)
        for block, rows in self._blocks:
            for at in self._open(rows):
                ends = rows[at].has_ended or rows[at].number in gone
                if ends and rows[at].entrant.terms.is_kept:
                    self._keep(block, at, rows[at])
        rows = [row for _, rows in self._blocks for row in rows]
        self._left = {row.number for row in rows if row.has_ended or row.number in gone}
        if self._only is None:
            self._blocks = [(block, rows) for block, rows in self._blocks if self._open(rows)]

    def give_up(self) -> None:
        """Drop the KV cache: the call failed, perhaps for lack of memory."""
        self._only = None

    def keep(self) -> None:
        """Keep the KV cache of a row that was alone; nothing of several rows."""
        if self._only is not None and self._blocks and self._blocks[0][0].width:
            self._keep(self._blocks[0][0], 0, self._only)

    def _keep(self, block: KVBlock, at: int, row: _Row) -> None:
        """Keep the KV cache of a row of a block, which is not yet that of its latest token."""
        if self._kept.budget and not self._kept.is_recurrent and not row.is_broken:
            keys: Keys = (*row.prompt.keys, *row.said)
            prefix = self._prefill.attempt.spare(lambda: block.prefix(keys, at))
            if prefix is not None:
                self._kept.put(prefix)
        if self._only is row:
            self._only = None


def are_finite(scores: Tensor) -> Tensor:
    """Tell which rows of logits, (..., vocabulary), a token can be chosen by.

    Not those with NaN or infinity; minus infinity for some ids, though not for all, is what a head
    may give to ids that are never said.
    """
    return scores.amax(dim=-1).isfinite()


_NONE = -1


def _likeliest(scores: Tensor) -> list[int]:
    """Return the likeliest id of each row, or `_NONE` where the logits are not finite.

    The maximum, NaN if there is any, tells it: no other pass over the vocabulary, and no other wait
    for a GPU.
    """
    ids = scores.argmax(dim=-1, keepdim=True)
    finite = scores.gather(-1, ids).isfinite()
    found: list[int] = torch.where(finite, ids, _NONE)[:, 0].tolist()
    return found


def _chosen(rows: Sequence[_Row], scores: Tensor, attempt: Attempts) -> list[int | None]:
    """Sample the next id of each of B rows from logits, (B, vocabulary).

    ``None`` where they are not finite: whatever would be chosen means nothing.
    """
    samplers = [row.entrant.terms.sampler for row in rows]
    if all(sampler.is_plain for sampler in samplers):
        likeliest = attempt(lambda: _likeliest(scores))
        return [None if each == _NONE else each for each in likeliest]

    def choose(row: _Row, own: Tensor) -> int:
        return row.entrant.terms.sampler.choose(row.ids, own)

    finite: list[bool] = attempt(lambda: are_finite(scores).tolist())
    return [
        attempt(partial(choose, row, own)) if is_finite else None
        for row, own, is_finite in zip(rows, scores.split(1), finite, strict=True)
    ]


def with_logprobs(ids: Sequence[int], own: Tensor, counts: Sequence[int]) -> list[Chosen]:
    """Return the chosen ids of N rows with their log-probabilities and the likeliest tokens.

    Args:
        ids: chosen ids.
        own: log-probabilities, (N, vocabulary).
        counts: number of likeliest tokens that each row asks for.
    """
    of_ids = own.gather(1, torch.tensor(ids, device=own.device)[:, None])[:, 0].tolist()
    values, likeliest = own.topk(min(max(counts), own.shape[1]), dim=-1)
    rows = zip(ids, of_ids, likeliest.tolist(), values.tolist(), counts, strict=True)
    return [
        Chosen(each, logprob, tuple(zip(tokens, logprobs, strict=True))[:count])
        for each, logprob, tokens, logprobs, count in rows
    ]
