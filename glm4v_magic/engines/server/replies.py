"""Replies of servers, as pydantic models.

They are lenient, because servers differ: unknown keys are ignored, and a value of the wrong type
counts as missing.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from glm4v_magic.core.wording import json_text
from glm4v_magic.outside.lenient import OR_EMPTY, OR_NO_ENTRIES, OR_NONE, Count, Flag, Words

__all__ = [
    "Chunk",
    "Delta",
    "ModelEntry",
    "ModelList",
    "OwnAnswer",
    "OwnFacts",
    "ScoredToken",
    "TokenCounts",
    "TokenLogprob",
    "as_error",
    "error_code",
    "error_message",
    "is_answer",
    "joined_halves",
]

_UNREAD = ("audio", "image", "images", "video")
"""What some models answer with beside or in place of text."""

_IN_TEXT = ("content", "reasoning_content", "reasoning")

Byte = Annotated[int, Field(strict=True, ge=0, le=255)]
Size = Annotated[int, Field(strict=True, ge=1)]
_LARGEST_LOGPROB = 0.01  # 0, and what rounding may add
Probability = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]


class OwnFacts(BaseModel):
    """Facts about a model that only our own server sends; fields as in `EngineInfo`."""

    notice: Words = ""
    max_images: Count = None
    image_size: Annotated[tuple[Size, Size] | None, OR_NONE] = None
    visual_tokens: Count = None
    largest_image: Annotated[Size | None, OR_NONE] = None
    thinks: Flag = None
    efforts: Annotated[list[Words], OR_EMPTY] = []


class ModelEntry(BaseModel):
    """A model in the list of a server."""

    id: str
    owned_by: Annotated[str | None, OR_NONE] = None
    max_model_len: Count = None
    glm4v_magic: Annotated[OwnFacts | None, OR_NONE] = None


class ModelList(BaseModel):
    """``GET /models``. Entries without a name are left out."""

    data: list[Annotated[ModelEntry | None, OR_NONE]]

    def by_name(self) -> dict[str, ModelEntry]:
        """Return the entries by the names of their models."""
        return {entry.id: entry for entry in self.data if entry is not None}


class _PromptDetails(BaseModel):
    image_tokens: Count = None


class _CompletionDetails(BaseModel):
    reasoning_tokens: Count = None


class TokenCounts(BaseModel):
    """``usage``: the server's token counts."""

    prompt_tokens: Count = None
    completion_tokens: Count = None
    prompt_tokens_details: Annotated[_PromptDetails | None, OR_NONE] = None
    completion_tokens_details: Annotated[_CompletionDetails | None, OR_NONE] = None
    reasoning_tokens: Count = None

    @property
    def image_tokens(self) -> int | None:
        """Tokens of the prompt that stand for images."""
        details = self.prompt_tokens_details
        return None if details is None else details.image_tokens

    @property
    def thinking_tokens(self) -> int | None:
        """Generated tokens that are thinking: OpenAI's place for them, or SGLang's."""
        details = self.completion_tokens_details
        told = None if details is None else details.reasoning_tokens
        return self.reasoning_tokens if told is None else told


class _Part(BaseModel):
    text: Words = None


def _as_text(content: Any) -> Any:
    """Return the text of content that is a list of parts."""
    if not isinstance(content, list):
        return content
    parts = [_Part.model_validate(each) for each in content if isinstance(each, dict)]
    return "".join(each.text or "" for each in parts)


class _Function(BaseModel):
    name: Words = None


class _ToolCall(BaseModel):
    function: Annotated[_Function | None, OR_NONE] = None


class Delta(BaseModel):
    """The next piece of an answer, or a whole one."""

    content: Annotated[Words, BeforeValidator(_as_text)] = None
    refusal: Words = None
    tool_calls: Annotated[list[_ToolCall], OR_EMPTY] = []
    reasoning_content: Words = None
    reasoning: Words = None
    unread: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _note_unread(cls, sent: Any) -> Any:
        """Note what it holds that is no text, and is not read."""
        if not isinstance(sent, dict):
            return sent
        content = sent.get("content")
        unread = [name for name in _UNREAD if sent.get(name)]
        if isinstance(content, list):
            kinds = [each.get("type") for each in content if isinstance(each, dict)]
            unread += [str(kind) for kind in kinds if kind not in (None, "text", "output_text")]
        elif content is not None and not isinstance(content, str):
            unread.append(f"content that is {_KINDS.get(type(content), 'a number')}")
        return {**sent, "unread": unread}

    @property
    def thinking(self) -> str | None:
        """Piece of thinking, under either name, if the server separates it from the text."""
        return self.reasoning_content or self.reasoning


_KINDS = {dict: "an object", bool: "true or false"}


class ScoredToken(BaseModel):
    """A token, its log-probability, and its bytes if the server tells them."""

    token: Annotated[str, StringConstraints(strict=True)]
    logprob: Annotated[float, Field(allow_inf_nan=False, le=_LARGEST_LOGPROB)]
    bytes: Annotated[list[Byte] | None, OR_NONE] = None


class TokenLogprob(ScoredToken):
    """A token of the answer with the likeliest ones at its place."""

    top_logprobs: Annotated[list[Annotated[ScoredToken | None, OR_NONE]], OR_EMPTY] = []


