"""View of memory: the contents of each GPU now, and over the last minutes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from glm4v_magic.core.wording import counted, printable, readable_bytes
from glm4v_magic.dispatch.activity import Activity
from glm4v_magic.notebook.render import Html, MimeBundle, bars
from glm4v_magic.notebook.render.plans.activity import activity_line
from glm4v_magic.notebook.render.status import replica_words
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.core.model import Replica
    from glm4v_magic.hardware.readings import Reading

__all__ = [
    "BUCKETS",
    "MemoryRow",
    "MemoryView",
    "Peak",
    "memory_bundle",
    "memory_html",
    "memory_text",
]

BUCKETS = 100
"""Number of points of a history."""

_LEGEND = (
    ("weights", "this model's weights"),
    ("cache", "prompts and images kept"),
    ("kernel", "this kernel's other memory"),
    ("others", "other programs"),
    ("free", "free"),
)
_WIDTH, _HEIGHT, _MARGIN = 300, 30, 6  # of a history in a page
_TEXT_WIDTH, _TEXT_HISTORY = 50, 40
_FEW = 0.1  # of the widest bar; fewer bytes are drawn once more, larger
_LEVELS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak of one answer, in the `bucket` of the history in which it ended."""

    bucket: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """One memory, now and over the last minutes.

    Attributes:
        now: the latest reading.
        history: bytes that this kernel held in each of `BUCKETS` spans of time, the latest last;
            ``None`` where nothing was read.
        peaks: peaks of the answers within that time, the latest last.
    """

    now: Reading
    history: tuple[int | None, ...] = ()
    peaks: tuple[Peak, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryView:
    """Everything that the view of memory shows.

    Attributes:
        model: name of the model in use; empty if there is none.
        busy: whether a call is running.
        rows: one row for each GPU, or for the host.
        note: note for the reader.
        minutes: time span of the histories.
        activity: parts of the model that ran since the last reading.
        at: time of the view; ignored when views are compared.
        server: URL of the server that answers; empty if the model is loaded here.
        replicas: copies of the model that answer in processes of their own.
    """

    model: str
    busy: bool
    rows: tuple[MemoryRow, ...]
    note: str = ""
    minutes: int = 5
    activity: Activity = field(default_factory=Activity)
    at: str = field(default="", compare=False)
    server: str = ""
    replicas: tuple[Replica, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Lines below the headline: the note, and one for each replica."""
        words = replica_words(self.replicas)
        replicas = [f"{name}: {where}" for name, where in words]
        return [*([self.note] if self.note else []), *replicas]


def memory_bundle(view: MemoryView) -> MimeBundle:
    """Return the view as HTML and as text, with its time, since both outlive the kernel."""
    return {
        "text/plain": memory_text(view, dated=True),
        "text/html": memory_html(view, dated=True),
    }


def memory_html(view: MemoryView, *, dated: bool = False) -> str:
    """Return the view as HTML: bars with their histories, a legend, and a table.

    Args:
        view: what to show.
        dated: whether to show the time of the view; a live view has none.
    """
    largest = max((row.now.total_bytes or 0 for row in view.rows), default=0) or 1
    small = max((row.now.own_bytes or 0 for row in view.rows), default=0)
    small = small if small < _FEW * largest else 0
    return fill(
        "memory",
        style=bars.STYLE,
        muted=bars.MUTED,
        outline=bars.OUTLINE,
        headline=_headline(view, dated),
        notes=view.notes,
        rows=[_row(row, largest, small, view.minutes) for row in view.rows],
        axis=bars.axis(readable_bytes(largest)) if largest > 1 else "",
        legend=bars.legend(_LEGEND),
        table=_table(view, dated=dated),
    )


def memory_text(view: MemoryView, *, dated: bool = False) -> str:
    """Return the view as text; arguments as for `memory_html`."""
    largest = max((row.now.total_bytes or 0 for row in view.rows), default=0) or 1
    lines = [_headline(view, dated), *view.notes]
    for row in view.rows:
        lines.append(_title(row.now))
        total = row.now.total_bytes
        if total:
            segments = _segments(row.now)
            width = max(round(_TEXT_WIDTH * total / largest), 4)
            lines.append(f"  {bars.text_bar(segments, total, width)}")
            lines.append("  " + " · ".join(f"{s.letter} {s.detail}" for s in segments))
        lines.extend(f"  {line}" for line in _text_history(row, view.minutes))
    return printable("\n".join(lines))


def _headline(view: MemoryView, dated: bool) -> str:
    model = f"{view.model} is loaded" if view.model else "No model is loaded"
    if view.server:
        model = f"{view.model} answers at {view.server}; no model is loaded here"
    if view.replicas:
        model = f"{view.model} is loaded {counted(len(view.replicas), 'time')}, not in this process"
    state = f"{model}; a call is running" if view.busy else model
    # A view that outlives the kernel leaves out what was over in a moment.
    if view.activity.parts and not dated:
        state += f", {activity_line(view.activity)}"
    return f"{state}, as of {view.at}." if dated and view.at else f"{state}."


def _title(now: Reading) -> str:
    size = "size not told" if now.total_bytes is None else readable_bytes(now.total_bytes)
    return ", ".join([f"{now.device} {now.name}", size, *_vitals(now)])


def _vitals(now: Reading) -> Iterator[str]:
    if now.utilization is not None:
        yield f"{now.utilization:.0%} busy"
    if now.celsius is not None:
        yield f"{now.celsius} °C"
    if now.power_watts is not None:
        limit = "" if now.power_limit_watts is None else f" of {now.power_limit_watts:.0f}"
        yield f"{now.power_watts:.0f}{limit} W"


def _segments(now: Reading) -> list[bars.Segment]:
    sizes = (now.weight_bytes, now.kept_bytes, now.kernel_bytes, now.other_bytes, now.free_bytes)
    short = ("weights", "kept", "kernel", "others", "free")
    return [
        bars.Segment(kind, size, label, f"{name}: {readable_bytes(size)}")
        for (kind, name), size, label in zip(_LEGEND, sizes, short, strict=True)
        if size
    ]


@dataclass(frozen=True, slots=True)
class _PeakMark:
    """A peak in the drawing of a history: where it is in px, and its size in words."""

    x: int
    y: int
    size: str


@dataclass(frozen=True, slots=True)
class _HistoryView:
    """A history as ``memory.html`` draws it, sizes in px.

    Attributes:
        words: what it shows, in words.
        width, height: size of the drawing.
        points: the line, as the ``points`` of an SVG polyline.
        peaks: peaks of the answers.
    """

    words: str
    width: int
    height: int
    points: str
    peaks: tuple[_PeakMark, ...]


@dataclass(frozen=True, slots=True)
class _RowView:
    """A row as ``memory.html`` shows it.

    Attributes:
        title: name, size and readings.
        bar: what the memory holds; empty if its size is unknown.
        larger: what this kernel holds once more, if it is too little to be seen; else empty.
        history: the last minutes; ``None`` if nothing was read.
    """

    title: str
    bar: Html
    larger: Html
    history: _HistoryView | None


def _row(row: MemoryRow, largest: int, small: int, minutes: int) -> _RowView:
    now = row.now
    title = _title(now)
    segments = _segments(now)
    whole = (
        bars.bar(
            segments,
            now.total_bytes,
            now.total_bytes / largest,
            f"{title}: {', '.join(segment.detail for segment in segments)}",
            reachable=False,
        )
        if now.total_bytes
        else Html()
    )
    own = [each for each in segments if each.kind not in ("others", "free")]
    held = sum(each.size for each in own)
    caption = f"of it this kernel's, {readable_bytes(held)}"
    larger = bars.enlarged(own, small, largest // small, caption) if small and held else Html()
    return _RowView(title, whole, larger, _history(row, minutes))


def _scale(row: MemoryRow) -> int:
    """Return the top of a history: its maximum plus a tenth, so that small models show."""
    sizes = [size for size in row.history if size is not None]
    return max([*sizes, *(peak.size_bytes for peak in row.peaks)]) * 11 // 10 + 1


def _history(row: MemoryRow, minutes: int) -> _HistoryView | None:
    known = [(place, size) for place, size in enumerate(row.history) if size is not None]
    if not known:
        return None
    top = _scale(row)

    def point(place: int, size: int) -> tuple[int, int]:
        across = _MARGIN + place * (_WIDTH - 2 * _MARGIN) // (BUCKETS - 1)
        return across, _HEIGHT - size * (_HEIGHT - 2) // top

    return _HistoryView(
        words=_words(row, minutes),
        width=_WIDTH,
        height=_HEIGHT + 6,
        points=" ".join("{},{}".format(*point(*each)) for each in known),
        peaks=tuple(
            _PeakMark(*point(peak.bucket, peak.size_bytes), readable_bytes(peak.size_bytes))
            for peak in row.peaks
        ),
    )


def _words(row: MemoryRow, minutes: int) -> str:
    sizes = [size for size in row.history if size is not None]
    own = row.now.own_bytes
    now = "" if own is None else f"now {readable_bytes(own)}, "
    words = f"this kernel over {minutes} minutes: {now}most {readable_bytes(max(sizes))}"
    if row.peaks:
        words += f"; ▼ peak of the last answer {readable_bytes(row.peaks[-1].size_bytes)}"
    return words


def _text_history(row: MemoryRow, minutes: int) -> Iterator[str]:
    if all(size is None for size in row.history):
        return
    top, step = _scale(row), BUCKETS / _TEXT_HISTORY
    line = ""
    for place in range(_TEXT_HISTORY):
        part = row.history[int(place * step) : int((place + 1) * step)]
        known = [size for size in part if size is not None]
        line += _LEVELS[max(known) * len(_LEVELS) // top] if known else " "
    yield f"{line.strip()}  {_words(row, minutes)}"


def _table(view: MemoryView, *, dated: bool) -> str:
    """Return a table with a column for each GPU: on a small page there is room for some of them."""

    def size(value: int | None) -> str:
        return "not told" if value is None else readable_bytes(value)

    now = [row.now for row in view.rows]
    rows = [
        ("weights", *(size(each.weight_bytes) for each in now)),
        ("kept", *(size(each.kept_bytes) for each in now)),
        ("kernel", *(size(each.kernel_bytes) for each in now)),
        ("others", *(size(each.other_bytes) for each in now)),
        ("free", *(size(each.free_bytes) for each in now)),
        ("total", *(size(each.total_bytes) for each in now)),
    ]
    if any(row.peaks for row in view.rows):
        peaks = (size(row.peaks[-1].size_bytes) if row.peaks else "" for row in view.rows)
        rows.append(("last peak", *peaks))
    head = ("", *(each.device for each in now))
    return bars.table(head, rows, numbers=len(now), label="memory in numbers" if dated else "")
