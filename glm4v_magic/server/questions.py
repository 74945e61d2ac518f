"""Turns a request of the protocol into a request for a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glm4v_magic.calls.forms import form_of
from glm4v_magic.calls.prompt import require_text
from glm4v_magic.calls.refusals import refuse_thinking, refuse_too_many, refuse_video
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Conversation, Message, Request, Role
from glm4v_magic.core.errors import CheckpointError, ConversationError, ImageError, OptionError
from glm4v_magic.core.options import MOST_IMAGES, Effort, Sampling, check, of_requests
from glm4v_magic.core.video import SourcedVideo
from glm4v_magic.core.wording import brief, printable
from glm4v_magic.engines import grammars
from glm4v_magic.engines.thinking import CLOSE, OPEN
from glm4v_magic.images import SourcedImage, to_image
from glm4v_magic.images.video import from_data
from glm4v_magic.outside import checked
from glm4v_magic.server.protocol import ChatRequest, ResponseFormat, SentMessage, StructuredOutputs

__all__ = ["Question", "read_question"]

_SAMPLING = {each.name for each in of_requests()}
_OTHER_NAMES = {
    "max_completion_tokens": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "thinking_token_budget": "max_thinking",
}
_TOP_K_OFF = (-1, 0)
"""What vLLM and its clients send for no limit on the number of tokens to sample from."""

_ALL_TOKENS = 2**31 - 1

_SEEDS = 2**63
"""Number of seeds here; OpenAI's begin at minus as much."""

_LIKELIEST = 1e-6
"""A nucleus of the likeliest token alone, which OpenAI's 0 means."""

_EFFORTS: Mapping[str, Effort | None] = {"minimal": "low", "medium": None, "xhigh": "max"}
"""OpenAI's levels that have another name here; medium is its default, as a model's own is here."""

_NEWER = ("max_completion_tokens",)  # names that win over the deprecated ones


@dataclass(frozen=True, slots=True)
class Question:
    """What a client asks for.

    Attributes:
        requests: requests for the session, one for each answer that is wanted.
        stream: whether the answer is sent in pieces.
        usage: whether the pieces end with the usage; a whole answer always has it.
    """

    requests: tuple[Request, ...]
    stream: bool
    usage: bool


def read_question(
    content: object,
    model: str,
    *,
    max_images: int | None = None,
    thinks: bool | None = None,
    efforts: Sequence[str] = (),
    takes_video: bool = False,
) -> Question:
    """Read a chat completion.

    Images and clips come before the text of their message, wherever they stand in it: the model was
    trained that way.

    Args:
        content: parsed JSON.
        model: name of the model that is served.
        max_images: maximum number of images in a conversation; ``None`` for no limit.
        thinks: whether the model can think before it answers; ``None`` if unknown.
        efforts: levels of reasoning effort that it offers.
        takes_video: whether it takes video; if not, no clip is decoded.

    Raises:
        ConversationError: if a message has more images than a question may have.
        InputError: if something in it is missing, malformed, or not possible here.
        CheckpointError: if another model is asked for.
    """
    given = content if isinstance(content, dict) else {}
    _refuse_unknown(given)
    asked = checked(ChatRequest, content, "The request", OptionError)
    if asked.model is not None and asked.model != model:
        raise CheckpointError(f"There is no model {asked.model!r} here.", f"This is {model}.")
    for number, message in enumerate(asked.messages, start=1):  # before any is decoded
        given_here = len(message.urls())
        if given_here > MOST_IMAGES:
            raise ConversationError(
                f"Message {number} has {given_here:,} images, and a question may have "
                f"{MOST_IMAGES}.",
                "Ask about fewer images at once.",
            )
    if any(message.clips() for message in asked.messages):
        refuse_video(model, takes_video)
    options = asked.stream_options
    request = Request(
        _conversation(asked, thinks=bool(thinks)),
        _sampling(asked, given),
        _constraint(asked),
        tuple(asked.stop),
        is_kept=True,
    )
    refuse_thinking(request, model, thinks, efforts)
    refuse_too_many(request.conversation, model, max_images)
    return Question(
        _each(request, asked.n or 1),
        stream=bool(asked.stream),
        usage=options is not None and bool(options.include_usage),
    )


def _each(request: Request, count: int) -> tuple[Request, ...]:
    """Return a request for each of `count` answers; with a seed, each has its own."""
    sampling = request.sampling
    if sampling.seed is None:
        return (request,) * count
    seeds = [(sampling.seed + number) % _SEEDS for number in range(count)]
    return tuple(replace(request, sampling=replace(sampling, seed=seed)) for seed in seeds)


def _refuse_unknown(given: Mapping[str, object]) -> None:
    known = {*ChatRequest.model_fields, *_SAMPLING}
    unknown = sorted(name for name in given.keys() - known if given[name] is not None)
    if unknown:
        raise OptionError(
            f"This server does not know {', '.join(map(repr, unknown))}.",
            f"It takes {', '.join(sorted(known))}.",
        )


