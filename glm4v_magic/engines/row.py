"""A request that a model in this process answers: its decoding parameters and its text so far."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import GenerationConfig

from glm4v_magic.checkpoints.encoding import Encoded, Processor
from glm4v_magic.core.conversation import FinishReason, Generation, Request, Usage
from glm4v_magic.core.events import Text
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.tokens import Token, joined
from glm4v_magic.engines.choosing import Scored, Scoring
from glm4v_magic.engines.decoding import Chosen, RowTerms
from glm4v_magic.engines.grammars import Grammars
from glm4v_magic.engines.parts import AnswerParts
from glm4v_magic.engines.prompts import Prompt
from glm4v_magic.engines.row_form import row_form
from glm4v_magic.engines.sampling import TokenSampler, call_config, pick
from glm4v_magic.engines.stopping import StopTexts
from glm4v_magic.engines.thinking import Told
from glm4v_magic.engines.token_places import placed, spelled, tokens_within
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
    """

    processor: Processor
    defaults: GenerationConfig
    grammars: Grammars
    vocabulary: Vocabulary
    gpus: Sequence[torch.device]


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
        is_kept: whether its KV cache is kept, since a chat may go on from it.
        transcript: what it has generated.
        since: time in seconds at which it was begun; ``None`` while it waits.

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
        self._config = call_config(settings.defaults, request.sampling, limit)
        self._form = row_form(
            request,
            encoded,
            settings.processor,
            settings.grammars,
            settings.vocabulary,
            self._config.eos_token_id,
            limit,
        )
        self._choices = () if request.constraint is None else request.constraint.choices
        self._probabilities: dict[str, float] = {}
        self._seed = _seed(request.sampling) if self._config.do_sample else None
        self._gpus = settings.gpus
        self._logprobs, self.is_kept = request.sampling.logprobs, request.is_kept
        self._vocabulary = settings.vocabulary
        self._chosen: list[Chosen] = []
        self._told = self._length = 0  # tokens and characters of the pieces so far
        self._stops = StopTexts(request.stop)
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
        form = self._form
        sampler = TokenSampler(self._config, self._seed, device, form.guide, form.budget)
        ends = frozenset(form.thinking_ends or self._config.eos_token_id)
        is_kept = self.is_kept or bool(form.thinking_ends)
        return RowTerms(self._config.max_new_tokens, ends, sampler, self._logprobs, is_kept)

    @property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """Ids of each choice if they are to be scored now; empty if the next token is decoded."""
        ends, latest = self._form.thinking_ends, self.transcript.ids[-1:]
        is_due = not ends or (bool(latest) and latest[0] in ends)
        return self._form.texts if is_due and not self._probabilities else ()

    @property
    def read(self) -> Prompt:
        """Its prompt, followed by the ids that it has generated."""
        return self.prompt.extended(self.transcript.ids)

    @property
    def ending(self) -> FinishReason | None:
        """Finish reason; ``None`` while the row is open."""
        return "stop" if self._stops.is_hit else self.transcript.ending

    def take(self, token: Chosen, at: float) -> list[Told]:
        """Append the next token; returns the events to yield."""
        told = self._stops.take(self._said(token, at))
        return told if self.transcript.ending is None else told + self._stops.end()

    def _said(self, token: Chosen, at: float) -> list[Told]:
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
        return Scoring(self._config.eos_token_id, self._logprobs)

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
            # Choices are scored at once: their tokens have no rate.
            decode_seconds=times[-1] - times[0] if times and not self._probabilities else 0.0,
            peak_bytes={str(gpu): torch.cuda.max_memory_allocated(gpu) for gpu in self._gpus},
        )
        text, thinking = self._stops.cut(self.transcript.text), ""
        if self._parts is not None:
            # The answer was interrupted; these events are not streamed any more.
            self._parts.told(self._parts.splitter.end(), self._latest)
            text, thinking = self._stops.cut(self._parts.text), self._parts.thinking
            usage = self._with_thinking(usage, self._parts) if thinking else usage
        tokens, thinking_tokens = self._tokens(self._chosen, text, thinking)
        return Generation(
            text,
            usage,
            self.ending or "interrupted",
            self._seed,
            thinking=thinking,
            seen=self.encoded.seen,
            tokens=tokens,
            thinking_tokens=thinking_tokens,
            choices=self._probabilities,
            ids=tuple(self.transcript.ids),
        )

    def _with_thinking(self, usage: Usage, parts: AnswerParts) -> Usage:
        times = self.transcript.times
        end = len(times) if parts.answer_from is None else int(parts.answer_from)
        seconds = times[min(end, len(times) - 1)] - times[0]
        before = self.transcript.ids[:end]
        written = [self._vocabulary.text_and_bytes(each)[1] for each in before]
        count = tokens_within(parts.thinking, *spelled(written))
        return replace(usage, thinking_tokens=count, thinking_seconds=seconds)


def _seed(sampling: Sampling) -> int:
    # A seed from the operating system: drawing one from torch would change the user's random state.
    return sampling.seed if sampling.seed is not None else secrets.randbelow(2**31)
