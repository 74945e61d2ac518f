"""A request that a model in this process answers: its decoding parameters and its text so far."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import GenerationConfig

from glm4v_magic.checkpoints.encoding import Encoded, Processor
from glm4v_magic.core.conversation import Generation, Request, Usage
from glm4v_magic.core.errors import ConversationError, OptionError
from glm4v_magic.core.events import Text
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.tokens import Token, joined
from glm4v_magic.engines.choosing import Scored, Scoring
from glm4v_magic.engines.decoding import Chosen, RowTerms
from glm4v_magic.engines.grammars import Grammars, Guide
from glm4v_magic.engines.parts import AnswerParts
from glm4v_magic.engines.prompts import Prompt
from glm4v_magic.engines.sampling import ThinkingBudget, TokenSampler, call_config, pick
from glm4v_magic.engines.thinking import CLOSE, OPEN, Told
from glm4v_magic.engines.token_places import placed, spelled
from glm4v_magic.engines.transcript import Transcript
from glm4v_magic.engines.vocabulary import Vocabulary

__all__ = ["Row", "RowSettings"]


@dataclass(frozen=True, slots=True)
class RowSettings:
    """What all rows of an engine have in common.

    Attributes:
        processor: processor of the model.
        defaults: config from `sampling.checkpoint_config`.
        grammars: grammars of constraints, compiled for the tokenizer.
        vocabulary: tokens of the model one by one.
        gpus: GPUs that the model is on.
        at_once: maximum number of texts that are scored in a batch.
    """

    processor: Processor
    defaults: GenerationConfig
    grammars: Grammars
    vocabulary: Vocabulary
    gpus: Sequence[torch.device]
    at_once: int


class Row:
    """A request that is being answered.

    Args:
        settings: settings that all rows of the engine have in common.
        number: number of the request in its call, from 0.
        request: request to answer.
        encoded: its prompt, as the processor returned it.
        prompt: its prompt for the decode loop.
        room: number of tokens that fit after the prompt.

    Attributes:
        number, request, encoded, prompt: as given.
        limit: maximum number of generated tokens.
        transcript: what it has generated.
        since: time in seconds at which it was begun; ``None`` while it waits.
        texts: ids of each choice; empty if the answer is decoded.

    Raises:
        OptionError: if its constraint cannot be followed.
        ConversationError: if the answer to carry on violates the constraint already.
    """

    def __init__(
        self,
        settings: RowSettings,
        number: int,
        request: Request,
        encoded: Encoded,
        prompt: Prompt,
        room: int,
    ) -> None:
        self.number, self.request = number, request
        self.encoded, self.prompt = encoded, prompt
        self.since: float | None = None
        self.limit = limit = min(request.sampling.max_tokens, room)
        self.texts = _texts(request, encoded, limit, settings.processor)
        self._choices = () if request.constraint is None else request.constraint.choices
        self._guide = None if self.texts else _guide(request, settings, limit)
        self._budget = None if self.texts else _budget(request, encoded, settings)
        self._at_once = settings.at_once
        self._probabilities: dict[str, float] = {}
        self._config = call_config(settings.defaults, request.sampling, limit)
        self._seed = _seed(request.sampling) if self._config.do_sample else None
        self._gpus = settings.gpus
        self._logprobs = request.sampling.logprobs
        self._vocabulary = settings.vocabulary
        self._chosen: list[Chosen] = []
        self._told = self._length = 0  # tokens and characters of the pieces so far
        # A model that is not known to think may write the tags all the same.
        thinks = settings.processor.thinks or bool(settings.processor.told_token_ids)
        partial = request.conversation.partial
        self._parts: AnswerParts | None = None
        if thinks:
            self._parts = AnswerParts(number, partial, inside=encoded.inside_thinking)
        self.transcript = Transcript(
            settings.processor.tokenizer,
            limit,
            self._config.eos_token_id,
            told=settings.processor.told_token_ids,
            carries_on=thinks or bool(request.conversation.unfinished),
        )

    @property
    def pixel_bytes(self) -> int:
        """Size of its images."""
        sizes = [each.image.image.size for each in self.encoded.images]
        return sum(3 * width * height for width, height in sizes)

    def terms(self, device: str | torch.device) -> RowTerms:
        """Return its decoding parameters, sampling on `device`."""
        sampler = TokenSampler(self._config, self._seed, device, self._guide, self._budget)
        ends = frozenset(self._config.eos_token_id)
        return RowTerms(self._config.max_new_tokens, ends, sampler, self._logprobs)

    def take(self, token: Chosen, at: float) -> list[Told]:
        """Append the next token; returns the events to yield."""
        self._chosen.append(token)
        piece = self.transcript.take(token.id, at)
        if self._parts is not None:
            return self._taken_apart(piece, self._parts)
        if not piece:
            return []
        tokens, _ = self._tokens(self._chosen[self._told :], piece)
        told = Text(piece, self.number, joined((), tokens, self._length) or ())
        self._told, self._length = len(self._chosen), self._length + len(piece)
        return [told]

    def _taken_apart(self, piece: str, parts: AnswerParts) -> list[Told]:
        """Return the events of a piece that may be thinking; the end of the row flushes them."""
        told = parts.told(parts.splitter.add(piece), self._latest) if piece else []
        if self.transcript.ending is not None:
            told += parts.told(parts.splitter.end(), self._latest)
        return told

    @property
    def _latest(self) -> int:
        return len(self.transcript.ids) - 1

    def _tokens(
        self, chosen: Sequence[Chosen], text: str, thinking: str = ""
    ) -> tuple[tuple[Token, ...] | None, tuple[Token, ...]]:
        """Return the tokens of answer and thinking with their places; ``None`` if not asked for."""
        if self._logprobs is None:
            return None, ()
        tokens = self._vocabulary.tokens(chosen)
        raw, spans = spelled(each.utf8 for each in tokens)
        return placed(tokens, spans, raw, text, thinking)

    @property
    def scoring(self) -> Scoring:
        """How its choices are scored."""
        return Scoring(self._config.eos_token_id, self._logprobs, self._at_once)

    def choose(self, texts: Sequence[Scored]) -> Sequence[Chosen]:
        """Choose one of the choices; returns its tokens."""
        scores = [each.logprob for each in texts]
        shares = torch.tensor(scores, dtype=torch.float64).softmax(dim=0).tolist()
        self._probabilities = dict(zip(self._choices, shares, strict=True))
        return texts[pick(self._config, self._seed, scores)].tokens

    def generation(self) -> Generation:
        """Return the text so far and its usage."""
        visual = self.encoded.visual_tokens
        times = self.transcript.times
        since = times[0] if self.since is None and times else self.since
        usage = Usage(
            text_tokens=len(self.encoded.ids) - visual,
            visual_tokens=visual,
            new_tokens=len(self.transcript.ids),
            time_to_first_token=times[0] - since if times and since is not None else None,
            decode_seconds=times[-1] - times[0] if times else 0.0,
            peak_bytes={str(gpu): torch.cuda.max_memory_allocated(gpu) for gpu in self._gpus},
        )
        text, thinking = self.transcript.text, ""
        if self._parts is not None:
            # The answer was interrupted; these events are not streamed any more.
            self._parts.told(self._parts.splitter.end(), self._latest)
            text, thinking = self._parts.text, self._parts.thinking
            usage = self._with_thinking(usage, self._parts) if thinking else usage
        tokens, thinking_tokens = self._tokens(self._chosen, text, thinking)
        return Generation(
            text,
            usage,
            self.transcript.ending or "interrupted",
            self._seed,
            thinking=thinking,
            seen=self.encoded.seen,
            tokens=tokens,
            thinking_tokens=thinking_tokens,
            choices=self._probabilities,
        )

    def _with_thinking(self, usage: Usage, parts: AnswerParts) -> Usage:
        times = self.transcript.times
        count = len(times) if parts.answer_from is None else int(parts.answer_from)
        seconds = times[min(count, len(times) - 1)] - times[0]
        return replace(usage, thinking_tokens=count, thinking_seconds=seconds)


def _texts(
    request: Request, encoded: Encoded, limit: int, processor: Processor
) -> tuple[tuple[int, ...], ...]:
    """Return the ids of each choice as the model would write it; empty without choices.

    A model that thinks writes it without thinking.
    """
    if request.constraint is None or not request.constraint.choices:
        return ()
    if request.conversation.unfinished is not None:
        raise ConversationError(
            "An answer that was begun cannot be carried on as one of the choices.",
            "Ask again instead.",
        )
    choices = request.constraint.choices
    opening = processor.opening_ids
    if _thinks(request, processor):
        tags: list[int] = processor.tokenizer.convert_tokens_to_ids([OPEN, CLOSE])
        opening = tags[encoded.inside_thinking :]
    texts = [(*opening, *processor.text_ids(each)) for each in choices]
    longest = max(range(len(texts)), key=lambda number: len(texts[number]))
    needed = len(texts[longest]) + 1
    if needed > limit:
        raise OptionError(
            f"The choice {choices[longest]!r} takes {needed} tokens with its end, but the answer "
            f"may have {limit}."
        )
    return tuple(texts)


def _guide(request: Request, settings: RowSettings, limit: int) -> Guide | None:
    """Return the guide to the row's constraint; ``None`` if any token may follow."""
    if request.constraint is None:
        return None
    processor, begun = settings.processor, request.conversation.unfinished
    if not begun and _thinks(request, processor):
        after: int = processor.tokenizer.convert_tokens_to_ids(CLOSE)
        return settings.grammars.guide(request.constraint, after=after, limit=limit)
    opening = processor.opening_ids if begun is None else ()
    return settings.grammars.guide(request.constraint, begun or "", opening, limit=limit)


def _budget(request: Request, encoded: Encoded, settings: RowSettings) -> ThinkingBudget | None:
    """Return the budget of the row's thinking; ``None`` if there is no limit, or no thinking."""
    most, begun = request.sampling.max_thinking, request.conversation.partial
    if most is None or not _thinks(request, settings.processor) or (begun and begun.text):
        return None
    processor = settings.processor
    opening, closing = processor.tokenizer.convert_tokens_to_ids([OPEN, CLOSE])
    thought = 0 if encoded.inside_thinking else None
    if begun is not None and begun.thinking:
        thought = len(processor.text_ids(begun.thinking))
    return ThinkingBudget(most, opening, closing, settings.vocabulary.is_blank, thought)


def _thinks(request: Request, processor: Processor) -> bool:
    return processor.thinks and request.sampling.thinking is not False


def _seed(sampling: Sampling) -> int:
    # A seed from the operating system: drawing one from torch would change the user's random state.
    return sampling.seed if sampling.seed is not None else secrets.randbelow(2**31)
