"""Rows that were asked: each with its answer or its error, how far they are, and their table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glm4v_magic.conversation import Answer, Format

if TYPE_CHECKING:
    from glm4v_magic.rows import Items, PlannedRow

__all__ = ["AnsweredRow", "Progress", "Rows", "result_of"]


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """A row with its answer or its error; with neither if it was not asked before an interrupt.

    Attributes:
        index: its position, from 0.
        name: of its item.
        item: as it was given.
        prompt: what was asked, expressions expanded.
        answer: what the model said; its pictures are small copies, so that thousands of rows fit
            in memory. An interrupt leaves answers with ``finish_reason`` ``interrupted``.
        error: why there is no answer, or why the answer is not what was asked for: it is not in
            its form.
        reused: whether the answer is from an earlier run.
    """

    index: int
    name: str
    item: object
    prompt: str
    answer: Answer | None = None
    error: str | None = None
    reused: bool = False

    @property
    def text(self) -> str | None:
        """What the model said."""
        return None if self.answer is None else self.answer.text

    @property
    def value(self) -> Any:
        """What the answer holds in its form: of ``json`` and ``code``; see `Answer`."""
        return None if self.answer is None else self.answer.value

    @property
    def finish_reason(self) -> str | None:
        """Of the answer; see `Answer`."""
        return None if self.answer is None else self.answer.finish_reason

    @property
    def done(self) -> bool:
        """Whether the answer is complete, and in its form."""
        return self.error is None and self.finish_reason not in (None, "interrupted")

    def __str__(self) -> str:
        return self.text or ""


class Rows(list[AnsweredRow]):
    """The rows of a list, folder or pattern, in order."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        rows: those that are done so far or have failed, in the order in which that happened.
        total: of all rows.
        seconds: since the first row was asked.
        batch_size: rows that are asked at once; 0 before the first.
        result: returns what `Session.map` would return now: what there is when a run fails.
    """

    rows: Sequence[AnsweredRow]
    total: int
    seconds: float
    batch_size: int
    result: Callable[[], Any]

    @property
    def answered(self) -> int:
        """Rows with a complete answer."""
        return sum(row.done for row in self.rows)

    @property
    def failed(self) -> int:
        """Rows with an error."""
        return sum(row.error is not None for row in self.rows)

    @property
    def reused(self) -> int:
        """Rows with a complete answer from an earlier run."""
        return sum(row.reused and row.done for row in self.rows)


def result_of(
    rows: Sequence[PlannedRow],
    done: Sequence[AnsweredRow],
    items: Items,
    format: Format = "markdown",  # noqa: A002  as the option of the magic
) -> Any:
    """Return what `Session.map` returns.

    Args:
        rows: all of them.
        done: those that were answered or failed.
        items: what the rows are from.
        format: of the answers.

    Returns:
        `Rows` in their order. Of a Series or DataFrame a DataFrame with its index and columns, and
        behind them ``answer``, for ``json`` and ``code`` ``value``, then ``error``,
        ``finish_reason``, ``new_tokens`` and ``seed``; if one of these names is taken, all of them
        get the same number: ``answer_2``.
    """
    by_index = {row.index: row for row in done}
    result = Rows(
        by_index.get(row.index) or AnsweredRow(row.index, row.name, row.item, row.prompt)
        for row in rows
    )
    if items.table is None:
        return result
    return _frame(result, items.table, with_values=format in ("json", "code"))


def _frame(rows: Rows, table: Any, *, with_values: bool) -> Any:
    import pandas as pd

    if isinstance(table, pd.Series):
        name = "item" if table.name is None else table.name
        frame = table.to_frame(name)
    else:
        frame = table.copy()
    columns: dict[str, tuple[list[Any], str]] = {
        "answer": ([row.text for row in rows], "object"),
        **({"value": ([row.value for row in rows], "object")} if with_values else {}),
        "error": ([row.error for row in rows], "object"),
        "finish_reason": ([row.finish_reason for row in rows], "object"),
        "new_tokens": ([row.answer and row.answer.usage.new_tokens for row in rows], "Int64"),
        "seed": ([row.answer and row.answer.seed for row in rows], "Int64"),
    }
    taken = set(frame.columns)
    suffix, number = "", 1
    while any(f"{name}{suffix}" in taken for name in columns):
        number += 1
        suffix = f"_{number}"
    for name, (values, dtype) in columns.items():
        frame[f"{name}{suffix}"] = pd.Series(values, index=frame.index, dtype=dtype)
    return frame
