"""The model in use: ``%glm4v load``, ``unload`` and ``status``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from IPython.core.magic_arguments import argument

from glm4v_magic.command_line import DEBUG, takes
from glm4v_magic.commands.context import Context
from glm4v_magic.display.progress import line_bundle
from glm4v_magic.display.status import status_bundle, status_rows
from glm4v_magic.screen import screen_for, show
from glm4v_magic.session import DTYPES, ModelChoice

__all__ = ["load", "status", "unload"]


@takes(
    "glm4v load",
    argument("model", nargs="?", help="Folder, id of a downloaded repository, or demo."),
    argument("--dtype", help=f"Of the weights: {', '.join(DTYPES)}."),
    DEBUG,
)
def load(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Load a model, releasing the one before.

    Without MODEL the model of the last load, at first the embedded demo model::

        %glm4v load ~/models/glm-4v-9b --dtype bfloat16
    """
    before = context.session.status()
    model = arguments.model or before.choice.model
    screen = screen_for(context.shell, ModelChoice(model).name)
    try:
        context.session.load(model, dtype=arguments.dtype, on_progress=screen.loading)
        info = context.session.status().info
        if info is not None:
            screen.loaded(info)
        if info is not None and info is before.info:
            show(line_bundle(f"{info.model} is loaded already."))
    finally:
        screen.close()


@takes("glm4v unload", DEBUG)
def unload(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Give the model's memory back. The next question loads the model again."""
    choice = context.session.status().choice
    was = "unloaded" if context.session.unload() else "not loaded"
    show(line_bundle(f"{choice.name} was {was}."))


@takes("glm4v status", DEBUG)
def status(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Show the model, where it is, what it takes, and what the last answer cost."""
    now = context.session.status()
    rows = status_rows(now.choice.name, now.info, now.last, busy=now.busy)
    show(status_bundle(rows))
