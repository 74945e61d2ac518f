"""Answers held against expected ones: when they agree, and what follows from how often they do."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from decimal import Decimal, InvalidOperation
from functools import cached_property
from numbers import Number
from typing import Any

from glm4v_magic.core.conversation import PARTIAL
from glm4v_magic.core.errors import OptionError, reason
from glm4v_magic.core.options import Format
from glm4v_magic.core.rows import AnsweredRow
from glm4v_magic.core.wording import brief, printable
from glm4v_magic.images.files import natural
from glm4v_magic.mapping.evaluation import (
    Bin,
    Calibration,
    Confusion,
    Evaluation,
    Kind,
    Score,
    ScoredRow,
)
from glm4v_magic.mapping.items import Items

__all__ = ["BINS", "Truth", "calibration_of", "evaluation_of", "normal", "score_of", "truth_of"]

BINS = 10
"""Bins of the probabilities, unless another number is given."""

_DRAWS = 10_000  # resamples of the bootstrap
_SEED = 0  # the same rows have the same interval
_ENDS = ' \t\n"“”„«»‘’`*_.。,，;；:：!！?？'
_MISSING = ("NAType", "NaTType")
_NAMED = 3  # wrong answers that a message names


def normal(text: str) -> str:
    """Return a text as it is compared.

    Compatible characters are one (NFKC), and so are upper and lower case; white space is one space;
    quotes, asterisks, underscores and punctuation at both ends are left out.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _without_ends(text) or text


def _without_ends(text: str) -> str:
    text = text.strip(_ENDS)
    # An apostrophe at the end may belong to the word, a pair of them does not.
    return text[1:-1].strip(_ENDS) if re.fullmatch("'.*'", text) else text


@dataclass(frozen=True)
class Truth:
    """Expected answers of the rows of a map.

    Attributes:
        column: name of their column.
        expected: the answer of each row; ``None`` where it is missing.
        by: name of the column that divides the rows; empty without one.
        kinds: what it has for each row; empty without one.
        choices: choices that the answers are; empty for any text.
        format: format of the answers.
        bins: number of bins of the probabilities.
    """

    column: str
    expected: tuple[object, ...]
    by: str = ""
    kinds: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    format: Format = "markdown"
    bins: int = BINS

    @cached_property
    def _by_normal(self) -> Mapping[str, str]:
        counts = Counter(map(normal, self.choices))
        return {normal(each): each for each in self.choices if counts[normal(each)] == 1}

    def label(self, said: object) -> str | None:
        """Return the choice that an answer is; ``None`` if it is none."""
        text = _text(said)
        if text in self.choices:
            return text
        same = [each for each in self.choices if _is_same_number(each, said)]
        return same[0] if len(same) == 1 else self._by_normal.get(normal(text))

    def scored(self, row: AnsweredRow) -> ScoredRow:
        """Return a row with the answer that was expected."""
        expected = self.expected[row.index]
        answer = row.answer
        counts = expected is not None and row.finish_reason not in (None, *PARTIAL)
        is_right = self._agree(row, expected) if counts else None
        return ScoredRow(
            index=row.index,
            name=row.name,
            expected=expected,
            # What an error broke off is no answer; what was interrupted may be asked again.
            answer=None if row.finish_reason == "failed" else row.text,
            is_right=is_right,
            probability=row.probability,
            choices={} if answer is None else answer.choices,
            kind=self.kinds[row.index] if self.kinds else "",
            fault="" if is_right else row.fault,  # "Yes." is the choice "yes"
        )

    def _agree(self, row: AnsweredRow, expected: object) -> bool:
        assert row.answer is not None  # it counts
        if self.choices:
            label = self.label(row.answer.text)
            return label is not None and label == self.label(expected)
        if row.failure is not None:  # not in its format
            return False
        if self.format == "json":
            return _same_json(row.value, expected)
        if self.format == "code":
            return str(row.value).strip() == _text(expected).strip()
        said = row.answer.text
        return _is_same_number(said, expected) or normal(said) == normal(_text(expected))


def truth_of(
    items: Items,
    answer: object,
    by: object = None,
    *,
    choices: Sequence[str] = (),
    format: Format = "markdown",  # noqa: A002  as everywhere
    bins: int = BINS,
) -> Truth:
    """Return the expected answers of items.

    Args:
        items: items of a table.
        answer: its column with the expected answers.
        by: its column that divides the rows into kinds; ``None`` for none.
        choices: choices that the answers are.
        format: format of the answers.
        bins: number of bins of the probabilities.

    Raises:
        OptionError: if there is no such column, it holds no answer, or one that is no choice.
    """
    expected = tuple(None if _is_missing(each) else each for each in items.column(answer))
    _refuse_unreadable(answer, expected)
    if all(each is None for each in expected):
        raise OptionError(
            f"Column {answer!r:.60} holds no answers.",
            "Name the column with the answers that are expected.",
        )
    kinds: tuple[str, ...] = ()
    if by is not None:
        divided = tuple(items.column(by))
        _refuse_unreadable(by, divided)
        kinds = tuple(map(_kind, divided))
    truth = Truth(
        str(answer), expected, "" if by is None else str(by), kinds, tuple(choices), format, bins
    )
    if choices:
        _refuse_no_choices(truth, items)
    return truth


def _refuse_unreadable(column: object, values: Iterable[object]) -> None:
    for row, value in enumerate(values):
        try:
            _text(value)
        except Exception as error:  # whatever the user's class does
            raise OptionError(
                f"Column {column!r:.60} has a value in row {row} that cannot be read as text: "
                f"{printable(reason(error)):.100}.",
                "Give texts or numbers.",
            ) from None


