"""An evaluation: its scores in a line, a drawing of each, and the numbers of all in tables.

Drawings are SVG images on a ground of their own, so that a page of any colour shows them, and
follow the colours that the reader prefers. Nothing depends on colour: cells have their numbers,
what is right is framed, and whiskers and dashes are lines. Tables say all of it in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glm4v_magic.core.remarks import worded
from glm4v_magic.core.wording import columns, counted, padded, printable
from glm4v_magic.notebook.next_steps import CELL
from glm4v_magic.notebook.render import Html, MimeBundle
from glm4v_magic.notebook.render.answers.boxes import svg_uri
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.mapping.evaluation import (
        Calibration,
        Confusion,
        Evaluation,
        Score,
        ScoredRow,
    )

__all__ = ["confusion_svg", "evaluation_bundle", "kinds_svg", "reliability_svg"]

_MOST = 20
"""Most kinds, choices or rows that are shown; all of them are in the result."""

_NAME, _CELL, _HEAD = 16, 9, 9  # columns of text that fit a name, a cell, and its head
_LINE = 26  # pixels from one bar to the next
_LEFT, _ACROSS = 120, 190  # pixels of names, and of the longest bar
_WIDE, _HIGH = 66, 34  # pixels of a cell
_SIDE = 220  # pixels of the reliability diagram
_OTHER = "other"
_PLACES = ((0.0, "0"), (0.5, "50 %"), (1.0, "100 %"))


@dataclass(frozen=True, slots=True)
class _Bar:
    """A score as a bar: where it is, how long it and its interval are, and what it says."""

    y: int
    name: str
    width: float
    low: float
    high: float
    words: str
    has_interval: bool


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell of the confusion table."""

    x: int
    y: int
    count: int
    shade: float
    is_right: bool


