"""What GPUs hold of a model whose layers are divided among all of them.

So do vLLM and SGLang (tensor parallelism), which also read a prompt in pieces: their activations
are those of a piece, not of the whole context.
"""

from __future__ import annotations

from dataclasses import replace

from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.planning.costs import cache_entries, price
from glm4v_magic.planning.held import least_context
from glm4v_magic.planning.plan import plan

__all__ = ["shared_bytes"]


def shared_bytes(shape: ModelShape, workload: Workload, count: int, keys: int) -> int:
    """Return the bytes that each of several GPUs holds of a model that is divided among them.

    Activations and the vision tower count in full on each: of both, engines divide only parts.

    Args:
        shape: sizes of the model.
        workload: what it is used for; its dtype is given.
        count: how many GPUs.
        keys: heads of keys and values in a layer; on more GPUs than that each is copied.

    Raises:
        OptionError: if the workload does not suit the model.
    """
    context = shape.max_context if workload.context is None else workload.context
    entries = workload.batch * cache_entries(shape, replace(workload, context=context))
    piece = replace(workload, context=min(context, least_context(shape, workload)))
    (stage,) = plan(shape, (), piece).stages
    units = price(shape, piece)
    tower = sum(unit.weight_bytes for unit in units if unit.in_tower)
    cache = entries * sum(unit.kv_bytes_per_token for unit in units)
    divided = stage.weight_bytes - tower
    return tower + -(-divided // count) + -(-cache // min(count, keys)) + stage.activation_bytes
