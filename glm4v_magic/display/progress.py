"""A model on its way into memory."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from glm4v_magic.display import MimeBundle
from glm4v_magic.display.text import printable, readable_bytes, readable_count, readable_seconds

if TYPE_CHECKING:
    from glm4v_magic.engines import EngineInfo

__all__ = ["line_bundle", "loaded_line", "loading_line", "progress_bundle"]


def loading_line(model: str, done_bytes: int, total_bytes: int) -> str:
    """Return ``Loading demo: 1.2 MiB of 5.2 MiB (23 %)``."""
    total = max(total_bytes, 1)
    done = min(done_bytes, total)
    amount = f"{readable_bytes(done)} of {readable_bytes(total)} ({100 * done // total} %)"
    return f"Loading {printable(model)}: {amount}"


def progress_bundle(model: str, done_bytes: int, total_bytes: int) -> MimeBundle:
    """Return a progress bar beside `loading_line`; as text, the line alone."""
    line = loading_line(model, done_bytes, total_bytes)
    total = max(total_bytes, 1)
    bar = f'<progress value="{min(done_bytes, total)}" max="{total}" aria-label="Loading">'
    return {"text/plain": line, "text/html": f"{bar}</progress> {escape(line)}"}


def loaded_line(info: EngineInfo, seconds: float) -> str:
    """Return the one line that replaces the bar."""
    return (
        f"Loaded {printable(info.model)} in {readable_seconds(seconds)}:"
        f" {readable_count(info.parameters)} parameters, {info.dtype}, {', '.join(info.devices)}."
    )


def line_bundle(line: str) -> MimeBundle:
    """Return one line of plain text as an output."""
    return {"text/plain": line, "text/html": f"<div>{escape(line)}</div>"}
