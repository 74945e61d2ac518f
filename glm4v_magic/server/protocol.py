"""OpenAI's protocol as pydantic models: what a client sends, and what it gets.

`ChatRequest` is the table of all fields of a request. Sampling options are not in it: they come
from `core.options` and have the same names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from glm4v_magic.core.tokens import Alternative, Token
from glm4v_magic.engines.server import OwnAnswer, OwnFacts

__all__ = [
    "REASONING_EFFORTS",
    "ChatRequest",
    "Choice",
    "Chunk",
    "ChunkChoice",
    "Completion",
    "CompletionMessage",
    "CompletionUsage",
    "Delta",
    "ErrorBody",
    "ErrorContent",
    "Ignored",
    "Image",
    "ImageTokens",
    "Logprobs",
    "Model",
    "Models",
    "Only",
    "Part",
    "ReasoningTokens",
    "ScoredToken",
    "SentMessage",
    "TokenLogprob",
]


REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""Levels of OpenAI's protocol, and `EFFORTS`."""

MOST_CHOICES = 128
"""Most answers to one request."""


@dataclass(frozen=True, eq=False)  # equal ones would be one type: 0 == False
class Only:
    """A field that is accepted only if it asks for nothing: left out, null, or one of `values`.

    Many clients send such a field at its default.
    """

    values: tuple[object, ...]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return the schema with which pydantic checks the field."""
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the JSON Schema of the field."""
        return {"enum": [*self.values, None]}

    def _check(self, value: Any) -> Any:
        if value is not None and not self.values:
            raise PydanticCustomError("unsupported", "this server cannot do that; leave it out")
        if value is not None and value not in self.values:
            raise PydanticCustomError(
                "unsupported",
                "this server takes only {values}",
                {"values": " or ".join(map(json.dumps, self.values))},
            )
        return value


Ignored: TypeAlias = Annotated[Any, "ignored"]
"""A field that does not affect the answer; any value is accepted."""

StopText: TypeAlias = Annotated[str, Field(min_length=1)]
Nothing: TypeAlias = Annotated[Any, Only(([],))]
Never: TypeAlias = Annotated[Any, Only(())]
Zero: TypeAlias = Annotated[Any, Only((0,))]
Switch: TypeAlias = Annotated[bool | None, Field(strict=True)]