class OwnAnswer(BaseModel):
    """Part of a reply that only our own server sends; fields as in `Generation`."""

    choices: Annotated[dict[str, Probability], OR_NO_ENTRIES] = {}
    thinking_tokens: Annotated[list[Annotated[TokenLogprob | None, OR_NONE]], OR_EMPTY] = []

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value}


class _Logprobs(BaseModel):
    content: Annotated[list[Annotated[TokenLogprob | None, OR_NONE]], OR_EMPTY] = []


class _Choice(BaseModel):
    index: Count = None
    delta: Annotated[
        Delta | None, OR_NONE, Field(validation_alias=AliasChoices("delta", "message"))
    ] = None
    text: Words = None
    logprobs: Annotated[_Logprobs | None, OR_NONE] = None
    finish_reason: Words = None
    glm4v_magic: Annotated[OwnAnswer | None, OR_NONE] = None

    @property
    def tokens(self) -> list[TokenLogprob]:
        """Tokens of the piece with their log-probabilities, if the server sends them."""
        content = [] if self.logprobs is None else self.logprobs.content
        return [each for each in content if each is not None]


class Chunk(BaseModel):
    """One event of a streamed answer."""

    choices: Annotated[list[Annotated[_Choice | None, OR_NONE]] | None, OR_NONE] = None
    usage: Annotated[TokenCounts | None, OR_NONE] = None
    error: Any = None

    @property
    def choice(self) -> _Choice:
        """The only choice; an empty one in a chunk without choices, such as that with the usage."""
        own = [each for each in self.choices or () if each is not None and not each.index]
        return own[0] if own else _Choice()

    @property
    def has_others(self) -> bool:
        """Whether there are choices beyond the one that was asked for."""
        return any(each is not None and each.index for each in self.choices or ())


def is_answer(body: bytes) -> bool:
    """Tell whether the JSON of a body is an answer, or a piece of one."""
    try:
        return bool(Chunk.model_validate_json(joined_halves(body.decode(), {})).choices)
    except ValueError:
        return False


def joined_halves(data: str, halves: dict[str, str]) -> str:
    """Return the data of an event with whole characters: some servers send them by halves.

    A half, as UTF-16 has of characters beyond U+FFFF, is no JSON for most programs.

    Args:
        data: the data.
        halves: halves at the end of the pieces before, by the name of the field; replaced by
            those at the end of this one.

    Returns:
        The data, a half without its other half as U+FFFD; as it is if it is not JSON.
    """
    if "\\u" not in data.lower() and not halves:
        return data
    try:
        chunk = json.loads(data)
        choice = chunk["choices"][0]
        delta = choice["delta" if "delta" in choice else "message"]
        for name in _IN_TEXT:
            piece = delta.get(name)
            if isinstance(piece, str) and piece:
                piece = halves.pop(name, "") + piece
                cut = len(piece) - ("\ud800" <= piece[-1] < "\udc00")
                delta[name] = piece[:cut]
                if piece[cut:]:
                    halves[name] = piece[cut:]
        return json_text(chunk)
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return data


class _Coded(BaseModel):
    code: Annotated[int | None, OR_NONE] = None


class _Refusal(_Coded):
    error: Annotated[_Coded | Any, Field(union_mode="left_to_right")] = None

    @property
    def status(self) -> int | None:
        inner = self.error.code if isinstance(self.error, _Coded) else None
        return inner or self.code or None


def error_code(data: str) -> int | None:
    """Return the HTTP status in an event that is an error; ``None`` if there is no such status.

    SGLang refuses a stream in its first event, after the status 200.
    """
    try:
        refusal = _Refusal.model_validate_json(data)
    except ValidationError:
        return None
    return refusal.status if refusal.error else None


def as_error(data: str) -> str:
    """Return the data of an event named ``error`` in the form of those that are not named."""
    try:
        sent = json.loads(data)
    except (ValueError, RecursionError):
        sent = data
    return data if isinstance(sent, dict) and sent.get("error") else json.dumps({"error": sent})


class _Told(BaseModel):
    """Error of a server; each kind of server has its own place for the message.

    ``{"error": {"message": "..."}}`` is OpenAI's, ``{"detail": [{"msg": "..."}]}`` FastAPI's.
    """

    error: _Message = None
    message: _Message = None
    detail: _Message = None
    msg: _Message = None

    @property
    def text(self) -> str:
        return _first(self.error, self.message, self.detail, self.msg)


_Message: TypeAlias = Annotated[
    str | _Told | list[Annotated[str | _Told | None, OR_NONE]] | None, OR_NONE
]


def error_message(body: bytes | str) -> str:
    """Find the message in the JSON of an error; empty if there is none."""
    try:
        return _first(_MESSAGE.validate_json(body))
    except ValidationError:
        return ""


def _first(*told: str | _Told | list[str | _Told | None] | None) -> str:
    """Return the first text that is not empty."""
    for each in told:
        match each:
            case _Told():
                text = each.text
            case list():
                text = _first(*each)
            case _:
                text = each or ""
        if text:
            return text
    return ""


_Told.model_rebuild()
_MESSAGE: TypeAdapter[str | _Told | list[str | _Told | None] | None] = TypeAdapter(_Message)
