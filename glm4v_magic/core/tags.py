"""Tags in streamed text, of which a piece may hold only the beginning."""

from __future__ import annotations

__all__ = ["overlap"]


def overlap(text: str, tag: str) -> int:
    """Return the length of the longest end of `text` that is a beginning of `tag`."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)
