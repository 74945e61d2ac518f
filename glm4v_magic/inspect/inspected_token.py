"""`InspectedToken`, a token of an answer and how sure the model was of it."""

from __future__ import annotations

from dataclasses import dataclass

from glm4v_magic.core.tokens import Alternative, Token

__all__ = ["InspectedToken"]


@dataclass(frozen=True, slots=True)
class InspectedToken:
    """A token of an answer.

    Attributes:
        token: its text, id, log-probability, alternatives, and place in the answer as the model
            wrote it, or in its thinking.
        entropy: entropy of the model's distribution over its vocabulary there, in nats.
        is_thinking: whether it is part of the thinking.
    """

    token: Token
    entropy: float
    is_thinking: bool = False

    @property
    def text(self) -> str:
        """Text of the token."""
        return self.token.text

    @property
    def probability(self) -> float:
        """Probability of the token, from 0 to 1."""
        return self.token.probability

    @property
    def alternatives(self) -> tuple[Alternative, ...]:
        """The likeliest tokens at this place, likeliest first."""
        return self.token.alternatives
