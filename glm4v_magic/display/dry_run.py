"""What ``%glm4v check`` shows: would this placement run, and what does it take?"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from glm4v_magic.display import MimeBundle
from glm4v_magic.display.text import printable
from glm4v_magic.placement.stages import gib

if TYPE_CHECKING:
    from glm4v_magic.placement.dry_run_report import CardUse, DryRunReport

__all__ = ["dry_run_bundle", "dry_run_html"]

# Translucent, so that they suit light and dark pages; text keeps the page's own colour.
_PARTS = (
    ("weights", "weight_bytes", "rgba(66, 133, 244, 0.6)"),
    ("cache", "kv_bytes", "rgba(52, 168, 83, 0.6)"),
    ("activations", "activation_bytes", "rgba(251, 188, 4, 0.6)"),
    ("other", "overhead_bytes", "rgba(128, 128, 128, 0.6)"),
)
_OUTLINE = "rgba(128, 128, 128, 0.6)"
_SHORT = "rgba(234, 67, 53, 0.9)"
_BAR_WIDTH = 12  # em, of a card's capacity


def dry_run_bundle(report: DryRunReport) -> MimeBundle:
    """Return a report as tables; as text, the same tables."""
    return {"text/plain": printable(report.text()), "text/html": dry_run_html(report)}


def dry_run_html(report: DryRunReport) -> str:
    """Return a report as HTML: the verdict, what stands in the way, cards, and copies."""
    findings = "".join(f"<li>{_safe(line)}</li>" for line in report.main_findings())
    parts = [
        f"<div>{_safe(report.title())}</div>",
        f"<div><strong>{_safe(report.verdict())}</strong></div>",
        f'<ul style="border-left:3px solid {_SHORT}">{findings}</ul>' if findings else "",
        _card_table(report),
    ]
    if report.copies:
        rows = report.copy_rows()
        parts.append(f"<details><summary>copies</summary>{_table(rows[0], rows[1:])}</details>")
    if report.offloaded:
        names = "".join(f"<li>{_safe(name)}</li>" for name in report.offloaded)
        summary = f"{len(report.offloaded)} module(s) wait in host memory"
        parts.append(f"<details><summary>{summary}</summary><ul>{names}</ul></details>")
    return f'<div class="glm4v-dry-run">{"".join(parts)}</div>'


def _card_table(report: DryRunReport) -> str:
    head, *rows = report.card_rows()
    bars = [_bar(card) for card in report.cards]
    return _table((*head, "GiB"), rows, bars, names=2)


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    extra: Sequence[str] | None = None,
    names: int = 0,
) -> str:
    """A table of numbers whose first column names its rows, and whose last `names` hold names.

    `extra` is a last cell of HTML for each row, with a title in `head`.
    """
    numbers = len(rows[0]) - names
    sides = ["right" if 0 < index < numbers else "left" for index in range(len(head))]
    titles = "".join(
        f'<th scope="col" style="text-align:{side}">{_safe(title)}</th>'
        for title, side in zip(head, sides, strict=True)
    )
    body = ""
    for index, (label, *cells) in enumerate(rows):
        data = "".join(
            f'<td style="text-align:{side}">{_safe(cell)}</td>'
            for cell, side in zip(cells, sides[1:], strict=False)
        )
        more = "" if extra is None else f'<td style="text-align:left">{extra[index]}</td>'
        body += f'<tr><th scope="row" style="text-align:left">{_safe(label)}</th>{data}{more}</tr>'
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def _bar(card: CardUse) -> str:
    """What fills a card, to the scale of its capacity; what is beyond it sticks out in red."""
    left = card.capacity_bytes
    capacity = max(1, left)
    pieces = ""
    for name, attribute, colour in _PARTS:
        size = getattr(card, attribute)
        inside = min(size, left)
        left -= inside
        for length, fill in ((inside, colour), (size - inside, _SHORT)):
            if length:
                width = min(_BAR_WIDTH * length / capacity, 4 * _BAR_WIDTH)
                style = f"display:inline-block;height:0.8em;width:{width:.2f}em;background:{fill}"
                title = f"{name}: {gib(size)} GiB"
                pieces += f'<span title="{title}" style="{style}"></span>'
    return (
        f'<span role="img" aria-label="{card.fullness:.0%} full" style="display:inline-block;'
        f"white-space:nowrap;min-width:{_BAR_WIDTH}em;height:0.8em;"
        f'outline:1px solid {_OUTLINE}">{pieces}</span>'
    )


def _safe(text: str) -> str:
    return escape(printable(text))
