"""Progress of loading a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm4v_magic.core.wording import printable, readable_bytes, readable_count, readable_seconds
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.core.events import Starting
    from glm4v_magic.core.model import EngineInfo, LoadProgress

__all__ = [
    "line_bundle",
    "loaded_line",
    "loading_line",
    "progress_bundle",
    "starting_line",
    "stopped_line",
]


def loading_line(
    model: str,
    done_bytes: int,
    total_bytes: int,
    *,
    device: str = "",
    bytes_per_second: float | None = None,
    released: str = "",
) -> str:
    """Return ``Loading demo: 1.2 MiB of 5.2 MiB (23 %), 1.1 MiB/s, 3.6 s left, on cuda:1``.

    Args:
        model: name of the model.
        done_bytes: bytes of the weights that have arrived.
        total_bytes: bytes of all weights.
        device: device of the latest weight, if a device map decides it.
        bytes_per_second: rate so far; ``None`` if unknown.
        released: model that was released to make room, if any.
    """
    total = max(total_bytes, 1)
    done = min(done_bytes, total)
    parts = [f"{readable_bytes(done)} of {readable_bytes(total)} ({100 * done // total} %)"]
    if bytes_per_second:
        parts.append(f"{readable_bytes(round(bytes_per_second))}/s")
        parts.append(f"{readable_seconds((total - done) / bytes_per_second)} left")
    if device:
        parts.append(f"on {device}")
    if released:
        parts.append(f"{printable(released)} was released to make room")
    return f"Loading {printable(model)}: {', '.join(parts)}"


def progress_bundle(
    model: str, progress: LoadProgress, *, bytes_per_second: float | None = None
) -> MimeBundle:
    """Return a progress bar beside `loading_line`; as text, the line alone."""
    done, total = progress.done_bytes, max(progress.total_bytes, 1)
    line = loading_line(
        model,
        done,
        total,
        device=progress.device,
        bytes_per_second=bytes_per_second,
        released=progress.released,
    )
    html = fill("progress", line=line, done=min(done, total), total=total, label="Loading")
    return {"text/plain": line, "text/html": html}


def starting_line(library: str) -> str:
    """Return the line shown while a library is imported."""
    return f"Starting {library} ..."


def stopped_line(event: Starting) -> str:
    """Return the line left of it when that was stopped."""
    if not event.goes_on:
        return f"{event.library} was being started."
    return f"{event.library} is still starting, in the background; the next question waits for it."


def loaded_line(info: EngineInfo, seconds: float) -> str:
    """Return the line that replaces the bar when the model is loaded."""
    return (
        f"Loaded {printable(info.model)} in {readable_seconds(seconds)}:"
        f" {readable_count(info.parameters or 0)} parameters, {info.dtype}"
        f"{f' in {info.quantize}' if info.quantize else ''}, {', '.join(info.devices)}."
    )


def waiting_line(on: str, seconds: float | None = None) -> str:
    """Return the line while something is waited for, or with its time when that is over."""
    if seconds is None:
        return f"Waiting for {printable(on)}…"
    return f"Waited {readable_seconds(seconds)} for {printable(on)}."


def line_bundle(line: str) -> MimeBundle:
    """Return one line of plain text as an output; names in it may be a server's or a file's."""
    line = printable(line)
    return {"text/plain": line, "text/html": fill("line", line=line)}
