"""Rows of a map with their answers or errors, and its progress."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from glm4v_magic.core.conversation import PARTIAL, Answer
from glm4v_magic.core.remarks import PYTHON, Text, worded
from glm4v_magic.core.wording import counted, readable_bytes

__all__ = ["HALF", "AnsweredRow", "Counts", "OrderedRows", "Progress", "Rows", "Totals"]

HALF = "The answer was interrupted: it is only the beginning."
"""What is said of a row whose answer an interrupt cut off."""

_MOST_WRITTEN = 20  # rows


class _Short(reprlib.Repr):
    """Items as Python writes them, shortened; of encoded images only the size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_bytes(self, data: bytes | bytearray, _level: int) -> str:
        return f"<{type(data).__name__}, {readable_bytes(len(data))}>"

    repr_bytearray = repr_bytes


_SHORT = _Short()


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """A row with its answer or its error; with neither if an interrupt came before it was asked.

    Attributes:
        index: number of the row, from 0.
        name: name of the item.
        item: the item, as it was given.
        prompt: prompt of the row, expressions expanded.
        answer: the model's answer; its images are small copies, so that thousands of rows fit in
            memory. An interrupt leaves answers with the ``finish_reason`` ``interrupted``, an error
            in the middle of one ``failed``.
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
        """Probability of the answer among the choices; ``None`` without choices."""
        answer = self.answer
        return None if answer is None else answer.choices.get(answer.text)

    @property
    def finish_reason(self) -> str | None:
        """Finish reason of the answer; see `Answer`."""
        return None if self.answer is None else self.answer.finish_reason

    @property
    def done(self) -> bool:
        """Whether the answer is complete and follows its format."""
        return self.failure is None and self.finish_reason not in (None, *PARTIAL)

    def __str__(self) -> str:
        return self.text or ""

    def __repr__(self) -> str:
        return _written(self)


def _written(row: AnsweredRow) -> str:
    """Return a row as Python would write it, but for a long item, which is cut."""
    values = {each.name: getattr(row, each.name) for each in fields(row)}
    written = {name: repr(value) for name, value in values.items() if name != "item"}
    written["item"] = _SHORT.repr(row.item)
    return f"AnsweredRow({', '.join(f'{name}={written[name]}' for name in values)})"


class Rows(list[AnsweredRow]):
    """Rows of a list, folder or pattern, in order."""

    def __repr__(self) -> str:
        written = [repr(row) for row in self[:_MOST_WRITTEN]]
        if len(self) > len(written):
            written.append(f"and {counted(len(self) - len(written), 'more row')}")
        return f"[{', '.join(written)}]"


class OrderedRows(Sequence[AnsweredRow]):
    """Rows in order that are read from a file as they are asked for.

    `totals` are known without reading all of them.
    """

    totals: Totals


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of rows of a map.

    Attributes:
        done: rows answered or failed.
        answered: rows with a complete answer.
        failed: rows with an error.
        reused: rows with a complete answer from an earlier run.
    """

    done: int = 0
    answered: int = 0
    failed: int = 0
    reused: int = 0

    def __add__(self, row: AnsweredRow) -> Counts:
        """Return the numbers with one more row."""
        return Counts(
            self.done + 1,
            self.answered + row.done,
            self.failed + (row.failure is not None),
            self.reused + (row.reused and row.done),
        )

    def __sub__(self, row: AnsweredRow) -> Counts:
        """Return the numbers without a row."""
        return Counts(
            self.done - 1,
            self.answered - row.done,
            self.failed - (row.failure is not None),
            self.reused - (row.reused and row.done),
        )


_BETWEEN = re.compile(r"(?<=[.?!]) ")
_MOST_SENTENCES = 8


@dataclass(frozen=True, slots=True)
class Totals:
    """What is said below a table of rows.

    Attributes:
        counts: numbers of rows.
        prompt_tokens: tokens of all prompts; ``None`` if a server did not tell one of them.
        new_tokens: tokens of all answers; likewise.
        model: name of the model; empty if there is no answer.
        notice: what a reader of the answers must know of any of them, each sentence once.
        untold: whether a server left out log-probabilities that were asked for.
        besides: number of answers of earlier runs that stay in the file, to items that are not
            among the rows.
    """

    counts: Counts = Counts()
    prompt_tokens: int | None = 0
    new_tokens: int | None = 0
    model: str = ""
    notice: str = ""
    untold: bool = False
    besides: int = 0

    def __add__(self, row: AnsweredRow) -> Totals:
        """Return the totals with one more row."""
        counts, answer = self.counts + row, row.answer
        if answer is None:
            return replace(self, counts=counts)
        return replace(
            self,
            counts=counts,
            prompt_tokens=_plus(self.prompt_tokens, answer.usage.prompt_tokens),
            new_tokens=_plus(self.new_tokens, answer.usage.new_tokens),
            model=answer.model,
            notice=_noted(self.notice, answer.notice),
            untold=self.untold or (answer.tokens == () and answer.text != ""),
        )

    @classmethod
    def of(cls, rows: Iterable[AnsweredRow]) -> Totals:
        """Return the totals of rows."""
        if isinstance(rows, OrderedRows):
            return rows.totals
        totals = cls()
        for row in rows:
            totals += row
        return totals


def _noted(told: str, more: str) -> str:
    """Return what was told of the rows before with the sentences of one more that are new."""
    if more in told:  # as most are: the same for all, or nothing
        return told
    sentences = dict.fromkeys(_BETWEEN.split(told)) if told else {}
    sentences |= dict.fromkeys(_BETWEEN.split(more))
    return " ".join([*sentences][:_MOST_SENTENCES])


def _plus(total: int | None, number: int | None) -> int | None:
    return None if total is None or number is None else total + number


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a map.

    Attributes:
        rows: rows answered or failed so far, in the order in which they finished; `OrderedRows` if
            they are saved.
        total: number of all rows.
        seconds: seconds since the first row was asked.
        batch_size: rows that are asked at once; 0 before the first.
        result: returns what `Session.map` would return now, which is what is left of a failed run.
        counts: numbers of `rows`; by default they are counted.
        fresh: whether all rows are asked, even if their answers are known: the same again would
            begin anew.
    """

    rows: Sequence[AnsweredRow]
    total: int
    seconds: float
    batch_size: int
    result: Callable[[], Any]
    counts: Counts | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.counts is None:
            object.__setattr__(self, "counts", Totals.of(self.rows).counts)

    @property
    def done(self) -> int:
        """Rows answered or failed."""
        return self._counted.done

    @property
    def answered(self) -> int:
        """Rows with a complete answer."""
        return self._counted.answered

    @property
    def failed(self) -> int:
        """Rows with an error."""
        return self._counted.failed

    @property
    def reused(self) -> int:
        """Rows with a complete answer from an earlier run."""
        return self._counted.reused

    @property
    def _counted(self) -> Counts:
        assert self.counts is not None  # set when it was made
        return self.counts
