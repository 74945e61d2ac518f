"""Messages, conversations, requests and answers: plain data, no torch, no IPython."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from glm4v_magic.core.boxes import Box, Mark, Point
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.options import Format, Sampling
from glm4v_magic.core.tokens import Token

if TYPE_CHECKING:
    from glm4v_magic.core.image import SeenImage, SourcedImage
    from glm4v_magic.core.plan import Plan
    from glm4v_magic.core.video import Media, SourcedVideo

__all__ = [
    "ENDED",
    "PARTIAL",
    "Answer",
    "Conversation",
    "FinishReason",
    "Generation",
    "Lend",
    "Message",
    "Origin",
    "Request",
    "Role",
    "Usage",
]

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "interrupted", "failed", "unknown"]
PARTIAL: tuple[FinishReason, ...] = ("interrupted", "failed")
"""Finish reasons of answers of which only the beginning is there."""

ENDED: tuple[FinishReason, ...] = ("stop", "unknown")
"""Finish reasons of answers that the model ended, as far as anybody knows."""

Lend = Callable[[], AbstractContextManager[Any]]
"""Gives the engine of an answer within a context that keeps others from using it; ``None`` if it is
no longer loaded."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, the text, and the images and videos that come before the text.

    Attributes:
        role: speaker of the turn.
        text: text of the turn.
        images: images before the text, in order.
        complete: false for an answer that was interrupted or cut off, and can be continued.
        thinking: what the model wrote before its answer. Later prompts leave it out.
        tokens: as in `Answer`.
        thinking_tokens: as in `Answer`.
        videos: videos before the text.
        written: as in `Answer`; what later prompts hold in place of `text`.
        before_videos: number of images that stand before the videos; ``None`` for all of them.
        form: form of an incomplete answer, as options of `AnswerForm` and as JSON has them; empty
            for Markdown.
    """

    role: Role
    text: str
    images: tuple[SourcedImage, ...] = ()
    complete: bool = True
    thinking: str = ""
    tokens: tuple[Token, ...] | None = None
    thinking_tokens: tuple[Token, ...] = ()
    videos: tuple[SourcedVideo, ...] = ()
    written: str = ""
    before_videos: int | None = None
    form: Mapping[str, Any] = field(default_factory=dict)

    @property
    def media(self) -> tuple[Media, ...]:
        """Images and videos in the order in which they stand before the text."""
        images = self.images
        before = len(images) if self.before_videos is None else self.before_videos
        return (*images[:before], *self.videos, *images[before:])


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns so far, oldest first."""

    messages: tuple[Message, ...] = ()

    def add(self, message: Message) -> Conversation:
        """Return a new conversation with `message` appended."""
        return replace(self, messages=(*self.messages, message))

    @property
    def images(self) -> tuple[SourcedImage, ...]:
        """All images of the conversation, in order."""
        return tuple(image for message in self.messages for image in message.images)

    @property
    def media(self) -> tuple[Media, ...]:
        """All images and videos of the conversation, in order."""
        return tuple(each for message in self.messages for each in message.media)

    @property
    def videos(self) -> tuple[SourcedVideo, ...]:
        """All videos of the conversation, in order."""
        return tuple(video for message in self.messages for video in message.videos)

    @property
    def partial(self) -> Message | None:
        """The last message if it is an incomplete answer, else ``None``."""
        last = self.messages[-1] if self.messages else None
        return last if last is not None and not last.complete else None

    @property
    def unfinished(self) -> str | None:
        """Text of `partial`; ``None`` if there is no incomplete answer."""
        return None if self.partial is None else self.partial.text

    @property
    def question(self) -> str:
        """Text of the latest question; empty if there is none."""
        asked = [message.text for message in self.messages if message.role == "user"]
        return asked[-1] if asked else ""

    def with_answer(
        self,
        text: str,
        *,
        complete: bool,
        thinking: str = "",
        tokens: tuple[Token, ...] | None = None,
        thinking_tokens: tuple[Token, ...] = (),
        written: str = "",
        form: Mapping[str, Any] | None = None,
    ) -> Conversation:
        """Return the conversation with this answer at its end; it replaces an incomplete one."""
        before = self if self.partial is None else self.without_last_answer()
        answer = Message(
            "assistant",
            text,
            (),
            complete,
            thinking,
            tokens,
            thinking_tokens,
            written=written,
            form=form or {},
        )
        return before.add(answer)

    def as_written(self) -> Conversation:
        """Return the conversation for a prompt: answers as the model wrote them, tags included."""
        return replace(self, messages=tuple(map(_as_written, self.messages)))

    def with_system(self, text: str) -> Conversation:
        """Return the conversation with this system message; an empty `text` removes it."""
        rest = tuple(message for message in self.messages if message.role != "system")
        return replace(self, messages=(*((Message("system", text),) if text else ()), *rest))

    def without_last_answer(self) -> Conversation:
        """Return the conversation up to its latest question."""
        messages = self.messages
        while messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        return replace(self, messages=messages)


