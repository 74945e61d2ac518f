"""The line at the cursor, if it is one of ours: a ``%glm4v`` or ``%%glm4v`` that would run.

IPython decides which lines are magics from the tokens of the whole cell, so its own transformers
are asked: a line within a text or behind ``!`` is none, one behind ``d["a-b"] =`` is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from IPython.core.inputtransformer2 import TransformerManager

__all__ = ["OurLine", "our_line"]

_CELL = re.compile(r"%%glm4v(?= |[^\S\n]*\n)(?P<rest>.*)")
_OTHER_CELL = re.compile(r"%%\w+(?: .*)?\n")
_LINE = re.compile(r"(?<!%)%glm4v(?=\s)")

_PLAIN = re.compile(r"^([ \t]*)(?:[\w., ]+=[ \t]*)?[%!]\w[^\n\\\"']*$", re.MULTILINE)
"""A line that is surely a magic or, within a text or brackets, of no importance."""

_CURSOR = "at_the_cursor"
_RUN = re.compile(
    r"run_line_magic\('(?:glm4v', '|(?:prun|time|timeit)', ['\"].*%glm4v )"
    rf"{_CURSOR}['\"]\)\s*\Z"
)


@dataclass(frozen=True, slots=True)
class OurLine:
    """What is typed of a line of ours.

    Attributes:
        rest: what follows the name of the magic, in one line.
        is_cell: whether it is ``%%glm4v``.
        body: what is typed of the lines below ``%%glm4v``; ``None`` while the first one is typed.
    """

    rest: str
    is_cell: bool
    body: str | None = None


def our_line(text: str) -> OurLine | None:
    """Return the line of ours that the cursor is on or, in a cell of ours, below.

    Args:
        text: the cell up to the cursor.
    """
    if "%glm4v" not in text:
        return None
    code = _cleaned(text)
    while _CELL.match(code) is None and (other := _OTHER_CELL.match(code)):  # %%time, %%capture
        code = _cleaned(code[other.end() :])
    if (cell := _CELL.match(code)) is not None:
        has_body = code[cell.end() : cell.end() + 1] == "\n"
        return OurLine(cell["rest"], True, code[cell.end() + 1 :] if has_body else None)
    start = _start_of_line(code)
    above = _PLAIN.sub(r"\1pass", code[:start])  # each magic costs IPython a pass over the tokens
    for found in _LINE.finditer(code, start):
        if _is_run(f"{above}{code[start : found.end()]}"):
            return OurLine(code[found.end() :].replace("\\\n", " "), False)
    return None


def _cleaned(text: str) -> str:
    """Return a cell without what IPython takes off first: blank lines above it, indentation."""
    lines = f"{text}{_CURSOR}".splitlines(keepends=True)  # blanks at the end stay so
    for transform in TransformerManager().cleanup_transforms:
        lines = transform(lines)
    return "".join(lines).removesuffix(_CURSOR)


def _start_of_line(code: str) -> int:
    """Return where the last line begins, with the lines above it that go on behind a backslash."""
    start = code.rfind("\n") + 1
    while code.endswith("\\\n", 0, start):
        start = code.rfind("\n", 0, start - 1) + 1
    return start


def _is_run(code: str) -> bool:
    """Tell whether IPython runs a magic at the end of the code."""
    lines = f"{code} {_CURSOR}\n".splitlines(keepends=True)
    try:
        done = TransformerManager().do_token_transforms(lines)
    except Exception:  # a line further up is none that IPython can read
        return False
    return _RUN.search("".join(done)) is not None
