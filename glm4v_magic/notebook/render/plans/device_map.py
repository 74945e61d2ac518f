"""View of a device map: one bar for each GPU with its parts, and the hops between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from glm4v_magic.core.plan_text import span
from glm4v_magic.core.remarks import worded
from glm4v_magic.core.wording import printable, readable_bytes
from glm4v_magic.notebook.next_steps import CELL
from glm4v_magic.notebook.render import Html, MimeBundle, bars, joined

if TYPE_CHECKING:
    from glm4v_magic.planning.occupancy import Hop, Occupancy, OccupiedGPU, Part

__all__ = ["device_map_bundle", "device_map_html", "device_map_text", "part_place", "verdict"]

_LEGEND = {
    "vision": "vision tower",
    "embedding": "embedding",
    "layers": "layers",
    "head": "norm and head",
    "cache": "cache in use",
    "room": "cache",
    "activations": "activations",
    "overhead": "CUDA context",
    "others": "other programs",
    "reserve": "reserve",
    "free": "free",
}
_BESIDE = ("overhead", "others", "reserve", "free")
"""Kinds of parts that are not the model's."""

_FEW = 0.1  # of the widest bar; fewer bytes are drawn once more, larger
_TEXT_WIDTH = 60

_VIEW = Html(
    '<div class="glm4v-devices" style="line-height:1.4">{}<div>{}, {}</div>'
    '<div role="status" style="{}"><strong>{}</strong></div>'
    '<div style="margin:0.4em 0">{}</div>{}{}{}</div>'
)
_GPU = Html('<div data-stage="{}" style="margin-top:0.3em"><div>{}{}</div>{}{}</div>')
_FADED = Html('<div style="opacity:0.45" title="the last plan that there was">{}</div>')
_AWAY = Html(" <span>⇅ {} visit from host memory</span>")
_HOP = Html(
    '<div style="margin-left:1.5em;font-size:0.85em;color:{}">'
    '<span aria-hidden="true">↳ </span>to {}</div>'
)
_AT = Html('<div style="color:{}">as of {}</div>')
_NOTES, _NOTE = Html("<ul>{}</ul>"), Html("<li>{}</li>")


def device_map_bundle(view: Occupancy, at: str = "") -> MimeBundle:
    """Return the view as HTML and as text.

    Args:
        view: occupancy to show.
        at: time of the view, shown where it outlives the kernel.
    """
    text, html = device_map_text(view), device_map_html(view)
    if at:
        text, html = f"{text}\nas of {at}", joined((html, _AT.fill(bars.MUTED, at)))
    return {"text/plain": text, "text/html": html}


def verdict(view: Occupancy) -> str:
    """Return one line: whether it fits, and how full the fullest GPU is."""
    if view.problem:
        return view.problem
    fullest = view.fullest
    state = "Loaded" if view.loaded else "Fits"
    if fullest is None:
        return f"{'Loaded on' if view.loaded else 'On'} the CPU, whose memory is not checked."
    return (
        f"{state}: the fullest GPU is {fullest.device}, {_percent(fullest.fullness or 0)} of the "
        f"{readable_bytes(max(fullest.usable_bytes or 0, 0))} that may be used."
    )


def device_map_html(
    view: Occupancy, *, table_open: bool = False, before: Occupancy | None = None
) -> Html:
    """Return the view as HTML: verdict, bars with hops between them, a legend and a table.

    Args:
        view: what to show.
        table_open: whether the table is unfolded.
        before: what was shown before, whose bars stay, faded, where there is no plan now.
    """
    shown = view if view.gpus or before is None else before
    largest, small = _largest(shown), _most_enlarged(shown)
    colour = f"border-left:3px solid {bars.SHORT};padding-left:0.5em;" if view.problem else ""
    rows = []
    for row, gpu in enumerate(shown.gpus):
        rows.append(_gpu(gpu, largest, small, row))
        rows.extend(_hop(hop) for hop in shown.hops if hop.source == gpu.device)
    if rows:
        rows.append(bars.axis(readable_bytes(largest)))
    present = {part.kind for gpu in shown.gpus for part in gpu.parts}
    drawing = joined(rows)
    notes = joined(_NOTE.fill(worded(note, CELL)) for note in view.notes)
    return _VIEW.fill(
        bars.STYLE,
        view.model,
        view.work,
        colour,
        verdict(view),
        drawing if shown is view else _FADED.fill(drawing),
        bars.legend((kind, name) for kind, name in _LEGEND.items() if kind in present),
        _NOTES.fill(notes) if notes else "",
        _table(view, table_open) if view.gpus else "",
    )


def part_place(row: int, column: int) -> str:
    """Return the `bars.Segment.place` of a GPU's part, by the numbers of both."""
    return f"{row}.{column}"


