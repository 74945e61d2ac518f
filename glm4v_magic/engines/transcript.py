"""Generated ids of a row, their times, and their text."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tokenizers.decoders import DecodeStream

from glm4v_magic.core.conversation import FinishReason

__all__ = ["Transcript"]


class Transcript:
    """Collects the ids of a row and returns their text, never splitting a UTF-8 character.

    A character may be spread over several tokens; its bytes are kept back until it is whole. Bytes
    that are still incomplete at the end are left out.

    Args:
        tokenizer: tokenizer of the model.
        limit: maximum number of generated tokens.
        ends: stop token ids.
        told: special tokens that are kept in the text; others are left out.
        carries_on: whether the text continues an earlier answer, leading whitespace included.

    Attributes:
        ids: generated ids so far, a stop token included.
        times: time of each id in seconds.
    """

    def __init__(
        self,
        tokenizer: Any,
        limit: int,
        ends: Collection[int],
        *,
        told: Collection[int] = (),
        carries_on: bool = False,
    ) -> None:
        self.ids: list[int] = []
        self.times: list[float] = []
        self._tokenizer = tokenizer._tokenizer
        self._limit, self._ends = limit, ends
        self._stream = DecodeStream(skip_special_tokens=False)
        added = tokenizer.added_tokens_decoder
        self._left_out = {each for each, token in added.items() if token.special} - {*told}
        self._carries_on = self._begun = carries_on
        self._pieces: list[str] = []

    def take(self, token: int, at: float) -> str:
        """Append the next id; returns the text that it completes, which may be empty."""
        self.ids.append(token)
        self.times.append(at)
        if token in self._left_out:
            return ""
        piece = self._stream.step(self._tokenizer, token) or ""
        # The model begins an answer with a newline, which belongs to the prompt format.
        piece = piece if self._begun else piece.lstrip()
        if piece:
            self._begun = True
            self._pieces.append(piece)
        return piece

    @property
    def text(self) -> str:
        """Whole text, stripped."""
        text = "".join(self._pieces)
        return text.rstrip() if self._carries_on else text.strip()

    @property
    def ending(self) -> FinishReason | None:
        """Finish reason; ``None`` while the row is open."""
        if not self.ids:
            return None
        return "stop" if self.ids[-1] in self._ends else self._at_limit()

    def _at_limit(self) -> FinishReason | None:
        return "length" if len(self.ids) >= self._limit else None
