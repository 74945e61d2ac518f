"""The decode loop: from prefill to the last stop token, one forward per step for all rows.

transformers supplies forward, cache and logits processors; its `generate` gives the same ids. It is
not used because it has one stop condition for all rows, keeps rows that have ended, prefills every
prompt from its beginning, and cannot be left between two steps.

Shapes: B open rows, W columns of the KV cache, some of which are padding in some rows. Positions
are (B, W), or (axes, B, W) where a token has several; here they are cut, padded and counted on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache

from glm4v_magic.checkpoints.encoding import EncodedImage
from glm4v_magic.checkpoints.reading import forget_locals
from glm4v_magic.engines.out_of_memory import is_out_of_memory
from glm4v_magic.engines.prefixes import KeptPrefix, Keys, PrefixStore, common_length
from glm4v_magic.engines.sampling import TokenSampler

__all__ = [
    "Chosen",
    "Prompt",
    "PromptImage",
    "RowTerms",
    "decode",
    "images_after",
    "outside_image",
    "with_logprobs",
]

_LEAST_SHARED = 16  # fewest tokens of a shared prefix that are worth their own forward


@dataclass(frozen=True, slots=True)
class PromptImage:
    """An image of a prompt, and its digest."""

    digest: str
    encoded: EncodedImage


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompt of one row.

    Attributes:
        ids: token ids with all ids of its images, (1, L).
        places: position of each token, (1, L) or (axes, 1, L).
        keys: key of each token for comparison with other prompts; see `prefixes`.
        images: its images, in order.
    """

    ids: Tensor
    places: Tensor
    keys: Keys
    images: tuple[PromptImage, ...] = ()


Encode: TypeAlias = Callable[[Sequence[PromptImage]], dict[str, Any]]
"""Images -> the arguments of the model's forward that hold their visual tokens."""


@dataclass(frozen=True, slots=True)
class RowTerms:
    """Decoding parameters of one row.

    Attributes:
        limit: maximum number of generated tokens, at least 1.
        ends: stop token ids.
        sampler: sampler of its tokens.
        logprobs: number of likeliest tokens to tell with each; ``None`` for no probabilities.
    """

    limit: int
    ends: Collection[int]
    sampler: TokenSampler
    logprobs: int | None = None


class Chosen(NamedTuple):
    """A chosen token.

    Attributes:
        id: token id.
        logprob: its log-probability under the model's own distribution, whatever the sampler
            makes of it; ``None`` if the row does not ask for it.
        likeliest: the likeliest tokens, likeliest first, each with its log-probability.
    """

    id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


def decode(
    model: Any,
    prompts: Sequence[Prompt],
    terms: Sequence[RowTerms],
    kept: PrefixStore,
    encode: Encode,
) -> Iterator[dict[int, Chosen]]:
    """Yield the next token of each open row, by row number, until all rows have ended.

    A prefix in the KV cache of an earlier prompt is not prefilled again, and a prefix that all rows
    share is prefilled once. A row that has ended leaves the batch. No context is open between two
    steps: the caller enters torch's contexts around each ``next``, and may stop at any step.

    Args:
        model: the model.
        prompts: prompt of each row.
        terms: decoding parameters of each row.
        kept: KV caches of earlier prompts; that of a single row is added at the end, however it
            ends.
        encode: encodes images whose features are not kept.
    """
    batch = _Batch(model, prompts, terms, kept, encode)
    try:
        logits = batch.prefill()
        while True:
            latest = batch.choose(logits)
            yield latest
            if not batch.take(latest):
                return
            logits = batch.step()
    except Exception:
        batch.give_up()
        raise
    finally:
        batch.keep()


