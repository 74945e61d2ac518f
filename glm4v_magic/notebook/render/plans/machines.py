"""Table of a model on common machines, shown by ``%glm4v plan --machines``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.render import Html, MimeBundle
from glm4v_magic.notebook.render.bars import table
from glm4v_magic.planning.machines import machine_rows

if TYPE_CHECKING:
    from glm4v_magic.planning.machines import MachineFit

__all__ = ["machines_bundle"]

_LIMIT = (
    "tokens/s: at most by memory bandwidth, with an empty KV cache; expect about half, or what the "
    "host can start"
)

_VIEW = Html('<div class="glm4v-plan"><div>{}; {}</div>{}</div>')


def machines_bundle(model: str, found: Sequence[MachineFit]) -> MimeBundle:
    """Return the table as text and as HTML; more GPUs that change nothing are left out."""
    rows = list(machine_rows(found))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    head, *rest = rows
    return {
        "text/plain": printable("\n".join([model, _LIMIT, *lines])),
        "text/html": _VIEW.fill(model, _LIMIT, table(head, rest, 0, label="machines")),
    }
