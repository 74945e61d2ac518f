"""Tokens of a server's answer, from the log-probabilities that it sends beside the text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from glm4v_magic.core.tokens import Alternative, Token
from glm4v_magic.engines.server.replies import ScoredToken, TokenLogprob
from glm4v_magic.engines.token_places import Span, placed, spelled

__all__ = ["TokenCollector"]


class TokenCollector:
    """Collects the tokens of an answer, and finds their places when it is complete.

    Args:
        most: number of alternatives to keep of each token; a server may send more than it was asked
            for.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: list[Token] = []
        self._text, self._thinking = _Said(), _Said()

    def add(
        self, content: str | None, thinking: str | None, tokens: Sequence[TokenLogprob]
    ) -> None:
        """Add the tokens of one piece of the answer.

        Tokens without text, such as the first bytes of a character, belong to the next piece.
        """
        self._waiting += [_token(each, self._most) for each in tokens]
        if thinking and content:
            self._thinking.raw += thinking  # nobody knows which tokens are whose
        elif thinking:
            self._put(self._thinking, thinking)
        if content:
            self._put(self._text, content)

    def add_thinking(self, tokens: Iterable[TokenLogprob]) -> None:
        """Add the tokens of all of the thinking, which came without them."""
        said = self._thinking
        said.tokens = [_token(each, self._most) for each in tokens]
        said.pieces = [(0, len(said.raw))] * len(said.tokens)

    def _put(self, said: _Said, piece: str = "") -> None:
        begin = len(said.raw)
        said.raw += piece
        said.pieces += [(begin, len(said.raw))] * len(self._waiting)
        said.tokens += self._waiting
        self._waiting = []

    def placed(self, text: str, thinking: str) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
        """Return the tokens of the answer and those of its thinking; see `token_places.placed`."""
        self._put(self._text)
        marked, inline = self._thinking, "" if self._thinking.raw else thinking
        said = self._text
        answer, thought = placed(said.tokens, said.spans(), said.raw, text, inline)
        if marked.tokens:
            thought = placed(marked.tokens, marked.spans(), marked.raw, thinking)[0]
        return answer, thought


class _Said:
    """One of the two texts that a server sends.

    Attributes:
        raw: the text.
        tokens: its tokens, without places.
        pieces: place of the piece that each token came with.
    """

    def __init__(self) -> None:
        self.raw = ""
        self.tokens: list[Token] = []
        self.pieces: list[Span] = []

    def spans(self) -> list[Span]:
        """Return the place of each token in the text.

        A server may send tokens as its vocabulary writes them. Where they do not spell the text,
        each spans the piece that it came with.
        """
        written, spans = spelled(each.utf8 or _utf8(each.text) for each in self.tokens)
        at = 0 if written.startswith(self.raw) else written.rfind(self.raw)
        if at >= 0:
            return [(start - at, end - at) for start, end in spans]
        return self.pieces


def _token(sent: TokenLogprob, most: int) -> Token:
    alternatives = tuple(
        Alternative(each.token, each.logprob, utf8=_bytes(each))
        for each in sent.top_logprobs[:most]
        if each is not None
    )
    return Token(sent.token, sent.logprob, 0, 0, alternatives=alternatives, utf8=_bytes(sent))


def _bytes(sent: ScoredToken) -> bytes:
    return bytes(sent.bytes or ())


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")
