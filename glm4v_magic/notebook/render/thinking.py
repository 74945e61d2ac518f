"""What a model thought before its answer: its last lines while it thinks, folded afterwards.

Markdown ends HTML at a blank line, so everything here is one line of HTML, in which no sign of the
model's is left to an interpreter.
"""

from __future__ import annotations

import textwrap

from glm4v_magic.core.conversation import Usage
from glm4v_magic.core.wording import counted, printable, readable_seconds
from glm4v_magic.notebook.render.markdown import literal

__all__ = ["folded", "tail_html", "tail_lines", "thought_line"]

_LINES = 3
_WIDTH = 88


def thought_line(thinking: str, usage: Usage | None = None) -> str:
    """Return for how long a model thought, and how much."""
    usage = usage or Usage(None, None, None)
    line = "Thought"
    if usage.thinking_seconds > 0:
        line += f" for {readable_seconds(usage.thinking_seconds)}"
    if usage.thinking_tokens is not None:
        return f"{line}, {counted(usage.thinking_tokens, 'token')}"
    return f"{line}, {counted(len(thinking), 'character')}"


def folded(thinking: str, line: str, *, is_open: bool = False) -> str:
    """Return HTML that hides `thinking` behind a line; open if there is nothing else to show."""
    lines = printable(thinking).strip().expandtabs(4).split("\n")
    text = "<br>".join(_spaced(each) for each in lines)
    state = " open" if is_open else ""
    return f"<details{state}><summary><small>{literal(line)}</small></summary>{text}</details>"


def tail_html(thinking: str) -> str:
    """Return HTML of always the same height with the last lines of what is being thought."""
    lines = tail_lines(thinking)
    lines += [" "] * (_LINES - len(lines))
    text = "<br>".join(f"<code>{_spaced(each)}</code>" for each in lines)
    return f"<div><small>{literal(_thinking_line(thinking))}</small><br>{text}</div>"


def tail_lines(thinking: str) -> list[str]:
    """Return the last lines of what is being thought, cut where they will be cut later, too."""
    last = printable(thinking).strip().split("\n")[-_LINES:]
    return [part for line in last for part in textwrap.wrap(line, _WIDTH) or [""]][-_LINES:]


def _thinking_line(thinking: str) -> str:
    return f"Thinking: {counted(len(thinking), 'character')}"


def _spaced(line: str) -> str:
    """Return a line as HTML, with the spaces that it begins with."""
    text = line.lstrip(" ")
    return "&#160;" * (len(line) - len(text)) + literal(text)
