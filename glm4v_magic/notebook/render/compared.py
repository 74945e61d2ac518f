"""A comparison: the answers of several models or settings in one table, a column for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glm4v_magic.core.remarks import worded
from glm4v_magic.core.wording import counted, json_text, printable, readable_seconds
from glm4v_magic.notebook.next_steps import PYTHON_IN_CELL
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.answers.answer import NO_LOGPROBS
from glm4v_magic.notebook.render.answers.certainty import percent
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.calls.compared import Column, ComparedAnswers
    from glm4v_magic.core.conversation import Answer

__all__ = ["compared_bundle", "compared_summary"]

_MOST_CHARACTERS = 4000  # of an answer
_MOST_CHOICES = 50
_TEXT_WIDTH = 400  # characters of an answer in plain text
_TYPED = ("json", "code")  # formats shown in a monospaced font


@dataclass(frozen=True, slots=True)
class _Said:
    """The cell of an answer: its error and its text, ``None`` where there is none, and a note."""

    error: str | None
    text: str | None
    family: str
    note: str


@dataclass(frozen=True, slots=True)
class _Share:
    """The cell of a choice: its probability, its bar in percent, and whether it is the answer."""

    percent: str
    width: int
    is_answer: bool


@dataclass(frozen=True, slots=True)
class _Choice:
    """The row of a choice."""

    text: str
    shares: list[_Share]


@dataclass(frozen=True, slots=True)
class _Fact:
    """A row of facts: what they are, and that of each column."""

    name: str
    cells: list[str]


def compared_summary(comparison: ComparedAnswers) -> str:
    """Return a sentence such as ``2 of 3 answered, 1 failed.``."""
    columns = comparison.columns
    failed = sum(each.failure is not None for each in columns)
    line = f"{sum(each.done for each in columns)} of {len(columns)} answered"
    return f"{line}, {failed} failed." if failed else f"{line}."


def compared_bundle(comparison: ComparedAnswers) -> MimeBundle:
    """Return the table."""
    columns = comparison.columns
    names = [printable(each.name) for each in columns]
    said = [_said(each) for each in columns]
    choices = _choices(comparison)
    facts = _facts(comparison)
    return {
        "text/plain": "\n".join(_text(comparison, names, said, choices, facts)),
        "text/html": fill(
            "compared",
            prompt=comparison.prompt,
            names=names,
            said=said,
            choices=choices,
            facts=facts,
        ),
    }


def _said(column: Column) -> _Said:
    answer = column.answer
    if answer is None:
        text = None if column.failure is not None else "not asked yet"
    elif column.failure is None and answer.format == "json":
        text = json_text(answer.value, 2)
    else:
        text = answer.text
    return _Said(
        error=None
        if column.failure is None
        else _shortened(worded(column.failure, PYTHON_IN_CELL)),
        text=None if text is None else _shortened(text),
        family="monospace" if answer is not None and answer.format in _TYPED else "inherit",
        note=_note(answer),
    )


def _note(answer: Answer | None) -> str:
    if answer is None:
        return ""
    ending = {
        "length": "cut off at the token limit",
        "interrupted": "stopped by you",
        "failed": "broken off by an error",
    }
    return ending.get(answer.finish_reason, "corrected once" if answer.corrected else "")


def _shortened(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


def _choices(comparison: ComparedAnswers) -> list[_Choice]:
    texts = list(dict.fromkeys(text for each in comparison.columns for text in each.choices))
    return [
        _Choice(
            " ".join(printable(text).split()),
            [
                _Share(
                    "" if (share := each.choices.get(text)) is None else f"{share:.1%}",
                    round(100 * (share or 0)),
                    each.text == text,
                )
                for each in comparison.columns
            ],
        )
        for text in texts[:_MOST_CHOICES]
    ]


def _facts(comparison: ComparedAnswers) -> list[_Fact]:
    rows = {
        "mean log-probability": [_logprob(each) for each in comparison.columns],
        "model": [_model(each) for each in comparison.columns],
        "tokens": [_tokens(each.answer) for each in comparison.columns],
        "seed": [
            "" if each.answer is None or each.answer.seed is None else f"{each.answer.seed}"
            for each in comparison.columns
        ],
    }
    return [_Fact(name, cells) for name, cells in rows.items() if any(cells)]


def _logprob(column: Column) -> str:
    answer, logprob = column.answer, column.logprob
    if logprob is not None and math.isfinite(logprob):
        return f"{logprob:.3f} ({percent(logprob)} a token)"
    is_untold = answer is not None and answer.tokens == () and bool(answer.text)
    return NO_LOGPROBS if is_untold else ""


def _model(column: Column) -> str:
    """Return the name of the model, if that of the column is another."""
    answer = column.answer
    is_told = answer is None or column.name.partition(" ")[0] == answer.model
    return "" if answer is None or is_told else printable(answer.model)


def _tokens(answer: Answer | None) -> str:
    if answer is None or answer.usage.new_tokens is None:
        return ""
    usage = answer.usage
    spent = usage.decode_seconds + (usage.time_to_first_token or 0.0)
    told = counted(usage.new_tokens or 0, "token")
    return f"{told}, {readable_seconds(spent)}" if spent else told


def _text(
    comparison: ComparedAnswers,
    names: list[str],
    said: list[_Said],
    choices: list[_Choice],
    facts: list[_Fact],
) -> list[str]:
    lines = [compared_summary(comparison)]
    for at, name in enumerate(names):
        each = said[at]
        lines.append(f"{name}:")
        if each.error is not None:
            lines.append(f"  error: {_one_line(each.error)}")
        if each.text is not None:
            note = f" [{each.note}]" if each.note else ""
            lines.append(f"  {_one_line(each.text)}{note}")
        shares = [
            f"{row.text} {row.shares[at].percent}" for row in choices if row.shares[at].percent
        ]
        if shares:
            lines.append(f"  {', '.join(shares)}")
        told = [
            row.cells[at] if row.cells[at] == NO_LOGPROBS else f"{row.name} {row.cells[at]}"
            for row in facts
            if row.cells[at]
        ]
        if told:
            lines.append(f"  {'; '.join(told)}")
    return lines


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _TEXT_WIDTH else f"{text[: _TEXT_WIDTH - 1]}…"