def device_map_text(view: Occupancy) -> str:
    """Return the view as text: the same verdict, bars of letters, and lines of their parts."""
    largest = _largest(view)
    lines = [f"{view.model}, {view.work}", verdict(view)]
    for gpu in view.gpus:
        width = max(round(_TEXT_WIDTH * gpu.total_bytes / largest), 4)
        segments = [_segment(part) for part in gpu.parts]
        lines.append(_title(gpu))
        lines.append(f"  {bars.text_bar(segments, gpu.total_bytes, width)}")
        parts = [
            f"{segment.letter} {part.name} {_size(part)}"
            for segment, part in zip(segments, gpu.parts, strict=True)
        ]
        lines.append(f"  {' · '.join(parts)}")
        lines.extend(
            f"  -> {hop.target}: {_crossing(hop)}" for hop in view.hops if hop.source == gpu.device
        )
    return printable("\n".join([*lines, *(worded(note, CELL) for note in view.notes)]))


def _largest(view: Occupancy) -> int:
    """Return the bytes of the widest bar: a GPU, or more if the plan does not fit."""
    return max(
        (max(gpu.total_bytes, _drawn(gpu)) for gpu in view.gpus),
        default=1,
    )


def _working(gpu: OccupiedGPU) -> list[tuple[int, Part]]:
    """Return the parts that a model consists of and works with, each with its place."""
    return [(place, part) for place, part in enumerate(gpu.parts) if part.kind not in _BESIDE]


def _most_enlarged(view: Occupancy) -> int:
    """Return the most bytes of a GPU at work, if they are too few to be seen; else 0."""
    sizes = [sum(part.size_bytes for _, part in _working(gpu)) for gpu in view.gpus]
    most = max(sizes, default=0)
    return most if most < _FEW * _largest(view) else 0


def _drawn(gpu: OccupiedGPU) -> int:
    return sum(part.size_bytes for part in gpu.parts)


def _title(gpu: OccupiedGPU) -> str:
    # Planned, peaks included; what is there at the moment, the view of memory tells.
    full = "" if gpu.fullness is None else f", planned {_percent(gpu.fullness)} of {_usable(gpu)}"
    used = "" if gpu.planned_bytes else ", idle"
    size = readable_bytes(gpu.total_bytes) if gpu.usable_bytes is not None else _needs(gpu)
    return f"{gpu.device} {gpu.name}, {size}{full}{used}"


def _percent(fullness: float) -> str:
    """Format a fullness; never 100 % for one slightly below or above."""
    return f"{fullness:.1%}" if 0.99 < fullness < 1.01 else f"{fullness:.0%}"


def _needs(gpu: OccupiedGPU) -> str:
    return f"needs {readable_bytes(gpu.planned_bytes)}"


def _usable(gpu: OccupiedGPU) -> str:
    return f"{readable_bytes(max(gpu.usable_bytes or 0, 0))} usable"


def _size(part: Part) -> str:
    away = f" (+ {readable_bytes(part.host_bytes)} in host memory)" if part.host_bytes else ""
    return f"{readable_bytes(part.size_bytes)}{away}"


def _segment(part: Part, place: str = "") -> bars.Segment:
    lines = [f"{part.name}: {_size(part)}"]
    if part.dtype:
        lines[0] += f", {part.dtype}"
    if part.modules:
        lines += span(part.modules).split(", ")
    return bars.Segment(
        part.kind, part.size_bytes, part.name, "\n".join(lines), bool(part.host_bytes), place
    )


def _gpu(gpu: OccupiedGPU, largest: int, small: int, row: int) -> Html:
    segments = [_segment(part, part_place(row, column)) for column, part in enumerate(gpu.parts)]
    away = sum(part.host_bytes for part in gpu.parts)
    marks = _AWAY.fill(readable_bytes(away)) if away else ""
    title = _title(gpu)
    short = _drawn(gpu) > gpu.total_bytes
    share = gpu.total_bytes / largest
    bar = bars.bar(segments, gpu.total_bytes, share, title, short=short)
    at_work = [_segment(part, part_place(row, column)) for column, part in _working(gpu)]
    size = sum(segment.size for segment in at_work)
    larger = (
        bars.enlarged(at_work, small, largest // small, f"of it the model, {readable_bytes(size)}")
        if small and size
        else ""
    )
    return _GPU.fill(row, title, marks, bar, larger)


def _hop(hop: Hop) -> Html:
    return _HOP.fill(bars.MUTED, f"{hop.target}: {_crossing(hop)}")


def _crossing(hop: Hop) -> str:
    token = f"{readable_bytes(hop.token_bytes)} per token"
    if hop.image_bytes is None:
        return f"{hop.what}, {token}, once per image"
    image = f", {readable_bytes(hop.image_bytes)} per image" if hop.image_bytes else ""
    return f"{hop.what}, {token}{image}"


def _table(view: Occupancy, is_open: bool) -> Html:
    def rows() -> Iterator[tuple[str, ...]]:
        for gpu in view.gpus:
            for part in gpu.parts:
                yield (
                    gpu.device,
                    readable_bytes(part.size_bytes),
                    readable_bytes(part.host_bytes) if part.host_bytes else "",
                    part.name,
                    part.dtype,
                    span(part.modules),
                )

    head = ("GPU", "on it", "in host memory", "part", "dtype", "modules")
    return bars.table(head, rows(), numbers=2, summary="as a table", is_open=is_open)
