"""Several rows in one call of transformers' `generate`, each as if it were alone.

A batch is padded on the left. Each row ends by itself, draws from a generator of its own, and
repeats are counted in its own ids: what a row says does not depend on the rows beside it, but for
rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

__all__ = ["RowCollector", "processors_for"]

_TOP_K = 50
"""What `generate` samples from if neither the checkpoint nor the call says it
(transformers.GenerationConfig, `_get_default_generation_params`)."""


class RowCollector(StoppingCriteria):
    """Collects the ids of each row, and ends a row at a stop token or at its own limit.

    As a stopping criterion, `generate` asks it after each step which rows are done. What a row
    that is done gets after that is padding.

    Args:
        limits: of each row, in tokens.
        ends: ids that end a row.
        on_finished: called with the number of a row that is done.
        on_step: called after each step.
    """

    def __init__(
        self,
        limits: Sequence[int],
        ends: Sequence[int],
        on_finished: Callable[[int], None],
        on_step: Callable[[], None],
    ) -> None:
        self.ids: list[list[int]] = [[] for _ in limits]
        self.times: list[list[float]] = [[] for _ in limits]
        self.open = set(range(len(limits)))
        self._limits = limits
        self._ends = frozenset(ends)
        self._on_finished = on_finished
        self._on_step = on_step

    def is_complete(self, row: int) -> bool:
        """Say whether a row has ended by itself or at its limit."""
        ids = self.ids[row]
        return bool(ids) and (ids[-1] in self._ends or len(ids) >= self._limits[row])

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        """Take the latest id of each row, and say which rows are done: (B, L) -> (B,) bool."""
        latest = input_ids[:, -1].tolist()
        now = time.perf_counter()
        for row in self.open:
            self.ids[row].append(latest[row])
            self.times[row].append(now)
        for row in sorted(self.open):
            if self.is_complete(row):
                self._on_finished(row)
                self.open.discard(row)
        self._on_step()
        done = [row not in self.open for row in range(len(self.ids))]
        return torch.tensor(done, device=input_ids.device)


class _RowPenalty(LogitsProcessor):
    """A repetition penalty that does not count padding, which is a stop token, as said."""

    def __init__(self, penalty: float, padding: Sequence[int]) -> None:
        self._penalise = RepetitionPenaltyLogitsProcessor(penalty=penalty)
        self._padding = padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = zip(input_ids.split(1), scores.split(1), self._padding, strict=True)
        return torch.cat([self._penalise(ids[:, skip:], row) for ids, row, skip in rows])


class _RowSampler(LogitsProcessor):
    """Draws each row's token from the row's own generator, and leaves only that one possible.

    It draws as `generate` does for one row, so a row with a seed says what a single question with
    this seed is answered.
    """

    def __init__(self, seeds: Sequence[int], device: str | torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        only = torch.full_like(scores, float("-inf"))
        probabilities = torch.softmax(scores, dim=-1)
        for row, generator in enumerate(self._generators):
            drawn = torch.multinomial(
                probabilities[row : row + 1].to(generator.device), 1, generator=generator
            )
            only[row, int(drawn)] = 0.0
        return only


def processors_for(
    config: GenerationConfig,
    padding: Sequence[int],
    seeds: Sequence[int] | None,
    device: str | torch.device,
) -> LogitsProcessorList:
    """Take over from `config` what a batch must do row by row; it then decodes greedily.

    Args:
        config: of the call, changed in place.
        padding: ids to the left of each row.
        seeds: of each row; ``None`` for greedy decoding.
        device: of the scores.
    """
    processors = LogitsProcessorList()
    if config.repetition_penalty is not None and config.repetition_penalty != 1.0:
        processors.append(_RowPenalty(config.repetition_penalty, padding))
    if seeds is not None:
        # In transformers' own order (GenerationMixin._get_logits_processor).
        if config.temperature is not None and config.temperature != 1.0:
            processors.append(TemperatureLogitsWarper(config.temperature))
        top_k = _TOP_K if config.top_k is None else config.top_k
        if top_k:
            processors.append(TopKLogitsWarper(top_k))
        if config.top_p is not None and config.top_p < 1.0:
            processors.append(TopPLogitsWarper(config.top_p))
        if config.min_p is not None:
            processors.append(MinPLogitsWarper(config.min_p))
        processors.append(_RowSampler(seeds, device))
    config.do_sample = False
    config.repetition_penalty = config.temperature = None
    config.top_p = config.top_k = config.min_p = None
    return processors
