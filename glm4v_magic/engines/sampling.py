"""Sampling of the next token: the checkpoint's defaults, a call's options, a row's sampler.

transformers' own processors do the arithmetic, in the order in which `generate` applies them
(``GenerationMixin._get_logits_processor``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, create_model
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
from glm4v_magic.outside.lenient import OR_NONE, Count, Flag, Number

__all__ = ["ThinkingBudget", "TokenSampler", "call_config", "checkpoint_config", "pick"]

_GREEDY = 1e-9
"""Temperature up to which decoding is greedy: logits divided by less would overflow float32."""

_TOP_K = 50
"""Number of likeliest tokens that `generate` samples from if neither checkpoint nor call gives one
(transformers.GenerationConfig, `_get_default_generation_params`)."""

_HOTTEST = 1e30
"""Highest temperature that is applied: beyond float32, logits of minus infinity would become NaN,
and far below it all tokens are equally likely."""


def _off_below_zero(value: float) -> int:
    if not value.is_integer():
        raise ValueError("it should be a whole number")
    return max(int(value), 0)  # -1 is how vLLM's configs turn top_k off


_Whole = Annotated[Number, AfterValidator(_off_below_zero)]
_Penalty = Annotated[Number, Field(ge=LEAST_PENALTY, le=1 / LEAST_PENALTY)]


@dataclass(frozen=True, slots=True)
class _Step:
    """A step from logits to the scores that a token is chosen by.

    Attributes:
        maker: transformers' processor, made with the setting's value; it refuses what is out of
            its range.
        off: value that changes nothing.
        type: type of the setting in a generation config.
    """

    maker: Any
    off: float
    type: Any = Number

    @property
    def setting(self) -> Any:
        """Type of the setting, where a value that the processor refuses counts as missing."""

        def suits(value: float) -> float:
            self.made(value)
            return value

        return Annotated[Annotated[self.type, AfterValidator(suits)] | None, OR_NONE]

    def made(self, value: float | None) -> list[Any]:
        """Return the processor, in a list that is empty if it would change nothing."""
        if value is None or value == self.off:
            return []
        # transformers refuses a whole number where it wants a float.
        return [self.maker(float(value) if isinstance(self.off, float) else value)]


# By their names in a generation config, in the order in which `generate` applies them; an option of
# `Sampling` of the same name replaces the checkpoint's value. The first two read the ids so far.
_READERS: Mapping[str, _Step] = {
    "repetition_penalty": _Step(RepetitionPenaltyLogitsProcessor, 1.0, _Penalty),
    "no_repeat_ngram_size": _Step(NoRepeatNGramLogitsProcessor, 0, _Whole),
}
_WARPERS: Mapping[str, _Step] = {
    "temperature": _Step(TemperatureLogitsWarper, 1.0),
    "top_k": _Step(TopKLogitsWarper, 0, _Whole),
    "top_p": _Step(TopPLogitsWarper, 1.0),
    "min_p": _Step(MinPLogitsWarper, 0.0),
    "typical_p": _Step(TypicalLogitsWarper, 1.0),
    "epsilon_cutoff": _Step(EpsilonLogitsWarper, 0.0),
    "eta_cutoff": _Step(EtaLogitsWarper, 0.0),
}
_STEPS = {**_READERS, **_WARPERS}
_GIVEN = tuple(each.name for each in fields(Sampling) if each.name in _STEPS)
"""Steps that are options of a call."""

_LONGEST_NOTE = 100  # characters of what a file says

_OF_CALLS = ("max_length", "max_new_tokens", "use_cache")
"""Settings that are not reported, because the options of a call or the context length replace
them."""

_ABOUT_OUTPUT = (
    "output_attentions", "output_hidden_states", "output_logits", "output_scores",
    "return_dict_in_generate",
)  # fmt: skip
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [] if value is None else [value]


class _Known(BaseModel):
    do_sample: Flag = None
    greedy: Annotated[
        Annotated[Number, Field(ge=0, le=_GREEDY)] | None,
        OR_NONE,
        Field(validation_alias="temperature"),
    ] = None
    eos_token_id: Annotated[list[Count], BeforeValidator(_listed)] = []
    pad_token_id: Count = None


_SETTINGS: Any = {name: (step.setting, None) for name, step in _STEPS.items()}
_Published: Any = create_model("_Published", __base__=_Known, **_SETTINGS)
"""Settings of a generation config that count here; what cannot be used counts as missing."""


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
    named = vars(published)
    read = _Published.model_validate(named)
    ids = {each for each in read.eos_token_id if each is not None and each < vocabulary}
    config = GenerationConfig(
        do_sample=bool(read.do_sample) and read.greedy is None,
        eos_token_id=sorted({*ends, *ids}),
        pad_token_id=read.pad_token_id,
    )
    for name in _STEPS:
        setattr(config, name, getattr(read, name))
    left_out = {name for name, value in named.items() if _matters(name, value)}
    left_out -= {name for name in (*_STEPS, "do_sample") if getattr(read, name) is not None}
    if read.greedy is not None:
        left_out.discard("temperature")
    if len(ids) < len(set(read.eos_token_id)):
        left_out.add("eos_token_id")
    return config, tuple(sorted(_note(name, named[name]) for name in left_out))


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
    for name in _GIVEN:
        value = getattr(sampling, name)
        if value is not None:
            setattr(config, name, value)
    if sampling.temperature is not None:
        config.do_sample = sampling.temperature > _GREEDY
    if not config.do_sample:  # transformers warns about sampling values that greedy ignores
        for name in _WARPERS:
            setattr(config, name, None)
        return config
    if config.temperature is not None:
        config.temperature = min(float(config.temperature), _HOTTEST)
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
        allowed, scores = scores, self._processors(ids, scores)
        # What may not be repeated may be all that the form allows: the form counts.
        if self._guide is not None and self.reads_ids and bool(scores.isneginf().all()):
            scores = allowed
        if self._generator is None:
            return int(scores.argmax(dim=-1))
        probabilities = torch.softmax(scores, dim=-1).to(self._generator.device)
        before = self._generator.get_state()
        try:
            return int(torch.multinomial(probabilities, 1, generator=self._generator))
        except (RuntimeError, MemoryError):  # it may be called again, for the same token
            self._generator.set_state(before)
            raise


def pick(config: GenerationConfig, seed: int | None, scores: Sequence[float]) -> int:
    """Return the index of the text to choose, sampled as if each text were a token.

    Args:
        config: config from `call_config`; penalties on repeated tokens do not count.
        seed: seed of the row; ``None`` for the likeliest.
        scores: log-probability of each text.
    """
    config = copy.deepcopy(config)
    for name in _READERS:
        setattr(config, name, None)
    logits = torch.tensor([scores], dtype=torch.float32)
    return TokenSampler(config, seed, "cpu").choose(torch.empty(0), logits)


def _made(config: GenerationConfig, steps: Mapping[str, _Step]) -> list[Any]:
    return [each for name, step in steps.items() for each in step.made(getattr(config, name))]
