"""Numbers in sentences."""

from __future__ import annotations

__all__ = ["counted"]


def counted(number: int, noun: str) -> str:
    """Return ``1 token``, ``1,602 tokens``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
