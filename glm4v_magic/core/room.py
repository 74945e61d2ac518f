"""Memory that a plan leaves for the prefix cache: prompts and images that need not be read again.

The cache is spread over the GPUs as the KV cache of a running answer is: each stage keeps the part
of its own layers, so the stage with the least room for its share limits the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glm4v_magic.core.remarks import Remark, remark
from glm4v_magic.core.stage import Stage
from glm4v_magic.core.wording import readable_bytes

__all__ = ["Room", "room_for_kept", "room_note"]


@dataclass(frozen=True, slots=True)
class Room:
    """Largest size of the prefix cache.

    Attributes:
        size_bytes: bytes, over all devices.
        device: name of the device that limits it.
    """

    size_bytes: int
    device: str


def room_for_kept(stages: Sequence[Stage]) -> Room | None:
    """Return the room that a plan leaves; ``None`` on the CPU, whose memory it does not check."""
    whole = sum(stage.kv_bytes for stage in stages)
    rooms = [
        Room(
            max(stage.capacity_bytes - stage.total_bytes, 0) * whole // stage.kv_bytes, stage.device
        )
        for stage in stages
        if stage.kv_bytes and stage.capacity_bytes is not None
    ]
    return min(rooms, key=lambda room: room.size_bytes, default=None)


def room_note(stages: Sequence[Stage]) -> Remark | None:
    """Return the note of a plan on this room; ``None`` where `room_for_kept` returns ``None``."""
    room = room_for_kept(stages)
    if room is None:
        return None
    if not room.size_bytes:
        return remark("no_room_for_kept", device=room.device)
    return remark("room_for_kept", room=readable_bytes(room.size_bytes), device=room.device)
