"""What ``%glm4v check`` shows: would this placement run, and what does it take?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm4v_magic.display import MimeBundle
from glm4v_magic.display.card_table import OVER, bar, safe, table
from glm4v_magic.display.text import printable

if TYPE_CHECKING:
    from glm4v_magic.placement.dry_run_report import DryRunReport

__all__ = ["dry_run_bundle", "dry_run_html"]

_BAR_WIDTH = 12  # em, of a card's capacity


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
        f'<ul style="border-left:3px solid {OVER}">{findings}</ul>' if findings else "",
        table(
            head, cards, 2, [bar(card, card.capacity_bytes, _BAR_WIDTH) for card in report.cards]
        ),
    ]
    if report.copies:
        rows = report.copy_rows()
        parts.append(f"<details><summary>copies</summary>{table(rows[0], rows[1:])}</details>")
    if report.offloaded:
        names = "".join(f"<li>{safe(name)}</li>" for name in report.offloaded)
        summary = f"{len(report.offloaded)} module(s) wait in host memory"
        parts.append(f"<details><summary>{summary}</summary><ul>{names}</ul></details>")
    return f'<div class="glm4v-dry-run">{"".join(parts)}</div>'