def _as_parts(content: Any) -> Any:
    """Return content as a list of parts: text alone is one part, and ``None`` is none."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return _text_or_list(content)


def _as_list(given: Any) -> Any:
    if given is None:
        return []
    return [given] if isinstance(given, str) else _text_or_list(given)


def _text_or_list(given: Any) -> Any:
    if not isinstance(given, list):
        raise PydanticCustomError("unreadable", "it should be a string or a list")
    return given


def _as_linked(given: Any) -> Any:
    return {"url": given} if isinstance(given, str) else given


class Image(BaseModel):
    """An image of a message.

    Attributes:
        url: the image itself, as a ``data:`` URI.
        detail: resolution to look at it with; accepted and ignored.
    """

    url: str | None = None
    detail: Ignored = None


class Video(BaseModel):
    """A clip of a message.

    Attributes:
        url: the clip itself, as a ``data:`` URI.
    """

    model_config = ConfigDict(extra="forbid")  # such as fps, which would change what is seen

    url: str | None = None


def _refuse_other_media(kind: Any) -> Any:
    if kind in ("video", "audio_url", "input_audio", "file"):
        raise PydanticCustomError(
            "unsupported",
            "this server takes text, images and clips (video_url), and no {kind}",
            {"kind": kind},
        )
    return kind


class Part(BaseModel):
    """A part of a message."""

    type: Annotated[
        Literal["text", "refusal", "image_url", "video_url"], BeforeValidator(_refuse_other_media)
    ]
    text: str | None = None
    refusal: str | None = None
    image_url: Annotated[
        Image | None, BeforeValidator(_as_linked, json_schema_input_type=Image | str | None)
    ] = None
    video_url: Annotated[
        Video | None, BeforeValidator(_as_linked, json_schema_input_type=Video | str | None)
    ] = None

    @model_validator(mode="after")
    def _has_what_it_says(self) -> Part:
        if self.type in ("text", "refusal") and self.words is None:
            raise PydanticCustomError(
                "unreadable", "it is of the type {type}, but has no {type}", {"type": self.type}
            )
        return self

    @property
    def words(self) -> str | None:
        """Its text, or the refusal that it is; ``None`` for an image or a clip."""
        return {"text": self.text, "refusal": self.refusal}.get(self.type)


class SentMessage(BaseModel):
    """A message of the conversation.

    Other keys, such as ``name``, or those that a client copies from an answer, are ignored.

    Attributes:
        role: speaker; ``developer`` is another name for ``system``.
        content: text, or parts, or nothing.
        refusal: what an assistant said in place of an answer.
        image: an image in the form that zai-org has published for GLM-4V.
        tool_calls: accepted only if empty; no model here calls tools.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Part], BeforeValidator(_as_parts, json_schema_input_type=list[Part] | str | None)
    ] = []
    refusal: str | None = None
    image: str | None = None
    tool_calls: Nothing = None

    @model_validator(mode="after")
    def _refuses_as_assistant(self) -> SentMessage:
        if self.role != "assistant" and any(part.type == "refusal" for part in self.content):
            raise PydanticCustomError("unreadable", "only an assistant's message has a refusal")
        return self

    def texts(self) -> list[str]:
        """Return its texts, in order, a refusal included."""
        said = [*(part.words for part in self.content), self.refusal]
        return [each for each in said if each is not None]

    def urls(self) -> list[str | None]:
        """Return the URLs of its images, in order; ``None`` for an image without one."""
        images = [part.image_url for part in self.content if part.type == "image_url"]
        urls = [None if image is None else image.url for image in images]
        return urls if self.image is None else [*urls, self.image]

    def clips(self) -> list[str | None]:
        """Return the URLs of its clips, in order; ``None`` for a clip without one."""
        clips = [part.video_url for part in self.content if part.type == "video_url"]
        return [None if clip is None else clip.url for clip in clips]

    @property
    def before_clips(self) -> int | None:
        """Number of images that stand before its clips; ``None`` without clips."""
        kinds = [part.type for part in self.content if part.words is None]
        return kinds.index("video_url") if "video_url" in kinds else None


class StreamOptions(BaseModel):
    """What a stream sends beside the answer."""

    include_usage: Switch = None


class TemplateOptions(BaseModel):
    """Options that other servers hand to the chat template: whether and how much to think."""

    model_config = ConfigDict(extra="forbid")

    enable_thinking: Switch = None


class JsonSchema(BaseModel):
    """A named JSON Schema.

    Attributes:
        json_schema: the schema; without one, any JSON.
        strict: whether a schema that cannot be enforced in full is refused.
        name: ignored, like the other fields.
    """

    json_schema: Any = Field({}, alias="schema")
    name: Ignored = None
    description: Ignored = None
    strict: Switch = None


