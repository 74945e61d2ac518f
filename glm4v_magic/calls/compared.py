"""`ComparedAnswers`: what several models or settings answered to one question, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glm4v_magic.core.conversation import PARTIAL, Answer
from glm4v_magic.core.remarks import PYTHON, Text, worded

__all__ = ["Column", "ComparedAnswers"]


@dataclass(frozen=True, slots=True)
class Column:
    """A model or setting of a comparison, with its answer or its error; at first with neither.

    Attributes:
        name: model and settings, as they were given.
        settings: the settings alone, by their names in Python.
        answer: the answer, an ordinary one.
        failure: why there is none, or what is wrong with it; a front end words it with
            `core.remarks.worded`.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    answer: Answer | None = None
    failure: Text | None = None

    @property
    def error(self) -> str | None:
        """The `failure` in words for Python."""
        return None if self.failure is None else worded(self.failure, PYTHON)

    @property
    def text(self) -> str | None:
        """Text of the answer."""
        return None if self.answer is None else self.answer.text

    @property
    def choices(self) -> Mapping[str, float]:
        """Probability of each choice; empty without choices, and if a server does not tell."""
        return {} if self.answer is None else self.answer.choices

    @property
    def logprob(self) -> float | None:
        """Mean log-probability of the answer's tokens; ``None`` if no token tells one."""
        tokens = None if self.answer is None else self.answer.tokens
        return sum(each.logprob for each in tokens) / len(tokens) if tokens else None

    @property
    def done(self) -> bool:
        """Whether it has a complete answer in its form."""
        return (
            self.failure is None
            and self.answer is not None
            and self.answer.finish_reason not in PARTIAL
        )


@dataclass(frozen=True, slots=True)
class ComparedAnswers:
    """What several models or settings answered to one question; see `Session.compare`.

    Attributes:
        prompt: the question.
        columns: one for each model or setting, in the order in which they were given.
    """

    prompt: str
    columns: tuple[Column, ...]

    @property
    def answers(self) -> tuple[Answer | None, ...]:
        """The answer of each column; ``None`` where there is none."""
        return tuple(each.answer for each in self.columns)

    def to_dataframe(self) -> Any:
        """Return a DataFrame with a row for each column of the comparison."""
        return _frame(self)


def _frame(comparison: ComparedAnswers) -> Any:
    import pandas as pd

    texts = dict.fromkeys(text for each in comparison.columns for text in each.choices)
    return pd.DataFrame(
        [
            {
                "name": each.name,
                "answer": each.text,
                **{text: each.choices.get(text) for text in texts},
                "logprob": each.logprob,
                "error": each.error,
            }
            for each in comparison.columns
        ]
    )
