"""A table of cards: numbers, and a bar that shows what fills each."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Protocol

from glm4v_magic.display.text import printable
from glm4v_magic.placement.stages import gib

__all__ = ["OVER", "Filled", "bar", "safe", "table"]

# Translucent, so that they suit light and dark pages; text keeps the page's own colour.
_PARTS = (
    ("weights", "weight_bytes", "rgba(66, 133, 244, 0.6)"),
    ("cache", "kv_bytes", "rgba(52, 168, 83, 0.6)"),
    ("activations", "activation_bytes", "rgba(251, 188, 4, 0.6)"),
    ("other", "overhead_bytes", "rgba(128, 128, 128, 0.6)"),
)
_OUTLINE = "rgba(128, 128, 128, 0.6)"
OVER = "rgba(234, 67, 53, 0.9)"
"""Colour of what does not fit."""


class Filled(Protocol):
    """A card and what is on it: a stage of a plan, or what a dry run saw."""

    @property
    def weight_bytes(self) -> int: ...  # noqa: D102  the parts, as the table names them
    @property
    def kv_bytes(self) -> int: ...  # noqa: D102
    @property
    def activation_bytes(self) -> int: ...  # noqa: D102
    @property
    def overhead_bytes(self) -> int: ...  # noqa: D102
    @property
    def fullness(self) -> float: ...  # noqa: D102


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    names: int = 0,
    bars: Sequence[str] = (),
) -> str:
    """Return a table of numbers.

    Args:
        head: titles of the columns.
        rows: cells; the first names its row, the last `names` hold names, too.
        names: see `rows`.
        bars: a last cell of HTML for each row.
    """
    numbers = len(head) - names
    sides = ["right" if 0 < index < numbers else "left" for index in range(len(head))]
    titles = "".join(
        f'<th scope="col" style="text-align:{side}">{safe(title)}</th>'
        for title, side in zip(head, sides, strict=True)
    )
    if bars:
        titles += '<th scope="col" style="text-align:left">GiB</th>'
    body = ""
    for index, (label, *cells) in enumerate(rows):
        data = "".join(
            f'<td style="text-align:{side}">{safe(cell)}</td>'
            for cell, side in zip(cells, sides[1:], strict=True)
        )
        more = f'<td style="text-align:left">{bars[index]}</td>' if bars else ""
        body += f'<tr><th scope="row" style="text-align:left">{safe(label)}</th>{data}{more}</tr>'
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def bar(card: Filled, capacity: int, width: float) -> str:
    """Return what fills a card; what is beyond its capacity sticks out in red.

    Args:
        card: what is on it.
        capacity: its bytes; other programs may have left none.
        width: of the capacity, in em.
    """
    left, pieces = capacity, ""
    for name, attribute, colour in _PARTS:
        size = getattr(card, attribute)
        inside = min(size, left)
        left -= inside
        for length, fill in ((inside, colour), (size - inside, OVER)):
            if length:
                shown = min(width * length / max(1, capacity), 4 * width)
                style = f"display:inline-block;height:0.8em;width:{shown:.2f}em;background:{fill}"
                title = f"{name}: {gib(size)} GiB"
                pieces += f'<span title="{title}" style="{style}"></span>'
    return (
        f'<span role="img" aria-label="{card.fullness:.0%} full" style="display:inline-block;'
        f"white-space:nowrap;height:0.8em;width:{width:.2f}em;"
        f'outline:1px solid {_OUTLINE}">{pieces}</span>'
    )


def safe(text: str) -> str:
    """Return `text` for a page: no markup, no control characters."""
    return escape(printable(text))
