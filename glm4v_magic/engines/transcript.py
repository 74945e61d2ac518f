"""What a row has said: its ids, when each came, and the text they stand for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tokenizers.decoders import DecodeStream

from glm4v_magic.core.conversation import FinishReason

__all__ = ["Transcript"]


class Transcript:
    """Collects the ids of a row and gives back their text, never cutting a UTF-8 character.

    A character may be spread over several tokens; its bytes are kept back until it is whole. Bytes
    that are still kept back at the end are no text.

    Args:
        tokenizer: of the model.
        limit: longest answer in tokens.
        ends: ids that end it.
        carries_on: whether the text goes on with what was said before, whitespace included.

    Attributes:
        ids: so far, the one that ends the answer included.
        times: when each of them came, in seconds.
    """

    def __init__(
        self, tokenizer: Any, limit: int, ends: Collection[int], *, carries_on: bool = False
    ) -> None:
        self.ids: list[int] = []
        self.times: list[float] = []
        self._tokenizer = tokenizer._tokenizer
        self._limit, self._ends = limit, ends
        self._stream = DecodeStream(skip_special_tokens=True)
        self._carries_on = self._begun = carries_on
        self._pieces: list[str] = []

    def take(self, token: int, at: float) -> str:
        """Take the next id, and return the text that is complete with it; often none."""
        self.ids.append(token)
        self.times.append(at)
        piece = self._stream.step(self._tokenizer, token) or ""
        # The model begins an answer with a newline, which belongs to the prompt's form.
        piece = piece if self._begun else piece.lstrip()
        if piece:
            self._begun = True
            self._pieces.append(piece)
        return piece

    @property
    def text(self) -> str:
        """All pieces, without the whitespace around them."""
        text = "".join(self._pieces)
        return text.rstrip() if self._carries_on else text.strip()

    @property
    def ending(self) -> FinishReason | None:
        """Why it has ended; ``None`` as long as it is open."""
        if not self.ids:
            return None
        return "stop" if self.ids[-1] in self._ends else self._at_limit()

    def _at_limit(self) -> FinishReason | None:
        return "length" if len(self.ids) >= self._limit else None
