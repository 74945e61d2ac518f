"""What ``%glm4v check`` shows: would this placement run, and what does it take?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from glm4v_magic.display import MimeBundle
from glm4v_magic.display.bars import MUTED, SHORT, STYLE, Segment, bar, legend, safe, table
from glm4v_magic.display.text import printable
from glm4v_magic.placement.stages import gib

if TYPE_CHECKING:
    from glm4v_magic.placement.dry_run_report import CardUse, DryRunReport

__all__ = ["dry_run_bundle", "dry_run_html"]

# Kind of `bars`, name, attribute of `CardUse`.
_PARTS = (
    ("weights", "weights", "weight_bytes"),
    ("cache", "cache", "kv_bytes"),
    ("activations", "activations", "activation_bytes"),
    ("overhead", "other", "overhead_bytes"),
)
_FULL = 6  # place of a card's fullness behind its name in `card_rows`
_CARD_NUMBERS, _COPY_NUMBERS = 7, 4  # columns of `card_rows` and `copy_rows`


def dry_run_bundle(report: DryRunReport) -> MimeBundle:
    """Return a report as tables; as text, the same tables."""
    return {"text/plain": printable(report.text()), "text/html": dry_run_html(report)}


def dry_run_html(report: DryRunReport) -> str:
    """Return a report as HTML: the verdict, what stands in the way, cards, and copies."""
    findings = "".join(f"<li>{safe(line)}</li>" for line in report.main_findings())
    head, *cards = report.card_rows()
    parts = [
        f"<div>{safe(report.title())}</div>",
        f"<div><strong>{safe(report.verdict())}</strong></div>",
        f'<ul style="border-left:3px solid {SHORT}">{findings}</ul>' if findings else "",
        f'<div style="margin:0.4em 0">{"".join(_bars(report.cards, cards))}</div>',
        legend((kind, name) for kind, name, _ in _PARTS),
        table(head, cards, _CARD_NUMBERS),
    ]
    if report.copies:
        rows = report.copy_rows()
        parts.append(
            f"<details><summary>copies</summary>{table(rows[0], rows[1:], _COPY_NUMBERS)}</details>"
        )
    if report.offloaded:
        names = "".join(f"<li>{safe(name)}</li>" for name in report.offloaded)
        summary = report.waiting()
        parts.append(f"<details><summary>{summary}</summary><ul>{names}</ul></details>")
    return f'<div class="glm4v-dry-run">{STYLE}{"".join(parts)}</div>'


def _bars(cards: Sequence[CardUse], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield what fills each card, all to one scale; what is beyond its end sticks out."""
    # A card that other programs have filled is drawn long enough to be seen.
    drawn = [max(card.capacity_bytes, card.total_bytes // 4, 1) for card in cards]
    widest = max(max(drawn), *(card.total_bytes for card in cards))
    for card, (name, *cells), length in zip(cards, rows, drawn, strict=True):
        segments = [
            Segment(kind, size, part, f"{part}: {gib(size)} GiB")
            for kind, part, attribute in _PARTS
            if (size := getattr(card, attribute))
        ]
        label = f"{name}, {cells[_FULL]} full"
        short = card.total_bytes > card.capacity_bytes
        yield f'<div style="font-size:0.85em;color:{MUTED}">{safe(label)}</div>'
        yield bar(segments, length, length / widest, label, short=short)
