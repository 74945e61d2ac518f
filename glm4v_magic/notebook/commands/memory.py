"""Watching memory: ``%glm4v memory``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import takes
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.live.output import show
from glm4v_magic.notebook.render.memory import memory_bundle

__all__ = ["memory"]


@takes("glm4v memory", *ARGUMENTS["memory"])
def memory(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Show what is in the memory of each GPU, live in a notebook.

    This model's weights, this kernel's other memory, other programs, and what is free; how that
    went over the last minutes, with the peak of each answer. Without GPUs the host's memory, within
    VirtualGPUs("4x16GiB") that of the virtual GPUs. The view stays when the kernel is gone.
    """
    if context.has_widgets:
        from glm4v_magic.notebook.widgets.memory import MemoryWidget

        context.open(MemoryWidget(context.monitor))
    else:
        show(memory_bundle(context.monitor.view()))
