"""The decode loop: one forward for each step of all rows, from prefill to the last end.

transformers supplies forward, cache and logits processors; its `generate` says the same ids. It is
not called because it knows one end for all rows, keeps a row that has ended, and cannot be left
between two steps.

Shapes: B open rows, L ids of a prompt with padding on its left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from glm4v_magic.engines.sampling import TokenSampler

__all__ = ["RowTerms", "decode"]


@dataclass(frozen=True, slots=True)
class RowTerms:
    """How one row is decoded.

    Attributes:
        limit: its longest answer in tokens, at least 1.
        ends: ids that end it.
        sampler: chooses its tokens.
    """

    limit: int
    ends: Collection[int]
    sampler: TokenSampler


def decode(
    model: Any, inputs: Mapping[str, Tensor], terms: Sequence[RowTerms]
) -> Iterator[dict[int, int]]:
    """Yield the next id of each open row, by the number of the row, until all have ended.

    A row that has ended leaves the batch. Between two steps nothing is entered and nothing set: the
    caller puts the contexts of torch around each ``next``, and may stop at any step.

    Args:
        model: with ``position_ids(input_ids, attention_mask)``.
        inputs: of the prompts, as the processor makes them: ``input_ids`` and ``attention_mask``
            (B, L), and what comes with images.
        terms: of each row.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    prompt = ids.shape[1]
    padding = (prompt - mask.sum(dim=1)).tolist()
    # Every later column is of a token that was said.
    longest = max(each.limit for each in terms)
    said_mask = torch.ones((len(mask), longest), dtype=mask.dtype, device=mask.device)
    mask = torch.cat((mask, said_mask), dim=1)
    rows = list(range(len(terms)))
    reads_ids = any(each.sampler.reads_ids for each in terms)
    cache = DynamicCache(config=model.config.get_text_config())
    places = model.position_ids(ids, mask[:, :prompt])
    step: Mapping[str, Tensor] = inputs
    for said in range(1, longest + 1):
        logits = model(
            **step, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits
        latest = _chosen(
            [terms[row].sampler for row in rows],
            [ids[at : at + 1, padding[row] :] for at, row in enumerate(rows)],
            logits[:, -1].to(device=ids.device, dtype=torch.float32),
        )
        yield dict(zip(rows, latest, strict=True))
        kept = [
            at
            for at, row in enumerate(rows)
            if latest[at] not in terms[row].ends and said < terms[row].limit
        ]
        if not kept:
            return
        new, places = torch.tensor(latest, device=ids.device)[:, None], places[:, -1:] + 1
        if reads_ids:
            ids = torch.cat((ids, new), dim=1)
        if len(kept) < len(rows):
            rows = [rows[at] for at in kept]
            ids, mask, places, new = (each[kept] for each in (ids, mask, places, new))
            _keep(cache, kept)
        step = {"input_ids": new, "attention_mask": mask[:, : prompt + said]}


def _chosen(samplers: Sequence[TokenSampler], ids: Sequence[Tensor], scores: Tensor) -> list[int]:
    """Choose the next id of each row: B times (1, L) ids and (B, vocabulary) logits."""
    if all(sampler.is_plain for sampler in samplers):
        likeliest: list[int] = scores.argmax(dim=-1).tolist()
        return likeliest
    rows = zip(samplers, ids, scores.split(1), strict=True)
    return [sampler.choose(said, each) for sampler, said, each in rows]


def _keep(cache: DynamicCache, rows: Sequence[int]) -> None:
    """Drop the other rows of a cache, each layer on its own device."""
    for layer in cache.layers:
        layer.batch_select_indices(torch.tensor(rows, device=layer.keys.device))
