"""Sampling of the next token: the checkpoint's defaults, a call's options, a row's sampler.

transformers' own processors do the arithmetic, in the order in which `generate` applies them
(``GenerationMixin._get_logits_processor``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from glm4v_magic.core.options import LEAST_PENALTY, Sampling
from glm4v_magic.core.wording import printable
from glm4v_magic.engines.grammars import Guide

__all__ = ["ThinkingBudget", "TokenSampler", "call_config", "checkpoint_config", "pick"]

_GREEDY = 1e-9
"""Temperature up to which decoding is greedy: logits divided by less would overflow float32."""

_TOP_K = 50
"""Number of likeliest tokens that `generate` samples from if neither checkpoint nor call says it
(transformers.GenerationConfig, `_get_default_generation_params`)."""

# Name, processor, and the value that changes nothing. The first two read the ids so far.
_READERS: tuple[tuple[str, Any, float], ...] = (
    ("repetition_penalty", RepetitionPenaltyLogitsProcessor, 1.0),
    ("no_repeat_ngram_size", NoRepeatNGramLogitsProcessor, 0),
)
_WARPERS: tuple[tuple[str, Any, float], ...] = (
    ("temperature", TemperatureLogitsWarper, 1.0),
    ("top_k", TopKLogitsWarper, 0),
    ("top_p", TopPLogitsWarper, 1.0),
    ("min_p", MinPLogitsWarper, 0.0),
    ("typical_p", TypicalLogitsWarper, 1.0),
    ("epsilon_cutoff", EpsilonLogitsWarper, 0.0),
    ("eta_cutoff", EtaLogitsWarper, 0.0),
)
_HOTTEST = 1e30
"""Highest temperature that is applied: beyond float32, logits of minus infinity would become NaN,
and far below it all tokens are equally likely."""

_LONGEST_NOTE = 100  # characters of what a file says
_WHOLE_NUMBERS = ("no_repeat_ngram_size", "top_k")

_OF_CALLS = ("max_length", "max_new_tokens", "use_cache")
"""Settings that are not reported, because the options of a call or the context length replace
them."""

_ABOUT_OUTPUT = (
    "output_attentions", "output_hidden_states", "output_logits", "output_scores",
    "return_dict_in_generate",
)  # fmt: skip
_MAKERS = {each: (maker, off) for each, maker, off in (*_READERS, *_WARPERS)}
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def checkpoint_config(
    published: GenerationConfig, ends: Iterable[int], vocabulary: int
) -> tuple[GenerationConfig, tuple[str, ...]]:
    """Read the settings of a checkpoint's generation config that decoding here supports.

    Args:
        published: config as in ``generation_config.json``, with any value of any type.
        ends: ids that end a turn of this kind of model, whether the file names them or not.
        vocabulary: number of ids.

    Returns:
        The config that calls start from, and the settings that are left out, as ``name=value``.
    """
    config = GenerationConfig(do_sample=published.do_sample is True, eos_token_id=sorted(ends))
    left_out = []
    for name, value in vars(published).items():
        if name == "eos_token_id":
            named = value if isinstance(value, list) else [value]
            ids = [each for each in named if _is_id(each) and each < vocabulary]
            config.eos_token_id = sorted({*config.eos_token_id, *ids})
            if value is not None and len(ids) < len(named):
                left_out.append(_note(name, value))
        elif name == "pad_token_id":
            config.pad_token_id = value if _is_id(value) else None
        elif name == "temperature" and _is_number(value) and 0 <= value <= _GREEDY:
            config.do_sample = False
        elif not _take(config, name, value) and _matters(name, value):
            left_out.append(_note(name, value))
    return config, tuple(sorted(left_out))


def _is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a value is a number within the range of a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _take(config: GenerationConfig, name: str, value: object) -> bool:
    """Set a value of the file if it is supported; returns whether it is."""
    if name not in _MAKERS:
        return name == "do_sample" and isinstance(value, bool)
    if not _is_number(value):
        return False
    if name == "repetition_penalty" and not LEAST_PENALTY <= value <= 1 / LEAST_PENALTY:
        return False
    maker, off = _MAKERS[name]
    if name in _WHOLE_NUMBERS:
        if value != int(value):
            return False
        value = max(int(value), 0)  # -1 is how vLLM's configs turn top_k off
    else:
        value = float(value)
    try:
        if value != off:
            maker(value)
    except (TypeError, ValueError):
        return False
    setattr(config, name, value)
    return True


def _note(name: str, value: object) -> str:
    text = " ".join(printable(f"{name}={value!r}").split())
    return text if len(text) <= _LONGEST_NOTE else text[: _LONGEST_NOTE - 1] + "…"


def _matters(name: str, value: object) -> bool:
    """Tell whether ignoring a setting would change answers."""
    is_about_file = name.startswith("_") or name == "transformers_version"
    if is_about_file or name in (*_OF_CALLS, *_ABOUT_OUTPUT, *_IDS):
        return False
    return value is not None and value != _NEUTRAL.get(name)


_NEUTRAL: dict[str, object] = {
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
    "length_penalty": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "remove_invalid_values": False,
    "renormalize_logits": False,
}


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def call_config(base: GenerationConfig, sampling: Sampling, room: int) -> GenerationConfig:
    """Return a generation config: `sampling` on top of the checkpoint's defaults.

    Args:
        base: config from `checkpoint_config`; not changed.
        sampling: sampling options of the call.
        room: number of tokens that fit after the prompt.
    """
    config = copy.deepcopy(base)
    config.max_length = None
    config.max_new_tokens = min(sampling.max_tokens, room)
    if sampling.temperature is not None:
        config.do_sample = sampling.temperature > _GREEDY
        config.temperature = float(sampling.temperature) if config.do_sample else None
    for name in ("top_p", "top_k", "min_p", "repetition_penalty"):
        value = getattr(sampling, name)
        if value is not None:
            setattr(config, name, value)
    if not config.do_sample:  # transformers warns about sampling values that greedy ignores
        for name, _, _ in _WARPERS:
            setattr(config, name, None)
        return config
    if config.temperature is not None:
        config.temperature = min(config.temperature, _HOTTEST)
    if config.top_k is None:
        config.top_k = _TOP_K
    return config


class ThinkingBudget:
    """Counts the tokens of a row's thinking, and tells when one of its tags must follow.

    Thinking is what follows an opening tag with which the row begins, up to the closing one; the
    tags do not count.

    Args:
        most: maximum number of thinking tokens.
        opening: id of the opening tag.
        closing: id of the closing tag.
        is_blank: tells whether an id writes nothing but whitespace, as may come before the tag.
        thought: number of thinking tokens in the prompt, which ends within the thinking; ``None``
            if the row has yet to begin it.
        ends: ids that end a turn; within the thinking, the closing tag replaces them.
        opens: whether a row that has yet to begin its thinking must do so at once.
    """

    def __init__(
        self,
        most: int,
        opening: int,
        closing: int,
        is_blank: Callable[[int], bool],
        thought: int | None = None,
        ends: Collection[int] = (),
        *,
        opens: bool = False,
    ) -> None:
        self._most, self._opening, self._closing = most, opening, closing
        self._is_blank, self._thought = is_blank, thought
        self._ends, self._opens = ends, opens
        self.is_over = False

    @property
    def due(self) -> int | None:
        """Id of the tag that must come next; ``None`` if any token may."""
        if self.is_over:
            return None
        if self._thought is None:
            return self._opening if self._opens else None
        return self._closing if self._thought >= self._most else None

    def replaced(self, token: int) -> int:
        """Return the id to write for the one that was chosen."""
        is_thinking = self._thought is not None and not self.is_over
        return self._closing if is_thinking and token in self._ends else token

    def take(self, token: int) -> None:
        """Advance by the id that was chosen."""
        if self.is_over:
            return
        if self._thought is None:
            if token == self._opening:
                self._thought = 0
            else:
                self.is_over = not self._is_blank(token)
        elif token == self._closing:
            self.is_over = True
        elif token != self._opening:
            self._thought += 1


class TokenSampler:
    """Samples the tokens of one row as `generate` does for a single row.

    A row that is sampled draws from a generator of its own, and repeats are counted in its own ids:
    its answer does not depend on the rows beside it.

    Args:
        config: config from `call_config`.
        seed: seed of the row; ``None`` for greedy decoding.
        device: device of the random generator.
        guide: tells which tokens are allowed; ``None`` allows all.
        budget: ends the row's thinking; ``None`` for no limit.
    """

    def __init__(
        self,
        config: GenerationConfig,
        seed: int | None,
        device: str | torch.device,
        guide: Guide | None = None,
        budget: ThinkingBudget | None = None,
    ) -> None:
        self._guide, self._budget = guide, budget
        self._processors = LogitsProcessorList(_made(config, _READERS))
        self.reads_ids = bool(self._processors)
        self._generator: torch.Generator | None = None
        if seed is not None:
            self._processors += _made(config, _WARPERS)
            self._generator = torch.Generator(device).manual_seed(seed)

    @property
    def is_plain(self) -> bool:
        """Whether decoding is greedy and independent of earlier tokens."""
        is_greedy = self._generator is None and not self._processors
        has_thought = self._budget is None or self._budget.is_over
        return is_greedy and self._guide is None and has_thought

    def choose(self, ids: Tensor, scores: Tensor) -> int:
        """Return the next id.

        Args:
            ids: prompt and answer so far without padding, (1, L); read only if `reads_ids`.
            scores: logits of the next token in float32, (1, vocabulary).
        """
        token = None if self._budget is None else self._budget.due
        if token is None:
            token = self._chosen(ids, self._allowed(scores))
            token = token if self._budget is None else self._budget.replaced(token)
        for each in (self._guide, self._budget):
            if each is not None:
                each.take(token)
        return token

    def _allowed(self, scores: Tensor) -> Tensor:
        """Return the scores with minus infinity for ids that may not come next."""
        if self._guide is None:
            return scores
        allowed = torch.from_numpy(self._guide.allowed()).to(scores.device)
        return scores.masked_fill(~allowed, -math.inf)

    def _chosen(self, ids: Tensor, scores: Tensor) -> int:
        scores = self._processors(ids, scores)
        if self._generator is None:
            return int(scores.argmax(dim=-1))
        probabilities = torch.softmax(scores, dim=-1).to(self._generator.device)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def pick(config: GenerationConfig, seed: int | None, scores: Sequence[float]) -> int:
    """Return the index of the text to choose, sampled as if each text were a token.

    Args:
        config: config from `call_config`; penalties on repeated tokens do not count.
        seed: seed of the row; ``None`` for the likeliest.
        scores: log-probability of each text.
    """
    config = copy.deepcopy(config)
    for name, _, _ in _READERS:
        setattr(config, name, None)
    logits = torch.tensor([scores], dtype=torch.float32)
    return TokenSampler(config, seed, "cpu").choose(torch.empty(0), logits)


def _made(config: GenerationConfig, table: tuple[tuple[str, Any, float], ...]) -> list[Any]:
    found = ((maker, getattr(config, name), off) for name, maker, off in table)
    return [maker(value) for maker, value, off in found if value is not None and value != off]
