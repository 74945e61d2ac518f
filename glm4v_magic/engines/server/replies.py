"""Replies of servers, as pydantic models.

They are lenient, because servers differ: unknown keys are ignored, and a value of the wrong type
counts as missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
)
from pydantic_core import from_json

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
    "error_code",
    "error_message",
    "is_answer",
]


Byte = Annotated[int, Field(strict=True, ge=0, le=255)]
Size = Annotated[int, Field(strict=True, ge=1)]
Probability = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]


class OwnFacts(BaseModel):
    """Facts about a model that only our own server sends; fields as in `EngineInfo`."""

    notice: Words = ""
    max_images: Count = None
    image_size: Annotated[tuple[Size, Size] | None, OR_NONE] = None
    visual_tokens: Count = None
    thinks: Flag = None
    efforts: Annotated[list[Words], OR_EMPTY] = []


class OwnAnswer(BaseModel):
    """Part of a reply that only our own server sends; fields as in `Generation`."""

    choices: Annotated[dict[str, Probability], OR_NO_ENTRIES] = {}


class ModelEntry(BaseModel):
    """A model in the list of a server."""

    id: str
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

    @property
    def thinking(self) -> str | None:
        """Piece of thinking, under either name, if the server separates it from the text."""
        return self.reasoning_content or self.reasoning


class ScoredToken(BaseModel):
    """A token, its log-probability, and its bytes if the server tells them."""

    token: Annotated[str, StringConstraints(strict=True)]
    logprob: Annotated[float, Field(allow_inf_nan=False)]
    bytes: Annotated[list[Byte] | None, OR_NONE] = None


class TokenLogprob(ScoredToken):
    """A token of the answer with the likeliest ones at its place."""

    top_logprobs: Annotated[list[Annotated[ScoredToken | None, OR_NONE]], OR_EMPTY] = []


class _Logprobs(BaseModel):
    content: Annotated[list[Annotated[TokenLogprob | None, OR_NONE]], OR_EMPTY] = []


class _Choice(BaseModel):
    index: Count = None
    delta: Annotated[
        Delta | None, OR_NONE, Field(validation_alias=AliasChoices("delta", "message"))
    ] = None
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
        """Whether there are choices that nobody has asked for."""
        return any(each is not None and each.index for each in self.choices or ())


def is_answer(body: bytes) -> bool:
    """Tell whether the JSON of a body is an answer, or a piece of one."""
    try:
        return bool(Chunk.model_validate_json(body).choices)
    except ValidationError:
        return False


def error_code(data: str) -> int | None:
    """Return the HTTP status in an event that is an error; ``None`` if it is none or has none.

    SGLang refuses a stream in its first event, after the status 200.
    """
    try:
        content = from_json(data)
    except ValueError:
        return None
    error = content.get("error") if isinstance(content, dict) else None
    if not error:
        return None
    codes = [str(each.get("code")) for each in (error, content) if isinstance(each, dict)]
    return _first(int(each) for each in codes if each.isdecimal())


_PLACES = ("error", "message", "detail", "msg")


def error_message(body: bytes | str) -> str:
    """Find the message in the JSON of an error; each kind of server has its own place for it.

    ``{"error": {"message": "..."}}`` is OpenAI's, ``{"detail": [{"msg": "..."}]}`` FastAPI's.
    Returns an empty string if there is none.
    """
    try:
        content = from_json(body)
    except ValueError:
        return ""
    for _ in _PLACES:
        if isinstance(content, dict):
            content = _first(content.get(place) for place in _PLACES)
        elif isinstance(content, list):
            content = _first(content)
    return content if isinstance(content, str) else ""


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value), None)