def _refuse_no_choices(truth: Truth, items: Items) -> None:
    wrong = [
        (name, each)
        for name, each in zip(items.names, truth.expected, strict=True)
        if each is not None and truth.label(each) is None
    ]
    if not wrong:
        return
    distinct = list({brief(each): None for _, each in wrong})
    more = len(distinct) - _NAMED
    listed = ", ".join(distinct[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
    are = "is" if len(distinct) == 1 else "are"
    raise OptionError(
        f"Column {truth.column!r:.60} holds {listed}, which {are} none of the choices "
        f"{', '.join(truth.choices):.200}; the first is that of {wrong[0][0]:.60}.",
        "Add them to the choices, or leave these rows out.",
    )


def _is_missing(value: object) -> bool:
    if value is None or type(value).__name__ in _MISSING:
        return True
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, float) and value != value  # NaN, numpy's too


def _kind(value: object) -> str:
    return "(none)" if _is_missing(value) else " ".join(_text(value).split())


def _text(value: object) -> str:
    """Return an expected answer as it is written.

    Pandas has 3 as 3.0 beside missing numbers, and dates as times at midnight.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime) and value.time() == time.min and value.tzinfo is None:
        return value.date().isoformat()
    return str(value)


def _is_same_number(said: str, expected: object) -> bool:
    """Whether a number is expected, and the text is this number, however it is written."""
    if isinstance(expected, bool) or not isinstance(expected, Number):
        return False
    try:
        return Decimal(normal(said)) == Decimal(str(expected))
    except InvalidOperation:  # a text, or a complex number
        return False


def _same_json(value: object, expected: object) -> bool:
    if isinstance(expected, str):
        if isinstance(value, str):
            return normal(value) == normal(expected)
        try:
            expected = json.loads(expected)
        except ValueError:
            return False
    return _equal(value, expected)


def _equal(one: object, other: object) -> bool:
    """Compare as JSON does: 1 is 1.0, but not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def score_of(rows: int, right: int) -> Score:
    """Return a score with the percentile interval of the bootstrap (Efron, 1979).

    A row drawn with replacement is right with the probability `right` / `rows`, so the number of
    those that are right in a resample is binomial, and is drawn as such.
    """
    if not rows:
        return Score(0, 0, 0.0, 1.0)
    import numpy as np

    drawn = np.random.default_rng(_SEED).binomial(rows, right / rows, _DRAWS) / rows
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Score(rows, right, float(low), float(high))


def calibration_of(pairs: Iterable[tuple[float, bool]], bins: int = BINS) -> Calibration | None:
    """Return the calibration of probabilities; ``None`` if there are none.

    Args:
        pairs: probability of each answer, and whether it is right.
        bins: number of bins between 0 and 1, which are of equal width.
    """
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for probability, is_right in pairs:
        members[_bin(probability, bins)].append((probability, is_right))
    total = sum(map(len, members))
    if not total:
        return None
    made = tuple(
        Bin(
            low=at / bins,
            high=(at + 1) / bins,
            rows=len(inside),
            right=sum(is_right for _, is_right in inside),
            confidence=sum(each for each, _ in inside) / len(inside) if inside else 0.0,
        )
        for at, inside in enumerate(members)
    )
    gaps = (abs(each.right - each.confidence * each.rows) for each in made)
    return Calibration(sum(gaps) / total, made, total)


def _bin(probability: float, bins: int) -> int:
    """Return the bin of a probability: the one that ends at it, or the first that ends above."""
    at = min(max(int(probability * bins), 0), bins - 1)
    return at - 1 if at and probability <= at / bins else at


def _confusion(rows: Sequence[ScoredRow], truth: Truth) -> Confusion | None:
    if not truth.choices:
        return None
    counts = Counter(
        (truth.label(row.expected), truth.label(row.answer))
        for row in rows
        if row.is_right is not None
    )
    others = (None,) if any(said is None for _, said in counts) else ()
    columns = (*truth.choices, *others)
    table = tuple(tuple(counts[one, said] for said in columns) for one in truth.choices)
    return Confusion(truth.choices, columns, table)


def evaluation_of(
    rows: Sequence[ScoredRow], truth: Truth, model: str = "", answers: Any = None
) -> Evaluation:
    """Return the evaluation of rows.

    Args:
        rows: all rows, those that were not asked included.
        truth: the expected answers.
        model: name of the model.
        answers: the answers themselves, to keep with it.
    """
    counting = [row for row in rows if row.is_right is not None]
    of_kinds: dict[str, list[bool]] = {}
    for row in rows:
        mine = of_kinds.setdefault(row.kind, [])
        if row.is_right is not None:
            mine.append(row.is_right)
    return Evaluation(
        score=score_of(len(counting), sum(row.is_right is True for row in counting)),
        total=len(rows),
        rows=tuple(rows),
        column=truth.column,
        model=model,
        by=truth.by,
        kinds=tuple(
            Kind(name, score_of(len(mine), sum(mine)))
            for name, mine in sorted(of_kinds.items(), key=lambda each: natural(each[0]))
        )
        if truth.by
        else (),
        calibration=calibration_of(
            (
                (row.probability, row.is_right)
                for row in counting
                if row.probability is not None and row.is_right is not None
            ),
            truth.bins,
        )
        if truth.choices
        else None,
        confusion=_confusion(rows, truth),
        answers=answers,
    )
