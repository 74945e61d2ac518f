"""Rows of a map: a progress bar while they are asked, and a table of their answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glm4v_magic.core.remarks import worded
from glm4v_magic.core.rows import Totals
from glm4v_magic.core.wording import (
    columns,
    counted,
    json_text,
    padded,
    printable,
    readable_seconds,
)
from glm4v_magic.images.pdf import name_and_page
from glm4v_magic.notebook.next_steps import CELL
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.answer import NO_LOGPROBS, without_told
from glm4v_magic.notebook.render.answers.image import data_uri
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.core.events import Waiting
    from glm4v_magic.core.image import SourcedImage
    from glm4v_magic.core.rows import AnsweredRow, Progress

__all__ = [
    "MOST_SHOWN",
    "go_on",
    "rows_answering_line",
    "rows_bundle",
    "rows_progress_bundle",
    "rows_progress_line",
    "summary",
]

MOST_SHOWN = 20
"""Maximum number of rows in a table; all of them are in the variable."""

_MOST_CHARACTERS = 300
_MANY = 12
_TYPED = ("json", "code")  # formats shown in a monospaced font
_ENDINGS = {
    "length": "cut off at the token limit",
    "interrupted": "stopped by you",
    "failed": "broken off by an error",
}


def rows_answering_line(model: str, done: int, total: int) -> str:
    """Return ``demo is answering 40 rows, half done…``: read out, so it changes rarely.

    Args:
        model: name of the model.
        done: rows that are answered or have failed.
        total: number of all rows; with few rows, the progress is left out.
    """
    quarter = 4 * done // total if total >= _MANY else 0
    part = ("", ", a quarter done", ", half done", ", three quarters done")[min(quarter, 3)]
    return f"{printable(model)} is answering {counted(total, 'row')}{part}…"


def rows_progress_line(progress: Progress, waiting: Waiting | None = None) -> str:
    """Return ``12 of 40 rows, 1 failed, 3 reused, 2.1 rows/s, 13 s left, 8 at once``.

    Args:
        progress: how far the rows are.
        waiting: what is waited for while nothing comes, in place of speed and time.
    """
    done = progress.done
    asked = done - progress.reused - progress.failed
    parts = [f"{done:,} of {counted(progress.total, 'row')}"]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.reused:
        parts.append(f"{progress.reused:,} reused")
    if waiting is None and asked > 0 and progress.seconds > 0:
        speed = asked / progress.seconds
        parts.append(f"{speed:.1f} rows/s")
        parts.append(f"{readable_seconds((progress.total - done) / speed)} left")
    if progress.batch_size:
        parts.append(f"{progress.batch_size} at once")
    if waiting is not None:
        parts.append(
            f"nothing from {printable(waiting.on)} for {readable_seconds(waiting.seconds)}"
        )
    return ", ".join(parts)


def rows_progress_bundle(progress: Progress, waiting: Waiting | None = None) -> MimeBundle:
    """Return a progress bar beside `rows_progress_line`; as text, the line alone."""
    line = rows_progress_line(progress, waiting)
    html = fill("progress", line=line, done=progress.done, total=progress.total, label="Rows")
    return {"text/plain": line, "text/html": html}


def summary(rows: Sequence[AnsweredRow], total: int, *, fresh: bool = False) -> str:
    """Return a sentence such as ``37 of 40 rows answered, 12 of them from before, 3 failed``.

    Args:
        rows: rows that were answered or failed.
        total: number of all rows.
        fresh: see `Progress`.
    """
    counts = Totals.of(rows).counts
    answered, failed, reused = counts.answered, counts.failed, counts.reused
    line = f"{answered:,} of {counted(total, 'row')} answered"
    if reused:
        line += f", {reused:,} of them from before"
    if failed:
        line += f", {failed:,} failed"
    if answered + failed < total:
        line += f", {total - answered - failed:,} not finished; {go_on(fresh)}"
    return f"{line}."


def go_on(fresh: bool) -> str:
    """Return what goes on with rows that were not asked."""
    return f"run the cell {'without --fresh' if fresh else 'again'} to go on"


def rows_bundle(
    rows: Sequence[AnsweredRow],
    total: int | None = None,
    told: Collection[str] = (),
    *,
    fresh: bool = False,
) -> MimeBundle:
    """Return a table of rows, with a summary above and the usage below.

    Args:
        rows: rows that were answered or failed, in their order.
        total: number of all rows; by default that of `rows`.
        told: as in `footnotes` of an answer.
        fresh: see `Progress`.
    """
    total = len(rows) if total is None else total
    shown = rows[:MOST_SHOWN]
    below = [*_besides(Totals.of(rows).besides), *_footnotes(rows, told)]
    if len(rows) > len(shown):
        below.insert(0, f"and {counted(len(rows) - len(shown), 'more row')}")
    line = summary(rows, total, fresh=fresh)
    return {
        "text/plain": "\n".join([line, *_text(shown), *below]),
        "text/html": _html(line, shown, below),
    }


def _besides(count: int) -> list[str]:
    if not count:
        return []
    return [f"The file keeps {counted(count, 'answer')} of earlier runs to other rows, at its end."]


def _footnotes(rows: Sequence[AnsweredRow], told: Collection[str]) -> list[str]:
    totals = Totals.of(rows)
    if not totals.model:
        return []
    facts = totals.model
    if totals.prompt_tokens is not None:
        facts += f" · {counted(totals.prompt_tokens, 'token')} in"
    if totals.new_tokens is not None:
        facts += f" · {counted(totals.new_tokens, 'token')} out"
    notes = (facts, NO_LOGPROBS if totals.untold else "", without_told(totals.notice, told))
    return [printable(each) for each in notes if each]


def _item(row: AnsweredRow) -> str:
    """Return the label of a row: a value itself, or the name of an image or a page."""
    is_page = isinstance(row.item, str) and name_and_page(row.item)[1] is not None
    is_value = isinstance(row.item, str | int | float) and not (is_page and ", page " in row.name)
    return _shortened(str(row.item) if is_value else row.name)


def _said(row: AnsweredRow) -> str:
    """Return the answer as text: its parsed value, or its text."""
    if row.answer is None:
        return ""
    if row.done and row.answer.format == "json":
        return _shortened(json_text(row.value))
    return _shortened(row.value if row.value is not None else row.answer.text)


def _note(row: AnsweredRow) -> str:
    """Return a note on an answer."""
    if row.answer is None:
        return "" if row.failure is not None else "not asked"
    corrected = "corrected once" if row.answer.corrected else ""
    share = "" if row.probability is None else f"{row.probability:.1%}"
    return _ENDINGS.get(row.answer.finish_reason) or corrected or share


def _shortened(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


def _text(rows: Sequence[AnsweredRow]) -> list[str]:
    cells = [(str(row.index), _one_line(_item(row), 40), _cell(row)) for row in rows]
    widths = [max((columns(row[column]) for row in cells), default=0) for column in (0, 1)]
    return [
        f"{number:>{widths[0]}}  {padded(item, widths[1])}  {answer}".rstrip()
        for number, item, answer in cells
    ]


def _cell(row: AnsweredRow) -> str:
    parts = []
    if row.failure is not None:
        parts.append(f"error: {_one_line(_shortened(worded(row.failure, CELL)), 160)}")
    said = _one_line(_said(row), 100)
    if said:
        parts.append(f"answer: {said}" if parts else said)
    note = _note(row)
    return " ".join([*parts, f"[{note}]"] if note else parts)


def _one_line(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _html(summary: str, rows: Sequence[AnsweredRow], below: Sequence[str]) -> str:
    shared = _shared(rows)
    with_images = not shared and any(row.answer and row.answer.images for row in rows)
    return fill(
        "rows",
        summary=summary,
        shared=[_image_view(each) for each in shared],
        titles=("#", *(("image",) if with_images else ()), "item", "answer"),
        with_images=with_images,
        rows=[_row_view(row) for row in rows],
        below=below,
    )


def _shared(rows: Sequence[AnsweredRow]) -> Sequence[SourcedImage]:
    """Return the images if all rows have the same ones, for which a column would be useless."""
    of_rows = [row.answer.images for row in rows if row.answer is not None]
    # Each row has thumbnails of its own, of the same pixels.
    distinct = {
        tuple((each.source, each.original_size, each.image.tobytes()) for each in images)
        for images in of_rows
    }
    return of_rows[0] if len(of_rows) > 1 and len(distinct) == 1 else ()


def _image_view(image: SourcedImage) -> _ImageView:
    shown = image.image
    return _ImageView(data_uri(shown), image.source, shown.width, shown.height)


@dataclass(frozen=True, slots=True)
class _ImageView:
    """An image of a row, in full, as ``rows.html`` shows it."""

    data_uri: str
    source: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class _RowView:
    """A row as ``rows.html`` shows it; a row that failed may have an answer, too.

    Attributes:
        index: number of the row.
        item: label of the row.
        images: images that were asked about.
        error: what went wrong; ``None`` if nothing did.
        said: the answer; ``None`` if the row failed before there was one.
        family: font family of the answer.
        note: how the answer ended, if not as it should.
    """

    index: int
    item: str
    images: tuple[_ImageView, ...]
    error: str | None
    said: str | None
    family: str
    note: str


def _row_view(row: AnsweredRow) -> _RowView:
    answer = row.answer
    return _RowView(
        index=row.index,
        item=_item(row),
        images=tuple(_image_view(each) for each in (() if answer is None else answer.images)),
        error=None if row.failure is None else _shortened(worded(row.failure, CELL)),
        said=_said(row) if answer is not None or row.failure is None else None,
        family="monospace" if answer is not None and answer.format in _TYPED else "inherit",
        note=_note(row),
    )
