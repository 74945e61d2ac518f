"""What ``%glm4v doctor`` shows: one row for each finding, its verdict as a word and a symbol."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from glm4v_magic.core.remarks import worded
from glm4v_magic.core.wording import counted, printable
from glm4v_magic.notebook.next_steps import CELL
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.doctor import Finding

__all__ = ["doctor_bundle", "findings_json", "findings_text"]

_SYMBOLS = {"ok": "✓", "warn": "!", "fail": "✗"}
_COLUMNS = ("Verdict", "Subject", "Found")
"""The reason and the next step stand below what was found: not every page has room beside it."""
_LINE = 100  # characters


def doctor_bundle(findings: Sequence[Finding]) -> MimeBundle:
    """Return `findings` as a table; as text, reason and next step on lines of their own."""
    return {"text/plain": findings_text(findings), "text/html": _html(findings)}


def findings_text(findings: Sequence[Finding]) -> str:
    """Return `findings` as text, no line longer than 100 characters."""
    width = max((len(printable(finding.subject)) for finding in findings), default=0)
    lines = [line for finding in findings for line in _lines(finding, width)]
    return "\n".join([*lines, _summary(findings)])


def findings_json(findings: Sequence[Finding]) -> str:
    """Return `findings` as a JSON list of objects."""
    as_worded = [
        replace(
            finding,
            reason=worded(finding.reason, CELL),
            next_step=worded(finding.next_step, CELL),
        )
        for finding in findings
    ]
    return json.dumps([asdict(each) for each in as_worded], indent=2, ensure_ascii=False)


def _lines(finding: Finding, width: int) -> Iterator[str]:
    mark = f"{_SYMBOLS[finding.verdict]} {finding.verdict:<4}  "
    indent = " " * (len(mark) + width + 2)
    head = f"{mark}{printable(finding.subject):<{width}}  "
    yield from _wrapped(finding.found, head, indent)
    # Findings that are in order are summarised in one line; `ok` with a next step is not.
    if finding.reason and (finding.verdict != "ok" or finding.next_step):
        yield from _wrapped(worded(finding.reason, CELL), indent, indent)
    if finding.next_step:
        yield from _wrapped(worded(finding.next_step, CELL), f"{indent}-> ", f"{indent}   ")


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        " ".join(printable(text).split()),
        _LINE,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
    ) or [first.rstrip()]


def _html(findings: Sequence[Finding]) -> str:
    rows = [_view(finding) for finding in findings]
    return fill("doctor", summary=_summary(findings), titles=_COLUMNS, rows=rows)


@dataclass(frozen=True, slots=True)
class _FindingView:
    """A finding as ``doctor.html`` shows it; each field except the symbol is a column."""

    symbol: str
    verdict: str
    subject: str
    found: str
    reason: str
    next_step: str


def _view(finding: Finding) -> _FindingView:
    return _FindingView(
        symbol=_SYMBOLS[finding.verdict],
        verdict=finding.verdict,
        subject=finding.subject,
        found=finding.found,
        reason=worded(finding.reason, CELL),
        next_step=worded(finding.next_step, CELL),
    )


def _summary(findings: Sequence[Finding]) -> str:
    count = {verdict: sum(each.verdict == verdict for each in findings) for verdict in _SYMBOLS}
    return (
        f"{count['ok']} ok, {counted(count['warn'], 'warning')}, "
        f"{counted(count['fail'], 'failure')}"
    )
