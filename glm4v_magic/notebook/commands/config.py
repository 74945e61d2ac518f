"""Looking at the settings: ``%glm4v config``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import takes
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.live.output import show
from glm4v_magic.notebook.render.settings import settings_bundle

__all__ = ["config"]


@takes("glm4v config", *ARGUMENTS["config"])
def config(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Show the settings: their values, where these come from, what they mean.

    Set one for this session with %config, for a project in its pyproject.toml, or in the
    environment::

        %config Glm4v.temperature = 0

        [tool.glm4v_magic]
        temperature = 0

        GLM4V_TEMPERATURE=0

    An option of a cell is stronger than any of these; then come %config, the environment,
    pyproject.toml, and IPython's own configuration (c.Glm4v.temperature = 0).
    """
    show(settings_bundle(context.settings.table(arguments.name)))
