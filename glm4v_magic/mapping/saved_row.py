"""A row of a map as it stands in a file, checked as it is read: files are edited and damaged."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Json, NonNegativeInt, model_validator

from glm4v_magic.calls.answer import ImageAnswer
from glm4v_magic.core.boxes import Box, Point
from glm4v_magic.core.conversation import FinishReason, Usage
from glm4v_magic.core.options import Format

__all__ = ["OF_ANSWER", "OF_USAGE", "SavedHeader", "SavedRow"]

OF_ANSWER = ("finish_reason", "seed", "format", "corrected", "model", "notice")
"""Columns that are fields of an answer."""

OF_USAGE = (
    "text_tokens",
    "visual_tokens",
    "new_tokens",
    "thinking_tokens",
    "time_to_first_token",
    "decode_seconds",
)
"""Columns that are fields of its usage."""

Count = NonNegativeInt | None


class SavedHeader(BaseModel):
    """First line of a journal, and the note of a file: what the rows are answers to."""

    asked: dict[str, str]
    replaces: bool = False


class SavedRow(BaseModel):
    """A row, by the columns of the file."""

    model_config = ConfigDict(strict=True)

    index: NonNegativeInt | None
    item: str
    prompt: str
    answer: str | None
    value: Json[Any] | None
    thinking: str | None
    probability: float | None
    choices: Json[dict[str, float]] | None
    boxes: Json[list[Box]] | None
    points: Json[list[Point]] | None
    error: str | None
    finish_reason: FinishReason | None
    seed: int | None
    text_tokens: Count
    visual_tokens: Count
    new_tokens: Count
    thinking_tokens: Count
    time_to_first_token: float | None
    decode_seconds: float | None
    format: Format | None
    corrected: str | None
    model: str | None
    notice: str | None
    key: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]

    @model_validator(mode="after")
    def _has_a_whole_answer(self) -> SavedRow:
        parts = ("answer", "decode_seconds", "format", "corrected", "model", "notice")
        missing = [name for name in parts if getattr(self, name) is None]
        if self.finish_reason is not None and missing:
            raise ValueError(f"an answer has no {missing[0]}")
        return self

    @property
    def is_complete(self) -> bool:
        """Whether it was answered to the end."""
        return self.error is None and self.finish_reason is not None

    def as_answer(self) -> ImageAnswer | None:
        """Return the answer; ``None`` if there is none."""
        if self.finish_reason is None:
            return None
        rest: dict[str, Any] = {name: getattr(self, name) for name in OF_ANSWER}
        usage: dict[str, Any] = {name: getattr(self, name) for name in OF_USAGE}
        return ImageAnswer(
            text=self.answer or "",
            prompt=self.prompt,
            usage=Usage(**usage),
            **rest,
            value=self.value,
            thinking=self.thinking or "",
            choices=self.choices or {},
            boxes=tuple(self.boxes or ()),
            points=tuple(self.points or ()),
        )
