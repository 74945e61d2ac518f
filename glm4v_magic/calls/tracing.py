"""A question whose answer is computed within nnsight's context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm4v_magic.calls.call import Call, answer_of, generated
from glm4v_magic.calls.refusals import refuse_call, takes_of
from glm4v_magic.core.conversation import Answer, Lend
from glm4v_magic.core.errors import EngineError, GenerationInterrupted, OptionError
from glm4v_magic.core.remarks import remark
from glm4v_magic.imports import define_network_classes

if TYPE_CHECKING:
    from glm4v_magic.engines import Engine
    from glm4v_magic.inspect.tracing import Trace

__all__ = ["traced"]


def traced(call: Call, lend: Lend) -> Trace:
    """Return nnsight's context for a question; its answer is computed when the block ends.

    Args:
        call: the question.
        lend: gives the engine, now and then.

    Raises:
        OptionError: if nnsight is not installed, or the model has no such option.
        ConversationError: if the model does not take the question.
        EngineError: if no model is loaded, or it is on a server or in other processes.
        BusyError: if another call is running.
    """
    from glm4v_magic.inspect.lending import local_engine

    with lend() as engine:
        if engine is None:
            raise EngineError(
                "No model is loaded, so there is nothing to trace.", "Load one: session.load()."
            )
        local = local_engine(engine, engine.info.model, "")
        trace = _tracer()
        refuse_call(call, takes_of(engine.info.model, engine.info))
        local.require_room(call.request)
        return trace(local, local.encode(call.request), lend, lambda own: _answered(call, own))


def _tracer() -> type[Trace]:
    define_network_classes()  # before nnsight, after which they would be refused
    try:
        from glm4v_magic.inspect.tracing import Trace
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "nnsight":
            raise
        raise OptionError(
            "nnsight is not installed.", 'Install it with pip install "glm4v_magic[nnsight]".'
        ) from None
    return Trace


def _answered(call: Call, engine: Engine) -> Answer:
    steps = generated(engine, call.request)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return answer_of(call, end.value, engine.info)
    except GenerationInterrupted as stopped:
        stopped.answer = answer_of(call, stopped.generation, engine.info)
        stopped.text = remark("trace_interrupted")
        raise
    finally:
        steps.close()