def _as_written(message: Message) -> Message:
    if not message.written:
        return message
    return replace(message, text=message.written, written="", tokens=None)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt for an engine, with its sampling parameters.

    The conversation ends with the user's question, or with an incomplete answer to continue.

    Attributes:
        conversation: the turns so far.
        sampling: sampling options.
        constraint: what the text of the answer must be; ``None`` for any text.
        stop: texts at which the answer ends; they are not part of it.
        is_kept: whether a chat may go on from it, so that its KV cache is kept beyond its end.
    """

    conversation: Conversation
    sampling: Sampling = field(default_factory=Sampling)
    constraint: Constraint | None = None
    stop: tuple[str, ...] = ()
    is_kept: bool = False


_LEAST_SECONDS = 0.05  # of decoding, for a rate


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, seconds and memory of a call.

    What a server does not report is ``None``, never a guess.

    Attributes:
        text_tokens: text tokens of the prompt, special tokens included. Where `visual_tokens` is
            ``None``, the tokens of images are among them.
        visual_tokens: tokens of the prompt that stand for images, the learned begin and end vectors
            included.
        new_tokens: generated tokens, the stop token included.
        time_to_first_token: seconds from the call to the first token; ``None`` if none came.
        decode_seconds: seconds from the first token to the last; 0 for choices, which are scored at
            once.
        peak_bytes: peak of allocated bytes on each GPU during the call; empty without GPUs.
        thinking_tokens: tokens of `new_tokens` that were thinking, without its tags and the line
            ends around it, as `Sampling.max_thinking` counts; ``None`` if unknown.
        thinking_seconds: seconds from the first token to the first token of the answer itself.
    """

    text_tokens: int | None
    visual_tokens: int | None
    new_tokens: int | None
    time_to_first_token: float | None = None
    decode_seconds: float = 0.0
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    thinking_tokens: int | None = None
    thinking_seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        """Return the usage of two calls in sequence: sums, and the higher peak of each GPU."""
        gpus = {*self.peak_bytes, *other.peak_bytes}
        return Usage(
            text_tokens=_sum(self.text_tokens, other.text_tokens),
            visual_tokens=_sum(self.visual_tokens, other.visual_tokens),
            new_tokens=_sum(self.new_tokens, other.new_tokens),
            time_to_first_token=self.time_to_first_token,
            decode_seconds=self.decode_seconds + other.decode_seconds,
            peak_bytes={
                gpu: max(self.peak_bytes.get(gpu, 0), other.peak_bytes.get(gpu, 0))
                for gpu in sorted(gpus)
            },
            thinking_tokens=_sum(self.thinking_tokens, other.thinking_tokens),
            thinking_seconds=self.thinking_seconds + other.thinking_seconds,
        )

    @property
    def prompt_tokens(self) -> int | None:
        """Length of the prompt as the decoder sees it: text and visual tokens."""
        return None if self.text_tokens is None else self.text_tokens + (self.visual_tokens or 0)

    @property
    def tokens_per_second(self) -> float | None:
        """Decode speed, the first token (prefill) excluded.

        ``None`` below two tokens, and of less than 50 ms, which say more of the clock.
        """
        if self.new_tokens is None or self.new_tokens < 2 or self.decode_seconds < _LEAST_SECONDS:
            return None
        return (self.new_tokens - 1) / self.decode_seconds


def _sum(one: int | None, other: int | None) -> int | None:
    """Add two counts; ``None`` (unknown) plus anything is ``None``."""
    return None if one is None or other is None else one + other


