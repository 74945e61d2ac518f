"""What a plan leaves for the prefix cache, and its budget.

Kept prompts are spread over the GPUs as the KV cache is: each stage keeps that of its own layers,
so the stage with the least room for its share limits the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.plan import Plan

__all__ = ["Room", "kept_budget", "room_for_kept"]

DEFAULT_BYTES = 2**30
"""Budget without a plan."""

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Room:
    """The most that can be kept.

    Attributes:
        size_bytes: the most, over all devices.
        device: device that limits it.
    """

    size_bytes: int
    device: str


def room_for_kept(plan: Plan) -> Room | None:
    """Return the room that a plan leaves; ``None`` on the CPU, whose memory it does not check."""
    whole = sum(stage.kv_bytes for stage in plan.stages)
    rooms = [
        Room(
            max(stage.capacity_bytes - stage.total_bytes, 0) * whole // stage.kv_bytes, stage.device
        )
        for stage in plan.stages
        if stage.kv_bytes and stage.capacity_bytes is not None
    ]
    return min(rooms, key=lambda room: room.size_bytes, default=None)


def kept_budget(keep: float | None, plan: Plan | None, free: Room | None = None) -> int:
    """Return the budget of the prefix cache in bytes.

    Args:
        keep: GiB that were asked for; ``None`` for half of what the plan leaves.
        plan: plan of the model, if there is one.
        free: room without a plan, if it is known.

    Raises:
        OptionError: if more was asked for than there is room.
    """
    room = None if plan is None else room_for_kept(plan)
    planned = room is not None
    room = free if room is None else room
    if keep is None:
        return room.size_bytes // 2 if room is not None and planned else DEFAULT_BYTES
    asked = int(keep * _GIB)
    if room is not None and asked > room.size_bytes:
        where = "the plan leaves" if planned else "there is only"
        raise OptionError(
            f"keep is {keep:g} GiB, but {where} room for {room.size_bytes / _GIB:.2f} GiB, for "
            f"lack of memory on {room.device}.",
            "Ask for less; 0 keeps nothing.",
        )
    return asked
