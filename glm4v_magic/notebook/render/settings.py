"""What ``%glm4v config`` shows: each setting, its value, and where that comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glm4v_magic.core.wording import columns, padded, printable
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.notebook.settings import Setting

__all__ = ["settings_bundle"]

_TITLES = ("setting", "value", "where from", "meaning")


def settings_bundle(settings: Sequence[Setting]) -> MimeBundle:
    """Return a table of settings; as text, one line each."""
    rows = [
        [" ".join(printable(cell).split()) for cell in (each.name, each.value, each.source)]
        + [each.meaning]
        for each in settings
    ]
    return {
        "text/plain": _text([list(_TITLES), *rows]),
        "text/html": fill("settings", titles=_TITLES, rows=rows),
    }


def _text(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(padded(cell, width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
