"""What an answer and its engine must be for the model to be looked into; torch is not needed yet.

A refusal is to come at once, also where nothing is loaded in this process and a server answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.conversation import Answer, Origin
from glm4v_magic.core.errors import EngineError

if TYPE_CHECKING:
    from glm4v_magic.engines.local import LocalEngine

__all__ = ["lent", "local_engine"]

_AGAIN = "Ask again, and inspect that answer."


@contextmanager
def lent(answer: Answer, origin: Origin) -> Iterator[LocalEngine]:
    """Lock the answer's session inside the block, and yield its engine.

    Raises:
        EngineError: if the model is on a server, in other processes, or is no longer loaded.
        BusyError: if another call is running in the session.
    """
    if origin.lend is nullcontext:
        raise EngineError(
            "This is a copy of an answer, which does not know the model that gave it.", _AGAIN
        )
    with origin.lend() as engine:
        yield local_engine(engine, answer.model, _AGAIN)


def local_engine(engine: Any, model: str, advice: str) -> LocalEngine:
    """Return the engine if its model is in this process.

    Args:
        engine: the engine; ``None`` if it is no longer loaded.
        model: name of its model.
        advice: what to do if it is no longer loaded.

    Raises:
        EngineError: if it is no longer loaded, on a server or in other processes.
    """
    if engine is None:
        raise EngineError(f"{model} is no longer loaded, or was loaded anew.", advice)
    if engine.info.server is not None:
        raise EngineError(
            f"{model} is on a server, which tells the log-probabilities of its tokens and nothing "
            "from within the model.",
            "Ask with log-probabilities, or load the model in this process.",
        )
    from glm4v_magic.engines.local import LocalEngine

    if not isinstance(engine, LocalEngine):
        raise EngineError(
            f"{model} is in other processes, whose insides cannot be read from here.",
            "Load it without replicas.",
        )
    return engine
