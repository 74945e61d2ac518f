"""Looks into answers, as a widget where there can be one.

What shows them imports numpy and torch, and so is imported when there is one to show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.live.output import show
from glm4v_magic.notebook.next_steps import in_cell
from glm4v_magic.notebook.render.progress import line_bundle

if TYPE_CHECKING:
    from glm4v_magic.inspect.comparison import Comparison
    from glm4v_magic.inspect.inspection import Inspection

__all__ = ["open_comparison", "open_look", "open_result"]


def open_look(context: Context, look: Inspection) -> None:
    """Show a look into an answer."""
    if not context.has_widgets:
        from glm4v_magic.notebook.render.answers.inspection import inspection_bundle

        show(inspection_bundle(look))
        return
    from glm4v_magic.notebook.widgets.inspection import InspectionWidget
    from glm4v_magic.notebook.widgets.looks import OneAnswer

    context.open(InspectionWidget(context.shell, OneAnswer(look)))


def open_comparison(context: Context, comparison: Comparison) -> None:
    """Show two answers side by side."""
    if not context.has_widgets:
        from glm4v_magic.notebook.render.answers.comparison import comparison_bundle

        show(comparison_bundle(comparison))
        return
    from glm4v_magic.notebook.widgets.inspection import InspectionWidget
    from glm4v_magic.notebook.widgets.looks import TwoAnswers

    context.open(InspectionWidget(context.shell, TwoAnswers(comparison)))


def open_result(context: Context, result: Inspection | Comparison) -> None:
    """Show the result of a cell; what prevents it is said in a line below what the result is."""
    from glm4v_magic.inspect.comparison import Comparison

    try:
        if isinstance(result, Comparison):
            open_comparison(context, result)
        else:
            open_look(context, result)
    except Glm4vError as error:
        show(line_bundle(f"{result!r}\n{in_cell(error)}"))
