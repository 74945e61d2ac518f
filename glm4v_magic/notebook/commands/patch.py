"""A checkpoint's own code on disk, made consistent: ``%glm4v patch``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython.core.magic_arguments import argument

from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.command_line import DEBUG, takes
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.live.output import show

__all__ = ["patch"]


@takes(
    "glm4v patch",
    argument("folder", metavar="FOLDER", help="Of a GLM-4V-9B checkpoint with its own code."),
    argument("--dry-run", action="store_true", help="Show the diff, write nothing."),
    DEBUG,
)
def patch(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Edit a checkpoint's own code so that any split over GPUs works.

    For models that are loaded with ``trust_remote_code=True``, without this extension. Shows the
    diff of visual.py and modeling_chatglm.py and keeps the originals as *.orig::

        %glm4v patch ~/models/glm-4v-9b --dry-run
    """
    # libcst, which parses the code, is as heavy as all other commands together
    from glm4v_magic.remote_code.patch import patched

    told = patched(Path(arguments.folder).expanduser(), dry_run=arguments.dry_run)
    show({"text/plain": printable(told).rstrip()})
