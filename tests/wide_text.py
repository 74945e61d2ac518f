"""How wide text is in a terminal, told apart from how the package counts it."""

from __future__ import annotations


def wide(text: str) -> int:
    """Return the columns of text in Latin letters and Chinese characters."""
    return len(text) + sum("\u4e00" <= each <= "\u9fff" for each in text)
