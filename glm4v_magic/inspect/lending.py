"""What an engine must be for its model to be looked into."""

from __future__ import annotations

from typing import Any

from glm4v_magic.core.errors import EngineError
from glm4v_magic.engines.local import LocalEngine

__all__ = ["local_engine"]


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
    if not isinstance(engine, LocalEngine):
        raise EngineError(
            f"{model} is in other processes, whose insides cannot be read from here.",
            "Load it without replicas.",
        )
    return engine
