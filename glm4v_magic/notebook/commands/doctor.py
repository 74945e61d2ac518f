"""Looking at the machine: ``%glm4v doctor``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import takes
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.live.output import show
from glm4v_magic.notebook.render.doctor import doctor_bundle, findings_json

__all__ = ["doctor"]


@takes("glm4v doctor", *ARGUMENTS["doctor"])
def doctor(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Look at packages, driver, GPUs and disk: will a model run here?

    Nothing is loaded or changed. GPUs that are not here can be described::

        %glm4v doctor
        %glm4v doctor GLM-4.1V-9B-Thinking --gpus 4x16GiB
    """
    from glm4v_magic.doctor import MODEL, diagnose, gather

    gpus = None if arguments.gpus is None else parse_gpus(arguments.gpus)
    facts = gather(
        gpus,
        hub=arguments.hub,
        model=MODEL if arguments.model is None else arguments.model,
        revision=arguments.revision,
        base=arguments.base,
        lora=arguments.lora,
    )
    findings = diagnose(facts)
    show({"text/plain": findings_json(findings)} if arguments.as_json else doctor_bundle(findings))
