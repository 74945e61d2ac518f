"""Choices of an answer with their probabilities, as a table with bars."""

from __future__ import annotations

from dataclasses import dataclass

from glm4v_magic.core.conversation import Answer
from glm4v_magic.core.wording import columns, padded, printable
from glm4v_magic.notebook.render import Html
from glm4v_magic.notebook.render.templates import fill

__all__ = ["MOST_SHOWN", "choices_html", "choices_text"]

MOST_SHOWN = 20
"""Most choices that are shown; all of them are in the answer."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """A choice and its probability; the width of its bar is in percent."""

    text: str
    percent: str
    width: int


def choices_html(answer: Answer) -> Html:
    """Return a table as HTML within Markdown; choices are escaped."""
    return fill("choices", choices=_choices(answer), more=_more(answer))


def choices_text(answer: Answer) -> str:
    """Return a line for each choice: text, probability, and a bar of up to 20 characters.

    Of many only the likeliest are shown, and how many more there are.
    """
    choices = _choices(answer)
    longest = max((columns(each.text) for each in choices), default=0)
    lines = [
        f"{padded(each.text, longest)} {each.percent:>6} {'#' * (each.width // 5)}".rstrip()
        for each in choices
    ]
    return "\n".join([*lines, *_more(answer)])


def _choices(answer: Answer) -> list[_Choice]:
    shown = answer.choices
    if len(shown) > MOST_SHOWN:
        likeliest = sorted(shown, key=shown.__getitem__, reverse=True)[:MOST_SHOWN]
        shown = {each: shown[each] for each in likeliest}
    return [
        _Choice(" ".join(printable(text).split()), f"{share:.1%}", round(100 * share))
        for text, share in shown.items()
    ]


def _more(answer: Answer) -> list[str]:
    """Return the line on choices that are not shown, if there are any."""
    count = len(answer.choices) - MOST_SHOWN
    return [f"{count:,} more: answer.choices"] if count > 0 else []
