"""`Finding`: one result of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glm4v_magic.core.remarks import Text

__all__ = ["Finding", "Verdict"]

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    Attributes:
        subject: what was checked.
        verdict: ``ok``; ``warn`` works but deserves a look; ``fail`` will not work.
        found: what is there.
        reason: why the verdict is so; may be empty for ``ok``.
        next_step: what to do; empty if there is nothing to do. The front end words it, and the
            reason: `core.remarks.worded`.
    """

    subject: str
    verdict: Verdict
    found: str
    reason: Text = ""
    next_step: Text = ""
