"""Errors and interrupts of this package in a cell of Python, shown as one line.

A cell that calls us directly, as in ``answer.crop(9)``, needs no traceback through our modules.
Where other code is in between, the ordinary traceback tells where it is.
"""

from __future__ import annotations

import contextlib
import functools
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.errors import (
    ComparisonInterrupted,
    GenerationInterrupted,
    Glm4vError,
    LoadInterrupted,
    MapInterrupted,
)

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["show_as_one_line", "show_as_usual"]

_OURS = (str(Path(__file__).parents[1]), contextlib.__file__, functools.__file__)
"""Our files, and those through which our context managers and cached properties raise."""
_PACKAGE = __name__.partition(".")[0]
_CELL = re.compile(r"<ipython-input-(?P<number>\d+)-|.*[/\\]ipykernel_\d+[/\\]\d+\.py$")
_HOOK = "_render_traceback_"  # IPython asks an exception for it
_SHOWN = (
    Glm4vError,
    ComparisonInterrupted,
    GenerationInterrupted,
    LoadInterrupted,
    MapInterrupted,
)


def show_as_one_line(shell: InteractiveShell, is_debug: Callable[[], bool]) -> None:
    """Let a shell show our errors and interrupts as one line.

    Args:
        shell: the shell.
        is_debug: tells whether to show the ordinary traceback all the same.
    """

    def render(error: Any) -> list[str]:
        place = None if is_debug() else _place(shell, error)
        if place is None:
            tb = shell.InteractiveTB
            lines: list[str] = tb.structured_traceback(type(error), error, error.__traceback__)
            return lines
        from glm4v_magic.notebook.next_steps import of_python_in_cell

        return [f"{type(error).__name__}: {of_python_in_cell(error.text)} ({place})"]

    for each in _SHOWN:
        setattr(each, _HOOK, render)


def show_as_usual() -> None:
    """Undo `show_as_one_line`."""
    for each in _SHOWN:
        if _HOOK in vars(each):
            delattr(each, _HOOK)


def _place(shell: InteractiveShell, error: BaseException) -> str | None:
    """Return the line of a cell that called us; ``None`` if other code is in between."""
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        cell = _cell(shell, file)
        if cell is not None:
            place = f"{cell}, line {line}"
        elif place is not None and not file.startswith(_OURS) and not _is_generated(frame):
            return None
    return place


def _is_generated(frame: FrameType) -> bool:
    """Tell whether code is of a module of ours, as what `dataclasses` write, which has no file."""
    return str(frame.f_globals.get("__name__")).startswith(f"{_PACKAGE}.")


def _cell(shell: InteractiveShell, filename: str) -> str | None:
    """Return the name of the cell that was compiled as this file; ``None`` if none was."""
    if hasattr(shell.compile, "format_code_name"):
        named: tuple[str, str] | None = shell.compile.format_code_name(filename)
        return None if named is None else " ".join(named)
    # IPython 7 has only the names of the files, which are numbered in terminals.
    cell = _CELL.match(filename)
    if cell is None:
        return None
    return f"Cell In[{cell['number']}]" if cell["number"] else "Cell"