def _sampling(asked: ChatRequest, given: Mapping[str, Any]) -> Sampling:
    values = {name: given.get(name) for name in _SAMPLING}
    sent = {"logprobs": "top_logprobs"}  # how the client calls an option
    for other, name in _OTHER_NAMES.items():
        is_wanted = values[name] is None or other in _NEWER
        if is_wanted and getattr(asked, other) is not None:
            values[name], sent[name] = getattr(asked, other), other
    _translate(values)
    told = {name: value for name, value in values.items() if value is not None}
    if asked.logprobs:
        told["logprobs"] = asked.top_logprobs or 0
    elif asked.top_logprobs:
        raise OptionError("top_logprobs is for requests with logprobs, which this one lacks.")
    if asked.reasoning_effort == "none":
        told["thinking"] = False
    elif asked.reasoning_effort is not None:
        told["effort"] = _EFFORTS.get(asked.reasoning_effort, asked.reasoning_effort)
    template = asked.chat_template_kwargs
    if template is not None and template.enable_thinking is not None:
        told["thinking"] = template.enable_thinking
    for name, value in told.items():
        check(name, value, sent.get(name))
    return Sampling(**told)


def _translate(values: dict[str, Any]) -> None:
    """Bring values that other servers take, and that are not in range here, into range."""
    if type(values["top_k"]) is int and values["top_k"] in _TOP_K_OFF:
        values["top_k"] = _ALL_TOKENS
    seed = values["seed"]
    if seed is not None and (type(seed) is not int or not -_SEEDS <= seed < _SEEDS):
        raise OptionError(
            f"seed is {brief(seed)}, but must be a whole number from -2**63 to 2**63 - 1."
        )
    if seed is not None and seed < 0:
        values["seed"] += _SEEDS
    if type(values["top_p"]) in (int, float) and values["top_p"] == 0:
        values["top_p"] = _LIKELIEST


def _constraint(asked: ChatRequest) -> Constraint | None:
    """Return the constraint on the text of the answer; ``None`` for any text.

    Raises:
        OptionError: if it cannot be followed; the server does not ask for corrections.
    """
    vllm = asked.structured_outputs or StructuredOutputs.model_validate({})
    given = [
        {"schema": _schema(asked.response_format)},
        {"schema": vllm.json_schema},
        {"schema": asked.guided_json},
        {"choices": vllm.choice},
        {"choices": asked.guided_choice},
        {"regex": vllm.regex},
        {"regex": asked.guided_regex},
    ]
    told = [each for each in given if None not in each.values()]
    if not told:
        return None
    if len(told) > 1:
        raise OptionError("The request says more than once what the answer must be.")
    constraint = form_of(**told[0]).constraint
    if constraint is not None and not constraint.choices and not grammars.is_available():
        raise OptionError(grammars.MISSING, grammars.INSTALL)
    grammars.require(constraint)
    form = asked.response_format
    if constraint is not None and form is not None and form.is_strict:
        _require_all_of(constraint)
    return constraint


def _require_all_of(constraint: Constraint) -> None:
    """Raise OptionError unless all of a schema is enforced."""
    keywords = grammars.left_out(constraint)
    if keywords:
        raise OptionError(
            f"The schema says {printable(', '.join(keywords))}, which cannot be followed while an "
            "answer is written, and strict asks for that.",
            "Leave it out, or send strict as false and check the answer.",
        )


def _schema(asked: ResponseFormat | None) -> object:
    if asked is None or asked.type == "text":
        return None
    return {"type": "object"} if asked.json_schema is None else asked.json_schema.json_schema


def _conversation(asked: ChatRequest, *, thinks: bool) -> Conversation:
    if not asked.messages:
        raise ConversationError("The request has no messages.")
    goes_on = bool(asked.continue_final_message)
    messages = [
        _message(message, number, goes_on and number == len(asked.messages))
        for number, message in enumerate(asked.messages, start=1)
    ]
    if goes_on and thinks:
        messages[-1] = _thinking_apart(messages[-1])
    if messages[-1].role != ("assistant" if goes_on else "user"):
        raise ConversationError(
            f"The last message is of the role {messages[-1].role!r}.",
            "It must be the user's question, or with continue_final_message an answer to go on "
            "with.",
        )
    return Conversation(tuple(messages))


def _message(given: SentMessage, number: int, unfinished: bool) -> Message:
    role: Role = "system" if given.role == "developer" else given.role
    urls = given.urls()
    images = tuple(
        _image(url, f"image {f'{at} ' if len(urls) > 1 else ''}of message {number}")
        for at, url in enumerate(urls, 1)
    )
    videos = tuple(_video(url, f"clip of message {number}") for url in given.clips())
    text = "\n".join(given.texts())
    if role != "assistant":
        text = text.strip() if images or videos else require_text(text)
    return Message(
        role,
        text,
        images,
        complete=not unfinished,
        videos=videos,
        before_videos=given.before_clips,
    )


def _thinking_apart(begun: Message) -> Message:
    """Return the beginning of an answer with the thinking taken out of its text."""
    if not begun.text.startswith(OPEN):
        return begun
    thinking, _, text = begun.text.removeprefix(OPEN).partition(CLOSE)
    return replace(begun, thinking=thinking, text=text)


def _image(url: str | None, source: str) -> SourcedImage:
    return replace(to_image(_data_uri(url, source, "image"), source), source=source)


def _video(url: str | None, source: str) -> SourcedVideo:
    return from_data(_data_uri(url, source, "clip"), source)


def _data_uri(url: str | None, source: str, what: str) -> str:
    if url is None or url[:5].lower() != "data:":
        raise ImageError(
            f"The {source} is not a data: URI.",
            f"This server fetches nothing; send the {what} itself.",
        )
    return url
