"""Descriptions of GPUs: ``"4x16GiB"`` -> four `GPU`.

    description = "cpu" | group, or several groups joined by "+"
    group       = [count "x"] [name "-"] size [unit]

==================  =====================================================
``4x16GiB``         four equal GPUs
``24+16+12GiB``     three different GPUs; a unit also counts for the sizes before it
``2xA100-40GB``     two GPUs with a name
``cpu``             no GPU
==================  =====================================================

Units are those of accelerate's ``max_memory``: GiB, MiB, KiB and TiB are powers of 1024; GB, MB, KB
and TB are powers of 1000. A name in `CAPABILITIES` tells which number formats the GPU can compute
with; nothing is assumed about other GPUs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from glm4v_magic.core.errors import GPUDescriptionError

__all__ = ["CAPABILITIES", "GPU", "MAX_GPUS", "bytes_of", "capability_of", "parse_gpus"]

MAX_GPUS = 128
"""PyTorch numbers devices with a signed byte (``c10::DeviceIndex``)."""

CAPABILITIES = {
    "p100": (6, 0),
    "v100": (7, 0),
    "t4": (7, 5),
    "2080": (7, 5),
    "a100": (8, 0),
    "a10": (8, 6),
    "a10g": (8, 6),
    "a40": (8, 6),
    "a6000": (8, 6),
    "3090": (8, 6),
    "l4": (8, 9),
    "l40": (8, 9),
    "l40s": (8, 9),
    "4090": (8, 9),
    "h100": (9, 0),
    "h200": (9, 0),
    "gh200": (9, 0),
    "b200": (10, 0),
    "5090": (12, 0),
}
"""Compute capability by a word of the GPU's name (https://developer.nvidia.com/cuda-gpus)."""

_UNITS = {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("ib", 1024), ("b", 1000))
}
_GROUP = re.compile(
    r"(?:(?P<count>-?[0-9]+)\s*[x×]\s*)?"
    r"(?:(?P<name>[a-z][a-z0-9 _.-]*?)[ -])?"
    r"(?P<size>-?[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[kmgt]i?b)?",
    re.IGNORECASE | re.ASCII,
)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?b)", re.IGNORECASE | re.ASCII)
_EXAMPLE = 'Write for example "4x16GiB", "24+16+12GiB", "2xA100-40GB" or "cpu".'
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class GPU:
    """One GPU, found or described.

    Attributes:
        index: CUDA index, as in ``cuda:<index>``.
        name: name from the driver or the description.
        total_bytes: size of its memory.
        free_bytes: memory that other programs leave free; ``None`` if unknown.
        capability: CUDA's compute capability; ``None`` if unknown.
    """

    index: int
    name: str
    total_bytes: int
    free_bytes: int | None = None
    capability: tuple[int, int] | None = None

    @property
    def usable_bytes(self) -> int:
        """Memory that a plan may use: the free memory if known, else all of it."""
        return self.total_bytes if self.free_bytes is None else self.free_bytes


def parse_gpus(description: str) -> tuple[GPU, ...]:
    """Read a description such as ``"4x16GiB"``; ``"cpu"`` describes no GPU at all.

    Raises:
        GPUDescriptionError: if the description cannot be read, or a count or size is not positive.
    """
    if not isinstance(description, str):
        raise GPUDescriptionError(
            f"GPUs are described by a string, not by {type(description).__name__}.", _EXAMPLE
        )
    text = description.strip()
    if text.lower() == "cpu":
        return ()
    if not text:
        raise GPUDescriptionError("The description of the GPUs is empty.", _EXAMPLE)
    if len(text) > _LONGEST:
        raise GPUDescriptionError("The description of the GPUs is too long.", _EXAMPLE)
    gpus: list[GPU] = []
    for count, name, size in _read_groups(text):
        if len(gpus) + count > MAX_GPUS:
            raise GPUDescriptionError(
                f"{text!r} describes more than {MAX_GPUS} GPUs, the most that PyTorch can number."
            )
        capability = capability_of(name)
        gpus += [GPU(len(gpus) + i, name, size, capability=capability) for i in range(count)]
    return tuple(gpus)


def bytes_of(size: str) -> int | None:
    """Return the bytes of a size such as ``10GiB``; ``None`` if it is none."""
    match = _SIZE.fullmatch(size.strip()) if len(size) <= _LONGEST else None
    return None if match is None else int(Decimal(match[1]) * _UNITS[match[2].lower()])


def capability_of(name: str) -> tuple[int, int] | None:
    """Return the compute capability of a GPU by its name; ``None`` if the name does not tell."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((CAPABILITIES[word] for word in words if word in CAPABILITIES), None)


def _read_groups(text: str) -> list[tuple[int, str, int]]:
    """Return (count, name, bytes) of each group, in the order in which they are written."""
    groups: list[tuple[int, str, int]] = []
    unit = ""
    for part in reversed(text.split("+")):
        match = _GROUP.fullmatch(part.strip())
        if match is None:
            raise GPUDescriptionError(f"Cannot read {part.strip()!r} in {text!r}.", _EXAMPLE)
        unit = (match["unit"] or unit).lower()
        if not unit:
            raise GPUDescriptionError(f"{text!r} gives a size without a unit.", _EXAMPLE)
        count = int(match["count"] or 1)
        size = int(Decimal(match["size"]) * _UNITS[unit])
        if count < 1 or size < 1:
            what = "a count" if count < 1 else "a size"
            raise GPUDescriptionError(f"{part.strip()!r} has {what} below one.", _EXAMPLE)
        groups.append((count, match["name"] or "GPU", size))
    return groups[::-1]
