"""A model's thinking: its last lines while it thinks, folded above the answer afterwards.

Markdown ends HTML at a blank line, so everything here is one line of HTML, in which every character
of the model's that HTML or Markdown would interpret is escaped.
"""

from __future__ import annotations

import textwrap

from glm4v_magic.core.conversation import Usage
from glm4v_magic.core.wording import counted, printable, readable_seconds
from glm4v_magic.notebook.render import Html
from glm4v_magic.notebook.render.templates import fill

__all__ = ["folded", "tail_html", "tail_lines", "thought_line"]

_LINES = 3
_WIDTH = 88


def thought_line(thinking: str, usage: Usage | None = None) -> str:
    """Return how long a model thought, in seconds and tokens."""
    usage = usage or Usage(None, None, None)
    line = "Thought"
    if usage.thinking_seconds > 0:
        line += f" for {readable_seconds(usage.thinking_seconds)}"
    if usage.thinking_tokens is not None:
        return f"{line}, {counted(usage.thinking_tokens, 'token')}"
    return f"{line}, {counted(len(thinking), 'character')}"


def folded(thinking: str, line: str, *, is_open: bool = False) -> Html:
    """Return HTML that hides `thinking` behind a line; open if there is nothing else to show."""
    lines = printable(thinking).strip().expandtabs(4).split("\n")
    spaced = [_spaced(each) for each in lines]
    return fill("thinking", line=line, lines=spaced, is_open=is_open)


def tail_html(thinking: str) -> Html:
    """Return HTML of constant height with the last lines of the thinking."""
    lines = tail_lines(thinking)
    lines += [" "] * (_LINES - len(lines))
    spaced = [_spaced(each) for each in lines]
    return fill("thinking_tail", line=_thinking_line(thinking), lines=spaced)


def tail_lines(thinking: str) -> list[str]:
    """Return the last lines of the thinking, wrapped where they will be wrapped later, too."""
    last = printable(thinking).strip().split("\n")[-_LINES:]
    return [part for line in last for part in textwrap.wrap(line, _WIDTH) or [""]][-_LINES:]


def _thinking_line(thinking: str) -> str:
    return f"Thinking: {counted(len(thinking), 'character')}"


def _spaced(line: str) -> str:
    """Return a line whose leading spaces show on a page."""
    text = line.lstrip(" ")
    return "\u00a0" * (len(line) - len(text)) + text
