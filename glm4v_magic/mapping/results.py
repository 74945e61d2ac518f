"""Result of a map: a list of rows, or a DataFrame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glm4v_magic.calls.forms import Form
from glm4v_magic.core.remarks import PYTHON, Words, worded
from glm4v_magic.core.rows import AnsweredRow, Rows
from glm4v_magic.mapping.items import is_dataframe

if TYPE_CHECKING:
    from glm4v_magic.mapping.items import Items, PlannedRow

__all__ = ["new_names", "result_of"]

_NEW = (
    "answer", "value", "probability", "boxes", "points", "error", "finish_reason", "new_tokens",
    "seed",
)  # fmt: skip
_LAST = re.compile(rf"{_NEW[-1]}(_[0-9]+)")


def result_of(
    rows: Sequence[PlannedRow],
    done: Sequence[AnsweredRow],
    items: Items,
    form: Form = Form(),  # noqa: B008  frozen
    words: Words = PYTHON,
) -> Any:
    """Return what `Session.map` returns.

    Args:
        rows: all rows.
        done: rows that were answered or failed.
        items: items of the rows.
        form: form of the answers.
        words: front end that words the column ``error`` of a DataFrame.

    Returns:
        `Rows` in their order; for a Series or DataFrame, a DataFrame with its index and columns,
        followed by ``answer``, ``value`` (for ``json`` and ``code``), ``probability`` of the answer
        (for choices), ``boxes`` and ``points`` (if any row has some), ``error``, ``finish_reason``,
        ``new_tokens`` and ``seed``. If one of these names is taken, all of them get the same
        number: ``answer_2``.
    """
    by_index = {row.index: row for row in done}
    result = Rows(
        by_index.get(row.index) or AnsweredRow(row.index, row.name, row.item, row.prompt)
        for row in rows
    )
    if items.table is None:
        return result
    return _frame(result, items.table, form, words)


def new_names(result: Any) -> list[str]:
    """Return the columns that `result_of` added, if they have other names than usual."""
    found = _LAST.fullmatch(str(result.columns[-1])) if is_dataframe(result) else None
    if found is None:
        return []
    return [
        name
        for name in result.columns
        if isinstance(name, str) and name.endswith(found[1]) and name.removesuffix(found[1]) in _NEW
    ]


def _frame(rows: Rows, table: Any, form: Form, words: Words) -> Any:
    import pandas as pd

    if isinstance(table, pd.Series):
        name = "item" if table.name is None else table.name
        frame = table.to_frame(name)
    else:
        frame = table.copy()
    with_values = form.format in ("json", "code")
    shares = [row.probability for row in rows]
    # Their names: `_NEW`.
    columns: dict[str, tuple[list[Any], str]] = {
        "answer": ([row.text for row in rows], "object"),
        **({"value": ([row.value for row in rows], "object")} if with_values else {}),
        **({"probability": (shares, "float64")} if form.choices else {}),
        **_marked(rows),
        "error": ([_error(row, words) for row in rows], "object"),
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


def _marked(rows: Rows) -> dict[str, tuple[list[Any], str]]:
    """Return the columns of boxes and points, each only if any row has some."""
    boxes = [row.answer and row.answer.boxes for row in rows]
    points = [row.answer and row.answer.points for row in rows]
    return {
        **({"boxes": (boxes, "object")} if any(boxes) else {}),
        **({"points": (points, "object")} if any(points) else {}),
    }


def _error(row: AnsweredRow, words: Words) -> str | None:
    return None if row.fault is None else worded(row.fault, words)
