"""A checkpoint's own code on disk, made consistent: ``%glm4v patch``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import takes
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.live.output import show

__all__ = ["patch"]


@takes("glm4v patch", *ARGUMENTS["patch"])
def patch(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Edit a checkpoint's own code so that any split over GPUs works.

    For models that are loaded with ``trust_remote_code=True``, without this extension, in an
    environment with transformers 4.42 to 4.48. Shows the diff of visual.py and
    modeling_chatglm.py, also of transformers' copies of them, and keeps the originals as *.orig::

        %glm4v patch ~/models/glm-4v-9b --dry-run
        %glm4v patch THUDM/glm-4v-9b
    """
    # libcst, which parses the code, is as heavy as all other commands together
    from glm4v_magic.remote_code.patch import patched

    told = patched(arguments.folder, dry_run=arguments.dry_run)
    show({"text/plain": printable(told).rstrip()})
