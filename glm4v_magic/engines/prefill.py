"""Prefill: prompts into KV caches, each from where a cached prefix of it ends.

A prefix in the KV cache of an earlier prompt is not prefilled again, and a prefix that several rows
share is prefilled once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glm4v_magic.engines.arranging import LEAST_SHARED, alike
from glm4v_magic.engines.attempts import Attempts
from glm4v_magic.engines.kv_block import KVBlock, padded
from glm4v_magic.engines.prefixes import KeptPrefix, PrefixStore, longest
from glm4v_magic.engines.prompts import Prompt, PromptImage

__all__ = ["Prefill", "Vision"]


_TAIL = 16
"""Most tokens at the end of a prompt that say whose turn it is, and whether to think."""


@dataclass(frozen=True, slots=True)
class Vision:
    """How the model sees images.

    Attributes:
        encode: images -> visual tokens of each digest, (V, H), encoded or kept from earlier.
        arguments: visual tokens of each image in the ids of a forward, in the order of rows -> the
            keyword arguments of that forward.
    """

    encode: Callable[[Sequence[PromptImage]], Mapping[str, Tensor]]
    arguments: Callable[[Sequence[Tensor]], dict[str, Any]]

    def see(self, images: Sequence[PromptImage]) -> dict[str, Any]:
        """Encode the images in the ids of a forward, and return its keyword arguments for them."""
        return self.given(images, self.encode(images)) if images else {}

    def given(
        self, images: Sequence[PromptImage], features: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Return the keyword arguments of a forward for the images in its ids.

        Args:
            images: the images, in the order of rows.
            features: what `encode` returns.
        """
        return self.arguments([features[image.digest] for image in images]) if images else {}