class ResponseFormat(BaseModel):
    """The form of an answer: any text, a JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def is_strict(self) -> bool:
        """Whether a schema that cannot be enforced in full is refused."""
        return self.json_schema is not None and bool(self.json_schema.strict)

    @model_validator(mode="after")
    def _has_what_it_says(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise PydanticCustomError("unreadable", "it is of the type json_schema, but has none")
        return self


class StructuredOutputs(BaseModel):
    """The form of an answer as vLLM has it; exactly one field is given."""

    model_config = ConfigDict(extra="forbid")

    json_schema: Any = Field(None, alias="json")
    choice: list[str] | None = None
    regex: str | None = None


class ChatRequest(BaseModel):
    """The body of ``POST /v1/chat/completions``: every field that this server takes.

    A field that is null counts as left out. Beside these there are the sampling options of
    `core.options`, by their names there.
    """

    # what is asked
    messages: list[SentMessage]
    model: str | None = None
    stream: Switch = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Any = None  # newer name of max_tokens
    repeat_penalty: Any = None  # llama.cpp's name of repetition_penalty
    thinking_token_budget: Any = None  # vLLM's name of max_thinking
    continue_final_message: Switch = None
    chat_template_kwargs: TemplateOptions | None = None
    logprobs: Switch = None
    top_logprobs: Annotated[int | None, Field(strict=True)] = None

    n: Annotated[int | None, Field(strict=True, ge=1, le=MOST_CHOICES)] = None
    stop: Annotated[
        list[StopText],
        BeforeValidator(_as_list, json_schema_input_type=list[StopText] | StopText | None),
        Field(max_length=16),
    ] = []

    # what the answer must be
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Any = None  # vLLM's older names of the same
    guided_choice: list[str] | None = None
    guided_regex: str | None = None

    # what changes nothing in an answer
    add_generation_prompt: Ignored = None
    metadata: Ignored = None
    parallel_tool_calls: Ignored = None
    prediction: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    user: Ignored = None

    # what this server cannot do
    tools: Nothing = None
    functions: Nothing = None
    tool_choice: Annotated[Any, Only(("none", "auto"))] = None
    function_call: Annotated[Any, Only(("none", "auto"))] = None
    modalities: Annotated[Any, Only((["text"],))] = None
    audio: Never = None
    moderation: Never = None
    web_search_options: Never = None
    verbosity: Annotated[Any, Only(("medium",))] = None
    reasoning_effort: Annotated[Any, Only(REASONING_EFFORTS)] = None
    logit_bias: Annotated[Any, Only(({},))] = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None


class ImageTokens(BaseModel):
    """Which tokens of the prompt are images."""

    image_tokens: int | None


class ReasoningTokens(BaseModel):
    """Which tokens of the answer are thinking."""

    reasoning_tokens: int


class CompletionUsage(BaseModel):
    """Tokens of the prompt and the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: ImageTokens
    completion_tokens_details: ReasoningTokens


class ScoredToken(BaseModel):
    """A token and its log-probability; ``bytes`` is ``null`` for a special token."""

    token: str
    logprob: float
    bytes: list[int] | None

    @classmethod
    def of(cls, token: Token | Alternative) -> ScoredToken:
        """Return a token as the protocol has it."""
        return cls(token=token.text, logprob=token.logprob, bytes=list(token.utf8) or None)


class TokenLogprob(ScoredToken):
    """A token of the answer with the likeliest ones at its place."""

    top_logprobs: list[ScoredToken]


class Logprobs(BaseModel):
    """Tokens of an answer, or of a piece of it."""

    content: list[TokenLogprob]

    @classmethod
    def of(cls, tokens: Sequence[Token] | None) -> Logprobs | None:
        """Return the tokens that are in the text; ``None`` if nobody asked for them."""
        if tokens is None:
            return None
        content = [
            TokenLogprob(
                **dict(ScoredToken.of(token)),
                top_logprobs=[ScoredToken.of(each) for each in token.alternatives],
            )
            for token in tokens
            if token.start < token.end
        ]
        return cls(content=content)


class _Sparse(BaseModel):
    """A model whose fields are left out of the JSON where they are ``None``."""

    @model_serializer(mode="wrap")
    def _without_none(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}


class CompletionMessage(_Sparse):
    """A whole answer, and the thinking before it."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str | None = None


class _WithOwn(BaseModel):
    """Adds a field of our own to the protocol's; it is left out if it is ``None``."""

    glm4v_magic: OwnAnswer | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if self.glm4v_magic is None:
            del written["glm4v_magic"]
        return written


class Choice(_WithOwn):
    """A whole answer, and why it ended."""

    index: int = 0
    message: CompletionMessage
    logprobs: Logprobs | None = None
    finish_reason: str


class Completion(BaseModel):
    """An answer in one piece."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage


class Delta(_Sparse):
    """The new part of an answer; the first one has the role."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None


class ChunkChoice(_WithOwn):
    """A piece of an answer; the last one says why it ended."""

    index: int = 0
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class Chunk(_Sparse):
    """An event of a streamed answer; the one with the usage has no choice."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None


class Model(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "glm4v_magic"
    max_model_len: int | None
    glm4v_magic: OwnFacts


class Models(BaseModel):
    """The list of models: just one."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorContent(BaseModel):
    """What went wrong."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    code: int


class ErrorBody(BaseModel):
    """Body of every error reply."""

    error: ErrorContent
