"""Reports of dry runs as JSON, written and read back."""

from __future__ import annotations

import json
from dataclasses import asdict

from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.dry_run.report import DryRunReport
from glm4v_magic.dry_run.text import findings
from glm4v_magic.outside import FileKind, checked

__all__ = ["report_from_json", "report_to_json"]

_REPORT = FileKind("glm4v_magic.dry_run", 1, "the report of a dry run")
_DERIVED = ("works", "findings")  # from the rest, for those who read the file without us


def report_to_json(report: DryRunReport) -> str:
    """Write a report, its verdict and findings included, as JSON that `report_from_json` reads."""
    derived = dict(zip(_DERIVED, (report.works, findings(report)), strict=True))
    return json.dumps({**_REPORT.head(), **asdict(report), **derived}, indent=2)


def report_from_json(text: str, what: str = "The report") -> DryRunReport:
    """Read a report that `report_to_json` wrote.

    Args:
        text: the JSON.
        what: what it is called in messages.

    Raises:
        DeviceMapError: if `text` is not a report that `report_to_json` wrote.
    """
    content = _REPORT.content(text, what, DeviceMapError)
    told = {key: value for key, value in content.items() if key not in _DERIVED}
    return checked(DryRunReport, told, what, DeviceMapError)