@dataclass(frozen=True, slots=True)
class Generation:
    """What an engine generated for one request.

    Attributes:
        text: the answer without special tokens and without surrounding whitespace, but with the
            tags around boxes. For a continued answer only the new part, with the whitespace before
            it.
        usage: tokens, seconds and memory.
        finish_reason: ``stop`` (the model ended), ``length`` (`Sampling.max_tokens` reached),
            ``interrupted`` (by the user), ``failed`` (an error broke it off) or ``unknown`` (a
            server did not tell).
        seed: the seed that was used; ``None`` when decoding was greedy.
        thinking: what the model wrote before the answer, stripped in the same way; empty for most
            models.
        seen: what the model saw of each image of the conversation; empty if a server does not tell.
        tokens: tokens of `text`; ``None`` unless `Sampling.logprobs` asks for them, and empty if a
            server does not send them.
        thinking_tokens: tokens of `thinking`.
        choices: probability of each choice, in their order; empty without choices, and if a server
            does not tell.
        notice: parts of the request that the engine did not follow; usually empty.
        ids: all generated ids; empty if a server generated them.
    """

    text: str
    usage: Usage
    finish_reason: FinishReason
    seed: int | None = None
    thinking: str = ""
    seen: tuple[SeenImage, ...] = ()
    tokens: tuple[Token, ...] | None = None
    thinking_tokens: tuple[Token, ...] = ()
    choices: Mapping[str, float] = field(default_factory=dict)
    notice: str = ""
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """How an answer was made: what it takes to run the model on it once more.

    Copies of an answer in other processes know of no engine.

    Attributes:
        request: what the engine was asked.
        ids: all ids that it generated, those of thinking and the end of the turn included.
        lend: gives the engine.
    """

    request: Request
    ids: tuple[int, ...]
    lend: Lend = nullcontext

    def __reduce__(self) -> tuple[Any, ...]:
        return Origin, (self.request, self.ids)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with everything that is needed to understand, repeat and quote it.

    Attributes:
        text: the model's answer, without the tags around boxes.
        prompt: the question, expressions expanded.
        images: images of the conversation, in order.
        model: name of the checkpoint.
        format: format that was asked for.
        value: the answer parsed: the object for ``json``, the code for ``code``; ``None`` for other
            formats, and where the answer does not follow its format.
        corrected: what was wrong with a first answer, if the model was asked to correct it;
            `usage` is then the sum of both.
        plan: plan that the model was loaded with; ``None`` on the CPU or with a given device map.
        notice: what a reader must know about the model (the demo model says that it is one), and
            which parts of the request were not followed.
        thinking: what the model wrote before the answer; empty for a model that does not think.
        seen: what the model saw of each image; empty if a server does not tell.
        usage: tokens, seconds and memory.
        finish_reason: ``stop`` (the model ended), ``length`` (`Sampling.max_tokens` reached),
            ``interrupted`` (by the user), ``failed`` (an error broke it off) or ``unknown`` (a
            server did not tell).
        seed: the seed that was used; ``None`` when decoding was greedy.
        tokens: tokens of `text` with their log-probabilities; ``None`` unless `Sampling.logprobs`
            asked for them, and empty if a server did not send them. An answer that was carried on
            has the tokens of those parts that asked for them.
        thinking_tokens: likewise of `thinking`.
        choices: as in `Generation`.
        boxes: boxes that the answer names, in its order; see `calls.boxes.marks`.
        points: points, likewise.
        boxes_fault: what was wrong with the numbers of boxes and points; empty if nothing was.
        written: the answer as the model wrote it, if it wrote tags around boxes; otherwise empty.
        videos: videos of the conversation, in order, with the frames that the model saw.
        origin: how it was made; ``None`` for rows of a map and answers from files.
    """

    text: str
    prompt: str
    model: str
    usage: Usage
    finish_reason: FinishReason
    seed: int | None = None
    notice: str = ""
    images: tuple[SourcedImage, ...] = ()
    format: Format = "markdown"
    value: Any = None
    corrected: str = ""
    plan: Plan | None = None
    thinking: str = ""
    seen: tuple[SeenImage, ...] = ()
    tokens: tuple[Token, ...] | None = None
    thinking_tokens: tuple[Token, ...] = ()
    choices: Mapping[str, float] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    boxes_fault: str = ""
    written: str = ""
    videos: tuple[SourcedVideo, ...] = ()
    origin: Origin | None = field(default=None, compare=False, repr=False)

    @property
    def marks(self) -> tuple[Mark, ...]:
        """All boxes, then all points; they are numbered in this order on the images, from 1."""
        return (*self.boxes, *self.points)

    def __str__(self) -> str:
        return self.text
