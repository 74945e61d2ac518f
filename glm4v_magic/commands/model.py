"""The model in use: ``%glm4v load``, ``unload`` and ``status``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from IPython.core.magic_arguments import argument

from glm4v_magic.command_line import DEBUG, takes
from glm4v_magic.commands.context import Context
from glm4v_magic.commands.plan import PLACEMENT_OPTIONS, placement_options
from glm4v_magic.display.progress import line_bundle
from glm4v_magic.display.status import status_bundle, status_rows
from glm4v_magic.screen import screen_for, show
from glm4v_magic.session import ModelChoice

__all__ = ["load", "status", "unload"]


@takes(
    "glm4v load",
    argument("model", nargs="?", help="Folder, id of a repository on the hub, or demo."),
    *PLACEMENT_OPTIONS,
    argument("--map", metavar="FILE", help="Follow this device map or plan (JSON)."),
    argument("--revision", metavar="SHA", help="Commit, branch or tag of the repository."),
    DEBUG,
)
def load(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Load a model, releasing the one before.

    Without MODEL the model of the last load, at first that of %glm4v config model, at the very
    first the embedded demo model. With GPUs, a plan decides which card runs which layers; see
    %glm4v plan::

        %glm4v load ~/models/glm-4v-9b --context 4096
        %glm4v load ~/models/glm-4v-9b --gpus 2x16GiB --quantize 4bit
    """
    before = context.session.status()
    model = arguments.model or before.choice.model or context.settings.model
    screen = screen_for(context.shell, ModelChoice(model).name)
    try:
        context.session.load(
            model,
            revision=arguments.revision,
            device_map=arguments.map,
            on_progress=screen.loading,
            **placement_options(arguments),
        )
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
    rows = status_rows(context.model, now.info, now.last, busy=now.busy)
    show(status_bundle(rows))