@dataclass(frozen=True, slots=True)
class _Label:
    """Text at a place, in pixels."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class _Column:
    """A bin of the reliability diagram, in pixels: its bar, and the mean probability in it."""

    x: float
    y: float
    width: float
    height: float
    at: float
    count: str


@dataclass(frozen=True, slots=True)
class _Drawing:
    """A drawing: its URI, its width in pixels, and what it shows, in words."""

    uri: str
    width: int
    words: str


@dataclass(frozen=True, slots=True)
class _Table:
    """A table: what it is about, the titles of its columns, its rows, and what is left out."""

    name: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    more: str = ""


def evaluation_bundle(evaluation: Evaluation) -> MimeBundle:
    """Return an evaluation as text and as HTML."""
    lines = _summary(evaluation)
    tables = list(_tables(evaluation))
    return {
        "text/plain": "\n".join([*lines, *(line for each in tables for line in _text(each))]),
        "text/html": fill(
            "evaluation", lines=lines, drawings=list(_drawings(evaluation)), tables=tables
        ),
    }


def _summary(evaluation: Evaluation) -> list[str]:
    score = evaluation.score
    if not score.rows:
        lines = ["No row counts: none has both an answer and an expected one."]
    else:
        lines = [
            f"{score.right:,} of {counted(score.rows, 'row')} right: {_percent(score.accuracy)} "
            f"({_interval(score)})."
        ]
    for number, what in (
        (evaluation.failed, "failed"),
        (evaluation.unknown, "without an expected answer"),
        (evaluation.unfinished, "not finished"),
    ):
        if number:
            lines.append(f"{counted(number, 'row')} {what}: not counted.")
    calibration = evaluation.calibration
    if calibration is not None:
        lines.append(
            f"Expected calibration error {calibration.ece:.3f}, in "
            f"{counted(len(calibration.bins), 'bin')} of {counted(calibration.rows, 'row')}."
        )
    elif evaluation.confusion is not None and score.rows:
        lines.append("No calibration: the server told no probabilities.")
    return lines


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _interval(score: Score) -> str:
    return f"95 % interval {_percent(score.low)} to {_percent(score.high)}"


def _drawings(evaluation: Evaluation) -> Iterator[_Drawing]:
    if evaluation.score.rows and evaluation.kinds:
        svg, width, words = kinds_svg(evaluation)
        yield _Drawing(svg_uri(svg), width, words)
    confusion = evaluation.confusion
    if confusion is not None and evaluation.score.rows and len(confusion.said) <= _MOST:
        svg, width, words = confusion_svg(confusion)
        yield _Drawing(svg_uri(svg), width, words)
    if evaluation.calibration is not None:
        svg, width, words = reliability_svg(evaluation.calibration)
        yield _Drawing(svg_uri(svg), width, words)


def kinds_svg(evaluation: Evaluation) -> tuple[Html, int, str]:
    """Return the accuracy of all rows and of each kind as bars, their width, and their words."""
    scores = [("all", evaluation.score), *((each.name, each.score) for each in evaluation.kinds)]
    bars = [_bar(24 + at * _LINE, *each) for at, each in enumerate(scores[: _MOST + 1])]
    words = "; ".join(f"{each.name} {each.words}" for each in bars)
    more = len(scores) - len(bars)
    title = f"Accuracy by {_cut(evaluation.by, 2 * _NAME)}"
    width = _LEFT + _ACROSS + 110
    height = 24 + len(bars) * _LINE + 26 + (14 if more else 0)
    svg = fill(
        "kinds_svg",
        width=width,
        height=height,
        title=title,
        words=words,
        left=_LEFT,
        bars=bars,
        bottom=24 + len(bars) * _LINE,
        ticks=[_Label(_LEFT + share * _ACROSS, 0, text) for share, text in _PLACES],
        more=f"and {counted(more, 'more kind')}" if more else "",
    )
    return svg, width, f"{title}: {words}"


def _bar(y: int, name: str, score: Score) -> _Bar:
    share = score.accuracy
    return _Bar(
        y=y,
        name=_cut(name, _NAME),
        width=round(_ACROSS * (share or 0.0), 1),
        low=round(_LEFT + _ACROSS * score.low, 1),
        high=round(_LEFT + _ACROSS * score.high, 1),
        words=f"{score.right:,} of {score.rows:,}"
        + (f", {share:.0%}" if share is not None else ""),
        has_interval=bool(score.rows),
    )


def confusion_svg(confusion: Confusion) -> tuple[Html, int, str]:
    """Return a confusion table as a drawing, its width, and what it shows in words."""
    most = max(max(row) for row in confusion.counts) or 1
    top = 50
    cells = [
        _Cell(
            x=_LEFT + column * _WIDE,
            y=top + row * _HIGH,
            count=count,
            shade=round(0.55 * count / most, 3),
            is_right=confusion.expected[row] == confusion.said[column],
        )
        for row, counts in enumerate(confusion.counts)
        for column, count in enumerate(counts)
    ]
    heads = [
        _Label(_LEFT + (at + 0.5) * _WIDE, 42, _cut(_said(each), _HEAD))
        for at, each in enumerate(confusion.said)
    ]
    names = [
        _Label(_LEFT - 8, top + (at + 0.5) * _HIGH + 4, _cut(each, _NAME))
        for at, each in enumerate(confusion.expected)
    ]
    words = "; ".join(
        f"{_cut(confusion.expected[row], _NAME)} as {_cut(_said(confusion.said[column]), _NAME)} "
        f"{count:,}"
        for row, counts in enumerate(confusion.counts)
        for column, count in enumerate(counts)
        if count
    )
    width = _LEFT + len(heads) * _WIDE + 12
    title = "Expected and given answers"
    svg = fill(
        "confusion_svg",
        width=width,
        height=top + len(names) * _HIGH + 12,
        title=title,
        words=words,
        left=_LEFT,
        cell_width=_WIDE,
        cell_height=_HIGH,
        cells=cells,
        heads=heads,
        names=names,
    )
    return svg, width, f"{title}: {words}"


def reliability_svg(calibration: Calibration) -> tuple[Html, int, str]:
    """Return a reliability diagram, its width, and what it shows in words."""
    left, top = 52, 34
    few = len(calibration.bins) <= 10
    columns = [
        _Column(
            x=round(left + each.low * _SIDE, 1),
            y=round(top + (1 - share) * _SIDE, 1),
            width=round((each.high - each.low) * _SIDE, 1),
            height=round(share * _SIDE, 1),
            at=round(left + each.confidence * _SIDE, 1),
            count=f"{each.rows}" if few and each.rows < 1000 else "",
        )
        for each in calibration.bins
        for share in [each.accuracy]
        if share is not None
    ]
    words = "; ".join(
        f"{each.low:.0%} to {each.high:.0%}: mean probability {each.confidence:.0%}, right "
        f"{share:.0%} of {counted(each.rows, 'row')}"
        for each in calibration.bins
        for share in [each.accuracy]
        if share is not None
    )
    title = f"Reliability, ECE {calibration.ece:.3f}"
    width = left + _SIDE + 28
    svg = fill(
        "reliability_svg",
        width=width,
        height=top + _SIDE + 60,
        title=title,
        words=words,
        left=left,
        top=top,
        side=_SIDE,
        columns=columns,
        across=[_Label(left + share * _SIDE, top + _SIDE + 16, text) for share, text in _PLACES],
        up=[_Label(left - 6, top + (1 - share) * _SIDE + 4, text) for share, text in _PLACES],
    )
    return svg, width, f"{title}: {words}"


def _said(choice: str | None) -> str:
    return _OTHER if choice is None else choice


def _cut(text: str, most: int) -> str:
    """Return text on one line and in at most so many columns of a monospaced font."""
    text = " ".join(printable(text).split())
    kept, room = "", most
    for character in text:
        room -= columns(character)
        if room < (0 if len(kept) == len(text) - 1 else 1):
            return f"{kept}…"
        kept += character
    return kept


def _tables(evaluation: Evaluation) -> Iterator[_Table]:
    if evaluation.kinds:
        yield _of_kinds(evaluation)
    if evaluation.confusion is not None and evaluation.score.rows:
        yield _of_confusion(evaluation.confusion)
    if evaluation.calibration is not None:
        yield _of_bins(evaluation.calibration)
    for name, rows in (
        ("wrong", evaluation.wrong),
        ("not counted", [row for row in evaluation.rows if row.is_right is None]),
    ):
        if rows:
            yield _of_rows(f"{counted(len(rows), 'row')} {name}", rows)


def _of_kinds(evaluation: Evaluation) -> _Table:
    rows = [
        (
            _cut(each.name, 60),
            f"{each.score.rows:,}",
            f"{each.score.right:,}",
            _percent(each.score.accuracy),
            _interval(each.score) if each.score.rows else "",
        )
        for each in evaluation.kinds[:_MOST]
    ]
    by = _cut(evaluation.by, 60)
    return _Table(
        f"Accuracy by {by}",
        (by, "rows", "right", "accuracy", "from the bootstrap"),
        rows,
        _more(len(evaluation.kinds), "kind"),
    )


def _of_confusion(confusion: Confusion) -> _Table:
    said = [_cut(_said(each), 30) for each in confusion.said[:_MOST]]
    rows = [
        (_cut(name, 60), *(f"{count:,}" for count in counts[:_MOST]))
        for name, counts in zip(confusion.expected[:_MOST], confusion.counts, strict=False)
    ]
    return _Table(
        "Expected (rows) and given (columns)",
        ("", *said),
        rows,
        _more(len(confusion.expected), "choice"),
    )


def _of_bins(calibration: Calibration) -> _Table:
    rows = [
        (
            f"{_percent(each.low)} to {_percent(each.high)}",
            f"{each.rows:,}",
            _percent(each.confidence),
            _percent(each.accuracy),
        )
        for each in calibration.bins
        if each.rows
    ]
    titles = ("probability", "rows", "mean probability", "right")
    return _Table(f"Calibration, error {calibration.ece:.3f}", titles, rows)


def _of_rows(name: str, rows: Sequence[ScoredRow]) -> _Table:
    shown = [
        (
            f"{row.index}",
            _cut(row.name, 60),
            "" if row.expected is None else _cut(str(row.expected), 100),
            "" if row.answer is None else _cut(row.answer, 100),
            _percent(row.probability),
            "" if row.fault is None else _cut(worded(row.fault, CELL), 200),
        )
        for row in rows[:_MOST]
    ]
    titles = ("#", "item", "expected", "answer", "probability", "error")
    kept = [at for at in range(len(titles)) if at < 4 or any(row[at] for row in shown)]
    return _Table(
        name,
        [titles[at] for at in kept],
        [[row[at] for at in kept] for row in shown],
        _more(len(rows), "row"),
    )


def _more(count: int, noun: str) -> str:
    return f"and {counted(count - _MOST, f'more {noun}')}" if count > _MOST else ""


def _text(table: _Table) -> list[str]:
    rows = [list(table.titles), *map(list, table.rows)]
    widths = [max(columns(row[at]) for row in rows) for at in range(len(table.titles))]
    lines = [
        "  ".join(padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return ["", f"{table.name}:", *lines, *filter(None, [table.more])]
