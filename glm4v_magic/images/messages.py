"""Wording that several error messages share."""

from __future__ import annotations

__all__ = ["ACCEPTED", "one_line"]

ACCEPTED = "Give a path, URL, PIL image, array, bytes, open file, figure, or a list of these."


def one_line(text: str) -> str:
    """Return `text` printable and short enough for one line of a message."""
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return printable if len(printable) <= 120 else f"{printable[:80]}...{printable[-30:]}"
