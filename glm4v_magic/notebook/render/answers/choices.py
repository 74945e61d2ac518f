"""Choices of an answer with their probabilities, as a table with bars."""

from __future__ import annotations

from dataclasses import dataclass

from glm4v_magic.core.conversation import Answer
from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.render import Html
from glm4v_magic.notebook.render.templates import fill

__all__ = ["choices_html", "choices_text"]


@dataclass(frozen=True, slots=True)
class _Choice:
    """A choice and its probability; the width of its bar is in percent."""

    text: str
    percent: str
    width: int


def choices_html(answer: Answer) -> Html:
    """Return a table as HTML within Markdown; choices are escaped."""
    return fill("choices", choices=_choices(answer))


def choices_text(answer: Answer) -> str:
    """Return a line for each choice: text, probability, and a bar of up to 20 characters."""
    choices = _choices(answer)
    longest = max((len(each.text) for each in choices), default=0)
    return "\n".join(
        f"{each.text:<{longest}} {each.percent:>6} {'#' * (each.width // 5)}".rstrip()
        for each in choices
    )


def _choices(answer: Answer) -> list[_Choice]:
    return [
        _Choice(" ".join(printable(text).split()), f"{share:.1%}", round(100 * share))
        for text, share in answer.choices.items()
    ]
