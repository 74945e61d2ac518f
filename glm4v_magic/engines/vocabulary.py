"""Text and bytes of single tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from glm4v_magic.core.tokens import LEAST_LOGPROB, Alternative, Token
from glm4v_magic.engines.decoding import Chosen

__all__ = ["Vocabulary"]


class Vocabulary:
    """Tokens of a tokenizer one by one.

    Args:
        tokenizer: fast tokenizer of the model, with byte-level BPE as all GLM models have it.
        told: special tokens that are kept in an answer's text, such as ``<think>``.
    """

    def __init__(self, tokenizer: Any, told: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer._tokenizer
        self._told = told

    @cached_property
    def _bytes(self) -> Mapping[str, int]:
        return {character: byte for byte, character in bytes_to_unicode().items()}

    @cached_property
    def _added(self) -> Mapping[int, Any]:
        added: Mapping[int, Any] = self._tokenizer.get_added_tokens_decoder()
        return added

    def text_and_bytes(self, token: int) -> tuple[str, bytes]:
        """Return a token's text, and the bytes that it adds to an answer.

        A special token adds none unless it is in `told`. Ids beyond the vocabulary, which many
        models have, are empty.
        """
        if token in self._added:
            name = str(self._added[token].content)
            is_left_out = self._added[token].special and token not in self._told
            return name, b"" if is_left_out else name.encode()
        written = self._tokenizer.id_to_token(token) or ""
        if all(character in self._bytes for character in written):
            utf8 = bytes(self._bytes[character] for character in written)
        else:
            utf8 = self._tokenizer.decode([token]).encode()
        return utf8.decode(errors="replace"), utf8

    def is_blank(self, token: int) -> bool:
        """Tell whether a token adds nothing but whitespace to an answer."""
        return not self.text_and_bytes(token)[1].strip()

    def tokens(self, chosen: Iterable[Chosen]) -> list[Token]:
        """Return chosen ids as tokens whose places are still to be found."""
        return [self._token(each) for each in chosen if each.logprob is not None]

    def _token(self, chosen: Chosen) -> Token:
        text, utf8 = self.text_and_bytes(chosen.id)
        alternatives = tuple(self._alternative(*each) for each in chosen.likeliest)
        assert chosen.logprob is not None
        return Token(text, _finite(chosen.logprob), 0, 0, chosen.id, alternatives, utf8)

    def _alternative(self, token: int, logprob: float) -> Alternative:
        text, utf8 = self.text_and_bytes(token)
        return Alternative(text, _finite(logprob), token, utf8)


def _finite(logprob: float) -> float:
    # In this order of arguments, max also replaces NaN.
    return max(LEAST_LOGPROB, logprob)
