"""Budget of the prefix cache."""

from __future__ import annotations

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.room import Room, room_for_kept

__all__ = ["kept_budget"]

DEFAULT_BYTES = 2**30
"""Budget without a plan."""

_GIB = 2**30


def kept_budget(
    keep: float | None,
    plan: Plan | None,
    free: Room | None = None,
    replicas: int = 1,
    left: Room | None = None,
) -> int:
    """Return the budget of the prefix cache in bytes.

    Args:
        keep: GiB that were asked for; ``None`` for half of what the plan or map leaves.
        plan: plan of the model, if there is one.
        free: room where there is no plan; ``None`` if it is not known.
        replicas: how many share that room.
        left: room that a device map leaves; ``None`` if there is no map, or that is not known.

    Raises:
        OptionError: if more is asked for than there is room for.
    """
    room = left if plan is None else room_for_kept(plan.stages)
    planned = room is not None
    room = free if room is None else room
    if keep is None:
        return room.size_bytes // 2 if room is not None and planned else DEFAULT_BYTES
    asked = int(keep * _GIB)
    if room is not None and asked * replicas > room.size_bytes:
        each = "" if replicas == 1 else f" for each of {replicas} replicas"
        where = f"the {'map' if plan is None else 'plan'} leaves" if planned else "there is only"
        raise OptionError(
            f"keep is {keep:g} GiB{each}, but {where} room for {room.size_bytes / _GIB:.2f} GiB, "
            f"for lack of memory on {room.device}.",
            "Ask for less; 0 keeps nothing.",
            option="keep",
        )
    return asked
