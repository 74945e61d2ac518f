"""`Evaluation`: the rows of a map held against answers that are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glm4v_magic.core.remarks import PYTHON, Text, worded

__all__ = ["Bin", "Calibration", "Confusion", "Evaluation", "Kind", "Score", "ScoredRow"]


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row with the answer that was expected.

    Attributes:
        index: number of the row, from 0.
        name: name of the item.
        expected: the known answer, as the data has it; ``None`` if it is missing there.
        answer: text of the model's answer; ``None`` if there is none.
        is_right: whether the two agree; ``None`` if the row does not count, because one of them is
            missing or the answer was interrupted.
        probability: probability of the answer among the choices; ``None`` without choices.
        choices: probability of each choice; empty without choices.
        kind: what the column ``by`` has for it; empty without one.
        fault: why there is no answer, or what is wrong with it; a front end words it with
            `core.remarks.worded`.
    """

    index: int
    name: str
    expected: object
    answer: str | None = None
    is_right: bool | None = None
    probability: float | None = None
    choices: Mapping[str, float] = field(default_factory=dict)
    kind: str = ""
    fault: Text | None = None

    @property
    def error(self) -> str | None:
        """The `fault` in words for Python."""
        return None if self.fault is None else worded(self.fault, PYTHON)

    @property
    def has_failed(self) -> bool:
        """Whether there is no answer because of an error."""
        return self.answer is None and self.fault is not None


@dataclass(frozen=True, slots=True)
class Score:
    """How many rows are right, and how far that could be chance.

    Attributes:
        rows: number of rows that count.
        right: number of those whose answer is the expected one.
        low: lower end of the 95 % interval of the accuracy, from the bootstrap; 0 without rows.
        high: upper end; 1 without rows.
    """

    rows: int
    right: int
    low: float
    high: float

    @property
    def accuracy(self) -> float | None:
        """Share of rows that are right; ``None`` without rows."""
        return self.right / self.rows if self.rows else None


@dataclass(frozen=True, slots=True)
class Kind:
    """The rows for which the column ``by`` has the same."""

    name: str
    score: Score


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows whose answer had a probability above `low` and up to `high`.

    Attributes:
        low: lower end; the first bin includes it.
        high: upper end.
        rows: number of rows.
        right: number of those whose answer is the expected one.
        confidence: mean probability of their answers; 0 without rows.
    """

    low: float
    high: float
    rows: int
    right: int
    confidence: float

    @property
    def accuracy(self) -> float | None:
        """Share of rows that are right; ``None`` without rows."""
        return self.right / self.rows if self.rows else None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether probabilities mean what they say: of answers with 80 %, are 80 % right?

    Attributes:
        ece: expected calibration error (Naeini et al., 2015, in the form of Guo et al., 2017): the
            mean distance of accuracy and probability over the bins, weighted by their rows.
        bins: bins of equal width.
        rows: number of rows with a probability.
    """

    ece: float
    bins: tuple[Bin, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often each choice was given where each was expected.

    Attributes:
        expected: the choices; those of the rows of `counts`.
        said: the choices, and ``None`` for any other answer, if there was one; those of its
            columns.
        counts: numbers of rows.
    """

    expected: tuple[str, ...]
    said: tuple[str | None, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well a model answered rows whose answers are known; see `Session.evaluate`.

    Attributes:
        score: the score of all rows that count.
        total: number of all rows.
        rows: all rows, in their order.
        column: name of the column with the expected answers.
        model: name of the model; empty if no row has an answer.
        by: name of the column that divides the rows into kinds; empty without one.
        kinds: the score of each kind, sorted by name, numbers by size.
        calibration: of the probabilities of choices; ``None`` without choices, or if a server
            tells no probabilities.
        confusion: ``None`` without choices.
        answers: the answers themselves: `core.rows.Rows`; with ``save`` what `Session.map` returns.
    """

    score: Score
    total: int
    rows: tuple[ScoredRow, ...] = field(repr=False)
    column: str = ""
    model: str = ""
    by: str = ""
    kinds: tuple[Kind, ...] = ()
    calibration: Calibration | None = None
    confusion: Confusion | None = None
    answers: Any = field(default=None, repr=False, compare=False)

    @property
    def accuracy(self) -> float | None:
        """Share of the rows that count whose answer is the expected one."""
        return self.score.accuracy

    @property
    def failed(self) -> int:
        """Number of rows without an answer because of an error; they do not count."""
        return sum(row.has_failed for row in self.rows)

    @property
    def unfinished(self) -> int:
        """Number of rows that were not asked, or whose answer was interrupted."""
        return sum(
            row.is_right is None and row.expected is not None and not row.has_failed
            for row in self.rows
        )

    @property
    def unknown(self) -> int:
        """Number of other rows for which no answer is known; they do not count."""
        return sum(row.expected is None and not row.has_failed for row in self.rows)

    @property
    def wrong(self) -> tuple[ScoredRow, ...]:
        """The rows whose answer is not the expected one."""
        return tuple(row for row in self.rows if row.is_right is False)

    def table(self) -> Any:
        """Return the scores as a DataFrame: a row for all, and one for each kind."""
        return _table(self)

    def to_dataframe(self) -> Any:
        """Return the rows as a DataFrame, in the order of the data."""
        return _frame(self)


def _table(evaluation: Evaluation) -> Any:
    import pandas as pd

    scores = [("all", evaluation.score), *((each.name, each.score) for each in evaluation.kinds)]
    return pd.DataFrame(
        [
            {
                evaluation.by or "rows": name,
                "count": score.rows,
                "right": score.right,
                "accuracy": score.accuracy,
                "low": score.low,
                "high": score.high,
            }
            for name, score in scores
        ]
    )


def _frame(evaluation: Evaluation) -> Any:
    import pandas as pd

    columns = {
        "index": "int64",
        "name": "object",
        "expected": "object",
        "answer": "object",
        "is_right": "object",
        **({"probability": "float64"} if evaluation.confusion is not None else {}),
        **({"kind": "object"} if evaluation.by else {}),
        "error": "object",
    }
    return pd.DataFrame(
        {
            name: pd.Series([getattr(row, name) for row in evaluation.rows], dtype=dtype)
            for name, dtype in columns.items()
        }
    )