class Prefill:
    """Prefills the prompts of a call.

    Args:
        model: the model.
        kept: KV caches of earlier prompts; shared prefixes are added.
        vision: encodes images.

    Attributes:
        attempt: calls what may run out of memory.
    """

    def __init__(self, model: Any, kept: PrefixStore, vision: Vision) -> None:
        self._model, self._kept, self._vision = model, kept, vision
        self.attempt = Attempts(kept)

    def begun(
        self,
        prompts: Sequence[tuple[Prompt, int]],
        alone: Collection[int] = (),
        *,
        is_only: bool,
    ) -> tuple[list[int], list[tuple[KVBlock, list[int]]]]:
        """Put the cached prefixes of prompts into blocks of rows that are prefilled together.

        Args:
            prompts: each prompt, and the length of the prefix that it has in common with others,
                entering or waiting.
            alone: indices of those whose states are kept on the way, where the model has states:
                each is in a block of its own.
            is_only: whether it is a single one and no others are waiting: its KV cache will replace
                the kept one that it continues.

        Returns:
            The length of each prompt's prefix, and the blocks with the indices of their prompts.
            Prefixes that are not kept are referred to by nothing else, so that each layer is freed
            as soon as it has grown.
        """
        prefixes = self._prefixes(prompts, is_only=is_only)
        starts = [length for _, length in prefixes]
        rests = [len(prompt) - start for (prompt, _), start in zip(prompts, starts, strict=True)]
        device = prompts[0][0].ids.device
        blocks = [
            (self._block([prefixes[at] for at in part], device), part)
            for part in self._together(prefixes, rests, alone)
        ]
        return starts, blocks

    def _block(
        self, prefixes: Sequence[tuple[KeptPrefix | None, int]], device: torch.device
    ) -> KVBlock:
        return self.attempt(partial(KVBlock.of_prefixes, self._model, prefixes, device))

    def _together(
        self,
        prefixes: Sequence[tuple[KeptPrefix | None, int]],
        rests: Sequence[int],
        alone: Collection[int],
    ) -> list[list[int]]:
        """Return groups of rows (indices) to prefill in one forward each."""
        if not self._kept.is_recurrent:
            return alike(rests)
        # Padding before the first token leaves states as they are, zero; after a prefix it does
        # not.
        groups: dict[tuple[int, int], list[int]] = {}
        for at, ((found, _), rest) in enumerate(zip(prefixes, rests, strict=True)):
            if at in alone:
                continue
            groups.setdefault((0, 0) if found is None else (id(found), rest), []).append(at)
        return [[at] for at in sorted(alone)] + [
            [group[at] for at in part]
            for group in groups.values()
            for part in alike([rests[at] for at in group])
        ]

    def _prefixes(
        self, prompts: Sequence[tuple[Prompt, int]], *, is_only: bool
    ) -> list[tuple[KeptPrefix | None, int]]:
        """Return a cached prefix for each prompt, and how much of it the prompt begins with."""
        if is_only:
            # The result of this call replaces it, so that it is in memory only once.
            ((prompt, _),) = prompts
            found, length = self._kept.take(prompt.keys[:-1])
            return [(found, prompt.whole_images(length))]
        prefixes: list[tuple[KeptPrefix | None, int]] = []
        for prompt, shared in prompts:
            keys = prompt.keys[:-1]
            held = [] if self.attempt.shared is None else [self.attempt.shared]
            found, length = max(
                self._kept.find(keys), longest(held, keys), key=lambda match: match[1]
            )
            length = prompt.whole_images(length)
            if shared - length >= LEAST_SHARED:
                found, length = self._read_shared(prompt, shared, found, length), shared
                self.attempt.shared = found
                self._kept.put(found)
            prefixes.append((found, length))
        return prefixes

    def _read_shared(
        self, prompt: Prompt, end: int, found: KeptPrefix | None, length: int
    ) -> KeptPrefix:
        """Prefill a prompt up to `end`; `length` columns of it are in memory."""
        block = self._block([(found, length)], prompt.ids.device)
        features = self.features(prompt.images_in(length, end))
        self.read(block, [prompt], [length], features, end)
        if self._kept.is_recurrent:
            return self.attempt(partial(block.states, prompt.keys, is_fork=True))
        return self.attempt(partial(block.prefix, prompt.keys))

    def features(self, images: Iterable[PromptImage]) -> Mapping[str, Tensor]:
        """Return the visual tokens of images by digest, (V, H)."""
        wanted = list(images)
        features: Mapping[str, Tensor] = {}
        if wanted:
            features = self.attempt(lambda: self._vision.encode(wanted))
        return features

    def read(
        self,
        block: KVBlock,
        prompts: Sequence[Prompt],
        starts: Sequence[int],
        features: Mapping[str, Tensor],
        end: int | None = None,
    ) -> Tensor:
        """Prefill the prompts of a block; returns logits of the next tokens, (B, vocabulary).

        Args:
            block: their KV cache.
            prompts: prompt of each row.
            starts: length of each row's prefix.
            features: visual tokens of the images after it.
            end: where to stop; at the end of each prompt if ``None``.
        """
        ends = [len(prompt) if end is None else end for prompt in prompts]
        spans = list(zip(prompts, starts, ends, strict=True))
        ids, mask, position_ids, more = self.attempt(lambda: self._inputs(spans, features))
        return block.forward(ids, mask, position_ids, self.attempt, **more)

    def _inputs(
        self, spans: Sequence[tuple[Prompt, int, int]], features: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Return ids, mask, positions and further arguments of a forward over parts of prompts."""
        rests = [prompt.ids[:, start:stop] for prompt, start, stop in spans]
        places = [prompt.places[..., start:stop] for prompt, start, stop in spans]
        width = max(rest.shape[1] for rest in rests)
        ids, mask, position_ids = (
            torch.cat([padded(each, width) for each in tensors], dim=-2)
            for tensors in (rests, [torch.ones_like(rest) for rest in rests], places)
        )
        images = [image for each, start, stop in spans for image in each.images_in(start, stop)]
        return ids, mask, position_ids, self._vision.given(images, features)

    def read_alone(
        self, block: KVBlock, prompt: Prompt, start: int, features: Mapping[str, Tensor]
    ) -> Tensor:
        """Prefill a prompt that is alone in a block, as `read`, and keep states on the way.

        States change with each token and cannot be cut, so they are kept from before the prompt's
        last tokens, which a prompt that continues this one may write otherwise, and from where
        another message or another question about the same image would go on.
        """
        if self._kept.is_recurrent and self._kept.budget:
            for end in self._stops(prompt, start):
                self.read(block, [prompt], [start], features, end)
                is_fork = end in prompt.forks
                states = self.attempt.spare(partial(block.states, prompt.keys, is_fork=is_fork))
                if states is not None:
                    self._kept.put(states)
                start = end
        return self.read(block, [prompt], [start], features)

    def _stops(self, prompt: Prompt, start: int) -> list[int]:
        """Return the lengths at which states of a prompt are kept, of which `start` are read."""
        latest = len(prompt) - _TAIL
        forks = [each for each in prompt.forks if each - start >= LEAST_SHARED]
        ends = {prompt.whole_images(max(latest, 0)), *forks}
        return sorted(each for each in ends if start < each < len(prompt))