class _Batch:
    """The open rows, their KV cache and their progress."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        terms: Sequence[RowTerms],
        kept: PrefixStore,
        encode: Encode,
    ) -> None:
        self._model, self._prompts, self._terms, self._kept = model, prompts, terms, kept
        self._encode = encode
        self._rows = list(range(len(prompts)))
        self._said: list[list[int]] = [[] for _ in prompts]
        self._device = prompts[0].ids.device
        self._cache = self._empty()
        self._mask = self._places = torch.empty(0)
        self._width = 0

    def _empty(self) -> DynamicCache:
        return DynamicCache(config=self._model.config.get_text_config())

    def prefill(self) -> Tensor:
        """Prefill all prompts; returns logits of the next token, (B, vocabulary)."""
        start = self._shared()
        positions = [prompt.places[..., start:] for prompt in self._prompts]
        rests = [prompt.ids[:, start:] for prompt in self._prompts]
        longest = max(rest.shape[1] for rest in rests)
        ids, places, rest_mask = (
            torch.cat([_padded(each, longest) for each in tensors], dim=-2)
            for tensors in (rests, positions, [torch.ones_like(rest) for rest in rests])
        )
        before = torch.ones((len(rests), start), dtype=rest_mask.dtype, device=self._device)
        self._mask, self._places = torch.cat((before, rest_mask), dim=1), places
        return self._forward(ids, images_after(self._prompts, start))

    def _shared(self) -> int:
        """Put the shared prefix of all rows into the cache; returns its length."""
        first, count = self._prompts[0], len(self._prompts)
        shared = min(len(prompt.keys) for prompt in self._prompts) - 1  # logits need one more
        for prompt in self._prompts[1:]:
            shared = min(shared, common_length(first.keys, prompt.keys))
        shared = outside_image(shared, first)
        if count > 1 and shared < _LEAST_SHARED:
            return 0
        found, length = self._kept.take(first.keys[:shared])
        length = outside_image(length, first)
        if found is not None:
            self._fill(found, length)
        if count == 1:
            return length
        if shared > length:
            # As one row, whose cache is kept for later rows.
            self._read(_beginning(first, shared), length)
        if found is None or shared > length or length == len(found.keys):
            self._kept.put(self._prefix(first.keys, shared))
        for layer in self._cache.layers:
            layer.keys = layer.keys.expand(count, -1, -1, -1)
            layer.values = layer.values.expand(count, -1, -1, -1)
        return shared

    def _read(self, prompt: Prompt, start: int) -> None:
        """Prefill the rest of a prompt into a cache of one row."""
        self._mask = torch.ones_like(prompt.ids)
        self._places = prompt.places[..., start:]
        self._forward(prompt.ids[:, start:], images_after([prompt], start))

    def _fill(self, prefix: KeptPrefix, length: int) -> None:
        for layer, (keys, values) in zip(self._cache.layers, prefix.layers, strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys[..., :length, :], values[..., :length, :]
        self._width = length

    def _forward(self, ids: Tensor, images: Sequence[PromptImage] = ()) -> Tensor:
        """Run the model on new columns; retries once with kept caches freed if memory runs out."""
        try:
            return self._logits(ids, images)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not self._kept.clear():
                raise
            forget_locals(error)
        self._cut()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._logits(ids, images)

    def _logits(self, ids: Tensor, images: Sequence[PromptImage]) -> Tensor:
        features = self._encode(images) if images else {}
        logits = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=self._places,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **features,
        ).logits
        self._width += ids.shape[1]
        return logits[:, -1].to(device=self._device, dtype=torch.float32)

    def _cut(self) -> None:
        """Crop the cache to its last complete step: a failed step may have written some layers."""
        if not self._width:
            self._cache = self._empty()
            return
        for layer in self._cache.layers:
            layer.keys = layer.keys[..., : self._width, :]
            layer.values = layer.values[..., : self._width, :]

    def choose(self, logits: Tensor) -> dict[int, Chosen]:
        """Sample the next token of each row."""
        terms = [self._terms[row] for row in self._rows]
        asking = [at for at, each in enumerate(terms) if each.logprobs is not None]
        # A copy: a sampler may change the logits.
        own = logits[asking].log_softmax(dim=-1) if asking else None
        ids = [self._ids(row) for row in self._rows]
        latest = [Chosen(each) for each in _chosen([t.sampler for t in terms], ids, logits)]
        if own is not None:
            counts = [terms[at].logprobs or 0 for at in asking]
            told = with_logprobs([latest[at].id for at in asking], own, counts)
            for at, each in zip(asking, told, strict=True):
                latest[at] = each
        return dict(zip(self._rows, latest, strict=True))

    def _ids(self, row: int) -> Tensor:
        prompt = self._prompts[row].ids
        if not self._terms[row].sampler.reads_ids or not self._said[row]:
            return prompt
        said = torch.tensor([self._said[row]], device=self._device)
        return torch.cat((prompt, said), dim=1)

    def take(self, latest: Mapping[int, Chosen]) -> bool:
        """Append the sampled ids and drop rows that have ended; returns whether any are open."""
        kept = []
        for at, row in enumerate(self._rows):
            said, terms = self._said[row], self._terms[row]
            said.append(latest[row].id)
            if said[-1] not in terms.ends and len(said) < terms.limit:
                kept.append(at)
        if not kept:
            return False
        if len(kept) < len(self._rows):
            self._rows = [self._rows[at] for at in kept]
            self._mask, self._places = self._mask[kept], self._places[..., kept, :]
            _keep(self._cache, kept)
        return True

    def step(self) -> Tensor:
        """Run one decode step; returns logits of the next token, (B, vocabulary)."""
        ids = torch.tensor([[self._said[row][-1]] for row in self._rows], device=self._device)
        one = torch.ones((len(ids), 1), dtype=self._mask.dtype, device=self._device)
        self._mask = torch.cat((self._mask, one), dim=1)
        self._places = self._places[..., -1:] + 1
        return self._forward(ids)

    def give_up(self) -> None:
        """Keep no cache: the call failed, perhaps for lack of memory."""
        self._width = 0

    def keep(self) -> None:
        """Keep the KV cache of a single row; nothing for a batch."""
        if len(self._prompts) == 1 and self._kept.budget and self._width:
            keys: tuple[Hashable, ...] = (*self._prompts[0].keys, *self._said[0])
            self._kept.put(self._prefix(keys, self._width))

    def _prefix(self, keys: Keys, length: int) -> KeptPrefix:
        layers = tuple(
            (layer.keys[..., :length, :], layer.values[..., :length, :])
            for layer in self._cache.layers
        )
        return KeptPrefix(keys[:length], layers)


def _beginning(prompt: Prompt, length: int) -> Prompt:
    """Return the beginning of a prompt; it ends outside of images."""
    images = tuple(image for image in prompt.images if image.encoded.start < length)
    places = prompt.places[..., :length]
    return Prompt(prompt.ids[:, :length], places, prompt.keys[:length], images)


def images_after(prompts: Sequence[Prompt], start: int) -> list[PromptImage]:
    """Return the images that come after `start` in their rows."""
    return [image for each in prompts for image in each.images if image.encoded.start >= start]


def outside_image(length: int, prompt: Prompt) -> int:
    """Return how much of a prefix to use, so that it does not end inside an image."""
    spans = ((image.encoded.start, image.encoded.stop) for image in prompt.images)
    return next((start for start, stop in spans if start < length < stop), length)


def _padded(rows: Tensor, width: int) -> Tensor:
    """Pad (..., L) with zeros on the left."""
    return torch.nn.functional.pad(rows, (width - rows.shape[-1], 0))


def _chosen(samplers: Sequence[TokenSampler], ids: Sequence[Tensor], scores: Tensor) -> list[int]:
    """Sample the next id of each row from B times (1, L) ids and (B, vocabulary) logits."""
    if all(sampler.is_plain for sampler in samplers):
        likeliest: list[int] = scores.argmax(dim=-1).tolist()
        return likeliest
    rows = zip(samplers, ids, scores.split(1), strict=True)
    return [sampler.choose(said, each) for sampler, said, each in rows]


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


def _keep(cache: DynamicCache, rows: Sequence[int]) -> None:
    """Drop the other rows of a cache, each layer on its own device."""
    for layer in cache.layers:
        layer.batch_select_indices(torch.tensor(rows, device=layer.keys.device))
