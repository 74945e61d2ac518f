"""Errors and descriptions of GPUs where the rest of the package is not there; see `package`."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "GPU",
    "MAX_GPUS",
    "GPUDescriptionError",
    "OptionError",
    "PlacementError",
    "parse_gpus",
]

MAX_GPUS = 128
"""PyTorch numbers devices with a signed byte."""

_GROUP = re.compile(
    r"(?:([1-9][0-9]*)x)?(?:([A-Za-z][\w ]*)-)?([0-9]+(?:\.[0-9]+)?)([KMGT]iB)?", re.ASCII
)
_POWERS = {"KiB": 1, "MiB": 2, "GiB": 3, "TiB": 4}


class PlacementError(Exception):
    """Virtual GPUs cannot be used like this."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(f"{what} {hint}".strip())


class GPUDescriptionError(PlacementError):
    """A description of GPUs cannot be read."""


class OptionError(PlacementError):
    """An option has an unknown value."""


@dataclass(frozen=True, slots=True)
class GPU:
    """A GPU: index, name, bytes, bytes that are free if not all, and compute capability."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int | None = None
    capability: tuple[int, int] | None = None

    @property
    def usable_bytes(self) -> int:
        """Its free memory if known, else all of it."""
        return self.total_bytes if self.free_bytes is None else self.free_bytes


def _within(part: str, text: str) -> str:
    return f"{part!r:.40}" if part == text else f"{part!r:.40} in {text!r:.80}"


def parse_gpus(description: str) -> tuple[GPU, ...]:
    """Read a description such as ``"4x16GiB"``, ``"24+16GiB"`` or ``"2xA100-40GiB"``.

    Raises:
        GPUDescriptionError: if it cannot be read.
    """
    gpus: list[tuple[str, int]] = []
    unit = ""
    for part in reversed(description.split("+")):  # a unit also counts for the sizes before it
        match = _GROUP.fullmatch(part.strip())
        unit = (match[4] or unit) if match else ""
        if match is None or not unit:
            raise GPUDescriptionError(
                f"Cannot read {_within(part.strip(), description)}.",
                'Write for example "4x16GiB" or "24+16GiB".',
            )
        size = int(float(match[3]) * 1024 ** _POWERS[unit])
        gpus[:0] = [(match[2] or "GPU", size)] * min(int(match[1] or 1), MAX_GPUS + 1)
    return tuple(GPU(index, *gpu) for index, gpu in enumerate(gpus))
