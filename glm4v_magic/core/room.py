"""Memory that a plan leaves for the prefix cache: prompts and images that need not be read again.

The cache is spread over the GPUs as the KV cache of a running answer is: each stage keeps the part
of its own layers, so the stage with the least room for its share limits the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glm4v_magic.core.remarks import Remark, remark
from glm4v_magic.core.stage import Stage
from glm4v_magic.core.wording import readable_bytes

__all__ = ["Room", "room_beside", "room_for_kept", "room_note"]


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
    free = {
        stage.device: stage.capacity_bytes - stage.total_bytes
        for stage in stages
        if stage.capacity_bytes is not None
    }
    return room_beside(free, {stage.device: stage.kv_bytes for stage in stages})


def room_beside(free: Mapping[str, int], shares: Mapping[str, int]) -> Room | None:
    """Return the room on devices; ``None`` if none of them has a share.

    Args:
        free: bytes that are free on each device whose memory is known.
        shares: bytes of the KV cache of a running answer on each device.
    """
    whole = sum(shares.values())
    rooms = [
        Room(max(free[device], 0) * whole // share, device)
        for device, share in shares.items()
        if share and device in free
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
