"""Transcript of a server's answer: events while it is streamed, the generation at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from pydantic import ValidationError

from glm4v_magic.core.conversation import (
    Conversation,
    FinishReason,
    Generation,
    Request,
    Usage,
)
from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.events import Thinking
from glm4v_magic.core.wording import counted
from glm4v_magic.engines.parts import AnswerParts
from glm4v_magic.engines.server.connection import OF_REQUEST, Connection
from glm4v_magic.engines.server.dialogue import Manners
from glm4v_magic.engines.server.logprobs import TokenCollector
from glm4v_magic.engines.server.replies import (
    Chunk,
    Delta,
    TokenCounts,
    error_code,
    error_message,
    joined_halves,
)
from glm4v_magic.engines.thinking import Told

__all__ = ["Transcript"]

_NO_ANSWER = {
    "abort": "gave the answer up",
    "content_filter": "holds the answer back",
    "safety": "holds the answer back",
    "error": "failed in the middle of the answer",
}
_STOPPED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token")
_CUT_OFF = ("length", "max_tokens", "max_output_tokens", "model_length")
"""How servers say that an answer has ended, or is cut off, in lower case."""

_LEAST_TOKENS = 5  # below which packets are measured, and not tokens
_TAGS = 4
"""Number of tokens around the thinking that a server may count: both tags, a newline at each."""
_SURELY = 2
"""How many times the limit a share by characters has to be: code takes more tokens than words."""


class Transcript:
    """Collects a server's answer to one request.

    Args:
        request: request that is answered.
        row: index of the request.
        connection: connection to the server, for messages.
        manners: what the server has shown so far; the lengths of its answers are added to.

    Attributes:
        done: whether the server has sent the end of the stream.
    """

    def __init__(
        self, request: Request, row: int, connection: Connection, manners: Manners
    ) -> None:
        self.done = False
        self._request = request
        self._connection = connection
        self._manners, self._lengths = manners, manners.lengths
        self._has_others = False
        self._start = time.perf_counter()
        self._times: list[float] = []
        self._counts = TokenCounts()
        most = request.sampling.logprobs
        self._tokens = None if most is None else TokenCollector(most)
        self._finish: str | None = None
        self._parts = AnswerParts(row, request.conversation.partial)
        self._thought = 0  # pieces of thinking
        self._choices: dict[str, float] = {}
        self._refusal = ""
        self._tools: list[str] = []
        self._unread: dict[str, None] = {}
        self._halves: dict[str, str] = {}

    def take(self, data: str) -> list[Told]:
        """Read the data of one event and return the resulting events.

        Everything is recorded before any event is yielded, where the caller may stop.

        Raises:
            EngineError: if it is not a piece of an answer, or reports an error.
        """
        chunk = self._chunk(data)
        if chunk.usage is not None:
            self._counts = chunk.usage
        self._has_others |= chunk.has_others
        choice = chunk.choice
        if choice.finish_reason is not None:
            self._finish = choice.finish_reason
        if choice.glm4v_magic is not None:
            self._take_choices(choice.glm4v_magic.choices)
            if self._tokens is not None:
                self._tokens.add_thinking(filter(None, choice.glm4v_magic.thinking_tokens))
        delta = choice.delta or Delta(content=choice.text)
        self._unread |= dict.fromkeys(delta.unread)
        self._refusal += delta.refusal or ""
        self._tools += [each.function.name or "" for each in delta.tool_calls if each.function]
        if self._tokens is not None:
            self._tokens.add(delta.content, delta.thinking, choice.tokens)
        return [*self._think(delta.thinking), *self._say(delta.content)]

    def _take_choices(self, sent: Mapping[str, float]) -> None:
        """Keep the probabilities of the choices, if these are the ones that were asked for."""
        constraint = self._request.constraint
        asked = () if constraint is None else constraint.choices
        if sent.keys() == set(asked):
            self._choices = {each: sent[each] for each in asked}

    def end(self) -> list[Told]:
        """Return events for text that was held back, at the end of the stream."""
        half = self._halves.pop("content", "") and "\ufffd"
        return [*self._say(half), *self._told(self._parts.splitter.end())]

    def _chunk(self, data: str) -> Chunk:
        try:
            chunk = self._read(data)
        except ValidationError:
            raise EngineError(
                f"{self._connection.url} sent an event that is not a JSON object: "
                f"{self._connection.said(data)!r}.",
                "Is it an OpenAI-compatible API?",
            ) from None
        if chunk.error:
            said = self._connection.said(error_message(data)).rstrip(".")
            error = EngineError(
                f"{self._connection.url} stopped with an error: {said or 'it does not say which'}.",
                "Its log may tell more.",
            )
            raise error.of_request() if error_code(data) in OF_REQUEST else error
        return chunk

    def _read(self, data: str) -> Chunk:
        if not self._halves:
            with suppress(ValidationError):
                return Chunk.model_validate_json(data)
        return Chunk.model_validate_json(joined_halves(data, self._halves))

    def _think(self, piece: str | None) -> list[Told]:
        if not piece:
            return []
        self._times.append(time.perf_counter())
        if self._parts.has_text:
            self._parts.add_late_thinking(piece)  # too late to be shown before the answer
            return []
        return self._told(self._parts.splitter.add_thinking(piece))

    def _say(self, piece: str | None) -> list[Told]:
        if not piece:
            return []
        self._times.append(time.perf_counter())
        return self._told(self._parts.splitter.add(piece))

    def _told(self, events: Iterable[Told]) -> list[Told]:
        told = self._parts.told(events, self._times[-1] if self._times else 0.0)
        self._thought += any(isinstance(event, Thinking) for event in told)
        return told

    def finished(self) -> Generation:
        """Return the whole answer.

        Raises:
            EngineError: if the answer is not complete.
        """
        generation = self.generation(self._ending())
        self._lengths.note(self._request.conversation, generation)
        return generation

    def _ending(self) -> FinishReason:
        if self._finish is None and not self.done:
            raise EngineError(
                f"{self._connection.url} ended the stream in the middle of the answer"
                f" (after {counted(len(self._times), 'piece')}).",
                "Its log may tell more; ask again.",
            )
        finish = (self._finish or "").lower()
        if finish in _NO_ANSWER:
            error = EngineError(f"{self._connection.url} {_NO_ANSWER[finish]} ({self._finish}).")
            raise error.of_request() if "holds" in error.what else error
        if not self._parts.has_text:
            self._refuse_silence()
        if finish in _CUT_OFF:
            return "length"
        return "stop" if finish in _STOPPED else "unknown"

    def _refuse_silence(self) -> None:
        """Raise EngineError if the server has sent something else in place of text."""
        said = self._connection.said
        if self._refusal:
            what = f"{self._connection.url} refuses to answer: {said(self._refusal)}"
            raise EngineError(what).of_request()
        if self._tools or self._finish in ("tool_calls", "function_call"):
            names = f" ({said(', '.join(filter(None, self._tools)))})" if any(self._tools) else ""
            raise EngineError(
                f"{self._connection.url} calls a tool{names} in place of an answer.",
                "None was offered: start the server without tools.",
            ).of_request()
        if self._unread:
            raise EngineError(
                f"{self._connection.url} answers with what is not read here: {self._kinds()}."
            ).of_request()

    def _kinds(self) -> str:
        return self._connection.said(", ".join(self._unread))

    def generation(self, ending: FinishReason) -> Generation:
        """Return the generation so far."""
        times, sampling = self._times, self._request.sampling
        self.end()  # of an answer that was interrupted; nobody is told any more
        thinking, text = self._parts.thinking, self._parts.text
        usage = replace(
            _usage(self._counts, self._request.conversation),
            time_to_first_token=times[0] - self._start if times else None,
            decode_seconds=self._decode_seconds(),
        )
        if thinking:
            usage = replace(
                usage,
                thinking_tokens=self._counts.thinking_tokens,
                thinking_seconds=(self._parts.answer_from or times[-1]) - times[0],
            )
        tokens, thinking_tokens = (
            (None, ()) if self._tokens is None else self._tokens.placed(text, thinking)
        )
        return Generation(
            text=text,
            usage=usage,
            finish_reason=ending,
            # Without a seed the server draws its own and does not tell it.
            seed=None if sampling.temperature == 0 else sampling.seed,
            thinking=thinking,
            tokens=tokens,
            thinking_tokens=thinking_tokens,
            choices=self._choices,
            notice=" ".join(filter(None, self._notices(text))),
        )

    def _decode_seconds(self) -> float:
        """Return the seconds from the first piece to the last; 0 if no rate follows from them."""
        times, count = self._times, self._counts.completion_tokens
        if not times or self._choices or (count is not None and count < _LEAST_TOKENS):
            return 0.0
        return times[-1] - times[0]

    def _notices(self, text: str) -> tuple[str, ...]:
        """Return what the server has done otherwise than it was asked to; some are empty."""
        url = self._connection.url
        return (
            self._about_thinking(),
            self._about_images(),
            f"{url} sends further answers, which are left out." if self._has_others else "",
            f"{url} sends further what is not read here: {self._kinds()}." if self._unread else "",
            self._about_ending(),
            f"{url} seems to have begun a new answer in place of carrying the old one on."
            if self._lengths.is_anew(self._request.conversation, text, self._counts.prompt_tokens)
            else "",
        )

    def _about_ending(self) -> str:
        """Say that an answer has ended for a reason that is not told, or not known."""
        url, finish = self._connection.url, self._finish
        if finish is None:
            said = f"{url} does not say why the answer ends here: it may be cut off."
            return said if self.done else ""
        if finish.lower() in (*_STOPPED, *_CUT_OFF):
            return ""
        said = self._connection.said(finish)
        return f"{url} ends the answer with the word {said!r}: it may be cut off."

    def _about_thinking(self) -> str:
        """Say that the server has thought though it was not to, or for longer than it was to."""
        sampling, url = self._request.sampling, self._connection.url
        if sampling.thinking is False and self._parts.thinking:
            return f"{url} has thought, though it was asked not to."
        most = sampling.max_thinking
        if most is None or self._manners.limits_thinking:
            return ""
        if self._least_thought() > most + _TAGS:
            return f"{url} does not limit thinking: it went on beyond {most} tokens."
        likely = self._likely_thought()
        if likely > _SURELY * (most + _TAGS):
            about = f"for about {counted(likely, 'token')}, where {most} were the most"
            return f"{url} seems not to limit thinking: it went on {about}."
        return ""

    def _least_thought(self) -> int:
        """Return how many tokens of thinking there are at least."""
        count = self._counts.thinking_tokens
        if count:  # servers that do not tell thinking apart may count none
            return count
        # A piece is a token or more, and no token spans words: a server may send all in one piece.
        return max(self._thought, len(self._parts.thinking.split()))

    def _likely_thought(self) -> int:
        """Return the thinking's share of the tokens, by characters; 0 if that cannot be told."""
        told, all_tokens = self._counts.thinking_tokens, self._counts.completion_tokens
        thought = len(self._parts.thinking)
        if told or all_tokens is None or not thought:
            return 0
        return all_tokens * thought // (thought + len(self._parts.text))

    def _about_images(self) -> str:
        """Say that the server has read none of the images, if its counts tell so."""
        conversation, counts = self._request.conversation, self._counts
        count, prompt = len(conversation.images), counts.prompt_tokens
        what, url = "the image" if count == 1 else "any of the images", self._connection.url
        if count and counts.image_tokens == 0:
            return f"{url} has not read {what}: is its model for text alone?"
        if counts.image_tokens is not None or prompt is None:
            return ""
        if not self._lengths.images_count_for_nothing(conversation, prompt):
            return ""
        return (
            f"{url} seems not to have read {what}: it counts {counted(prompt, 'token')} for all of "
            "the prompt. Is its model for text alone?"
        )


def _usage(counts: TokenCounts, conversation: Conversation) -> Usage:
    prompt, visual = counts.prompt_tokens, counts.image_tokens
    if not conversation.images:
        visual = 0
    elif prompt is None or (visual is not None and visual > prompt):
        visual = None
    return Usage(
        text_tokens=None if prompt is None else prompt - (visual or 0),
        visual_tokens=visual,
        new_tokens=counts.completion_tokens,
    )
