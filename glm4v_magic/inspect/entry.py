"""The way into an answer: what cannot be looked into is refused before torch is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm4v_magic.core.conversation import PARTIAL, Answer
from glm4v_magic.core.errors import ConversationError
from glm4v_magic.inspect.lending import lent

if TYPE_CHECKING:
    from glm4v_magic.inspect.inspection import Inspection

__all__ = ["inspected"]


def inspected(answer: Answer) -> Inspection:
    """Return a look into the model that gave an answer; nothing is computed yet.

    Raises:
        ConversationError: if the answer was interrupted, or was not given in this session.
        EngineError: if the model is on a server, in other processes, or is no longer loaded.
        BusyError: if a call is running in the session.
    """
    if answer.finish_reason in PARTIAL:
        raise ConversationError(
            "This answer was broken off, so there is no whole answer to look into.",
            "Ask again, and inspect that answer.",
        )
    if answer.origin is None:
        raise ConversationError(
            "How this answer was made is not known: it was imported or traced, or is a row of a "
            "map.",
            "Ask the question by itself, and inspect that answer.",
        )
    with lent(answer, answer.origin):
        from glm4v_magic.inspect.inspection import Inspection

        return Inspection(answer, answer.origin)
