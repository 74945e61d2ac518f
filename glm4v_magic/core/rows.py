"""Rows of a map with their answers or errors, and its progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from glm4v_magic.core.conversation import Answer
from glm4v_magic.core.remarks import PYTHON, Text, worded

__all__ = ["HALF", "AnsweredRow", "Progress", "Rows"]

HALF = "The answer was interrupted: it is only the beginning."
"""What is said of a row whose answer an interrupt cut off."""


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """A row with its answer or its error; with neither if an interrupt came before it was asked.

    Attributes:
        index: number of the row, from 0.
        name: name of the item.
        item: the item, as it was given.
        prompt: prompt of the row, expressions expanded.
        answer: the model's answer; its images are small copies, so that thousands of rows fit in
            memory. An interrupt leaves answers with the ``finish_reason`` ``interrupted``.
        failure: why there is no answer, or why the answer does not follow its format. A front end
            words it with `core.remarks.worded`.
        reused: whether the answer comes from an earlier run.
    """

    index: int
    name: str
    item: object
    prompt: str
    answer: Answer | None = None
    failure: Text | None = None
    reused: bool = False

    @property
    def error(self) -> str | None:
        """The `fault` in words for Python."""
        return None if self.fault is None else worded(self.fault, PYTHON)

    @property
    def fault(self) -> Text | None:
        """Why the answer cannot be used as it is: the `failure`, or that it is only a part."""
        if self.failure is None and self.finish_reason == "interrupted":
            return HALF
        return self.failure

    @property
    def text(self) -> str | None:
        """Text of the answer."""
        return None if self.answer is None else self.answer.text

    @property
    def value(self) -> Any:
        """Parsed value of the answer, for ``json`` and ``code``; see `Answer`."""
        return None if self.answer is None else self.answer.value

    @property
    def probability(self) -> float | None:
        """Probability of the answer among the choices; ``None`` without such."""
        answer = self.answer
        return None if answer is None else answer.choices.get(answer.text)

    @property
    def finish_reason(self) -> str | None:
        """Finish reason of the answer; see `Answer`."""
        return None if self.answer is None else self.answer.finish_reason

    @property
    def done(self) -> bool:
        """Whether the answer is complete and follows its format."""
        return self.failure is None and self.finish_reason not in (None, "interrupted")

    def __str__(self) -> str:
        return self.text or ""


class Rows(list[AnsweredRow]):
    """Rows of a list, folder or pattern, in order."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a map.

    Attributes:
        rows: rows answered or failed so far, in the order in which they finished.
        total: number of all rows.
        seconds: seconds since the first row was asked.
        batch_size: rows that are asked at once; 0 before the first.
        result: returns what `Session.map` would return now, which is what is left of a failed run.
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
        return sum(row.failure is not None for row in self.rows)

    @property
    def reused(self) -> int:
        """Rows with a complete answer from an earlier run."""
        return sum(row.reused and row.done for row in self.rows)
