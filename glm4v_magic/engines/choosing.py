"""Scores of given texts: how probable the model finds each of them as its whole answer.

The prompt is prefilled once, or taken from the prefix cache; the texts then follow it as a batch.

Shapes: K texts, W tokens of the longest, L tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from glm4v_magic.engines.decoding import Chosen, Vision, with_logprobs
from glm4v_magic.engines.prefixes import KeptPrefix, PrefixStore, common_length
from glm4v_magic.engines.prompts import Prompt

__all__ = ["Scored", "Scoring", "scored"]


@dataclass(frozen=True, slots=True)
class Scoring:
    """How texts are scored.

    Attributes:
        ends: stop token ids.
        logprobs: number of likeliest tokens to report with each; ``None`` for no probabilities.
        at_once: maximum number of texts in a batch.
    """

    ends: Collection[int]
    logprobs: int | None
    at_once: int


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


def scored(
    model: Any,
    prompt: Prompt,
    texts: Sequence[Sequence[int]],
    scoring: Scoring,
    kept: PrefixStore,
    vision: Vision,
    latest: KeptPrefix | None = None,
) -> tuple[list[Scored], KeptPrefix | None]:
    """Score each text as the whole answer to a prompt; one may be the beginning of another.

    Args:
        model: the model.
        prompt: prompt of the row.
        texts: ids of each text, at least one.
        scoring: how they are scored.
        kept: KV caches of earlier prompts; that of this one is added.
        vision: encodes images.
        latest: KV cache of the prompt before, which may begin alike, whether it is in `kept` or
            not.

    Returns:
        The scores, and the KV cache of the prompt; ``None`` for a model with recurrent state.
    """
    if not kept.takes_prefixes:
        return [_score(ids, _alone(model, prompt, ids, vision), scoring) for ids in texts], None
    prefix, first = _prefilled(model, prompt, kept, vision, latest)
    found: list[Scored] = []
    for start in range(0, len(texts), scoring.at_once):
        batch = texts[start : start + scoring.at_once]
        after = _continued(model, prompt, prefix, batch)
        for row, ids in enumerate(batch):
            # One more place than there are tokens: the last is for the end of the turn.
            found.append(_score(ids, torch.cat((first, after[row, : len(ids)])), scoring))
    return found, prefix


def _alone(model: Any, prompt: Prompt, text: Sequence[int], vision: Vision) -> Tensor:
    """Return log-probabilities at each place of a text, from one forward with its prompt."""
    device, width = prompt.ids.device, len(text)
    after = prompt.places[..., -1:] + torch.arange(1, width + 1, device=prompt.places.device)
    logits = model(
        input_ids=torch.cat((prompt.ids, torch.tensor([text], device=device)), dim=1),
        position_ids=torch.cat((prompt.places, after), dim=-1),
        use_cache=False,
        logits_to_keep=width + 1,
        **vision.see(prompt.images),
    ).logits
    return _normalised(logits[0], device)


def _score(text: Sequence[int], steps: Tensor, scoring: Scoring) -> Scored:
    """Score a text by the log-probabilities at each of its places, (tokens + 1, vocabulary)."""
    ends = sorted(scoring.ends)
    said = steps[range(len(text)), list(text)].sum()
    logprob = float(said + steps[-1, ends].logsumexp(dim=-1))
    ids = [*text, ends[int(steps[-1, ends].argmax())]]
    if scoring.logprobs is None:
        return Scored(logprob, tuple(map(Chosen, ids)))
    return Scored(logprob, tuple(with_logprobs(ids, steps, [scoring.logprobs] * len(ids))))


def _prefilled(
    model: Any, prompt: Prompt, kept: PrefixStore, vision: Vision, latest: KeptPrefix | None
) -> tuple[KeptPrefix, Tensor]:
    """Return the KV cache of a prompt, and log-probabilities after it, (1, vocabulary)."""
    keys = prompt.keys[:-1]  # the logits need one more
    found, length = kept.take(keys)
    if latest is not None and common_length(latest.keys, keys) > length:
        found, length = latest, common_length(latest.keys, keys)
    length = prompt.whole_images(length)
    cache = _cache(model, found, 1, length) if found is not None else _empty(model)
    images = prompt.images_in(length, len(prompt))
    features = vision.see(images)
    logits = model(
        input_ids=prompt.ids[:, length:],
        attention_mask=torch.ones_like(prompt.ids),
        position_ids=prompt.places[..., length:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **features,
    ).logits
    layers = tuple((layer.keys, layer.values) for layer in cache.layers)
    prefix = KeptPrefix(prompt.keys, layers)
    kept.put(prefix)
    return prefix, _normalised(logits[0], prompt.ids.device)


def _continued(
    model: Any, prompt: Prompt, prefix: KeptPrefix, texts: Sequence[Sequence[int]]
) -> Tensor:
    """Return log-probabilities after each token of each text, (K, W, vocabulary)."""
    width = max(map(len, texts))
    # Padding comes last and changes nothing before it.
    padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in texts])
    ids = padded.to(prompt.ids.device)
    length = prompt.ids.shape[1]
    places = prompt.places[..., -1:] + torch.arange(1, width + 1, device=prompt.places.device)
    logits = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids[:, :1]).expand(-1, length + width),
        position_ids=places.expand(*places.shape[:-2], len(texts), -1),
        past_key_values=_cache(model, prefix, len(texts), length),
        use_cache=True,
        logits_to_keep=width,
    ).logits
    return _normalised(logits, prompt.ids.device)


def _normalised(logits: Tensor, device: torch.device) -> Tensor:
    return logits.to(device=device, dtype=torch.float32).log_softmax(dim=-1)


def _empty(model: Any) -> DynamicCache:
    return DynamicCache(config=model.config.get_text_config())


def _cache(model: Any, prefix: KeptPrefix, rows: int, length: int) -> DynamicCache:
    """Return a cache that begins with a prefix, the same in all rows."""
    cache = _empty(model)
    for layer, (keys, values) in zip(cache.layers, prefix.layers, strict=True):
        layer.lazy_initialization(keys, values)
        layer.keys = keys[..., :length, :].expand(rows, -1, -1, -1)
        layer.values = values[..., :length, :].expand(rows, -1, -1, -1)
    return cache
