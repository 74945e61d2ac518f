"""Dry run of a model: ``%glm4v check``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import BusyError, PlacementError
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.plan import Plan
from glm4v_magic.dry_run.files import report_to_json
from glm4v_magic.dry_run.text import raise_if_unusable
from glm4v_magic.hardware.usable import gpus_here
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import takes
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.commands.plan import (
    given_map,
    json_file,
    placement_options,
    show_written,
)
from glm4v_magic.notebook.live.output import show
from glm4v_magic.notebook.own_options import PRINT
from glm4v_magic.notebook.render.plans.dry_run import dry_run_bundle
from glm4v_magic.planning.files import read_given
from glm4v_magic.planning.followed import planned_gpus

__all__ = ["check"]


@takes("glm4v check", *ARGUMENTS["check"])
def check(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Dry run of a model: would this placement work, and what would it take?

    A real prefill and decode steps on virtual GPUs, from the configuration alone: no weights, no
    GPU. Shows operations that would mix devices, the fullest moment of each GPU, and the copies
    between them; fails if the model would not run. A loaded model stays as it is::

        %glm4v check GLM-4V-9B --gpus 8x16GiB
        %glm4v check GLM-4.1V-9B-Thinking --gpus 4x16GiB --context 8192 --map auto
        %glm4v check ~/models/glm-4v-9b --gpus 2x24GiB --map map.json --json report.json
        %glm4v check --map plan.json
        made = %glm4v plan GLM-4V-9B --gpus 4x16GiB
        %glm4v check --map made

    A plan, in a file or a variable, is checked as it was made: its model, its options, and
    on a machine without GPUs its GPUs, too. Another context, number of images or batch may be
    tried with it.
    """
    status = context.session.status()
    if status.busy:  # virtual GPUs change torch for all threads
        raise BusyError("The model is at work.", "Check when it has finished.")
    file = json_file(arguments.json, "--json")
    given = given_map(arguments.device_map, names)
    if given is None:
        given = "plan"
    planned = given if isinstance(given, Plan) else None
    from glm4v_magic.dry_run.run import dry_run, is_on_cpu

    is_placed = given is not None and not isinstance(given, str)
    on_cpu = is_placed and is_on_cpu(read_given(given))
    gpus = _gpus(arguments.gpus, planned, is_needed=not on_cpu)
    options = placement_options(arguments)
    options.pop("gpus", None)
    model = architecture(
        context.named_in(arguments, planned), **context.made_of(arguments, planned)
    )

    report = dry_run(model, gpus, given, **options)
    if arguments.json == PRINT:
        show({"text/plain": report_to_json(report)})
    else:
        show(dry_run_bundle(report))
    if file is not None:
        show_written("The report", file, report_to_json(report))
    raise_if_unusable(report)


def _gpus(description: str | None, plan: Plan | None, *, is_needed: bool) -> tuple[GPU, ...]:
    """Return the GPUs that are described, those of this machine, or else those of the plan.

    Raises:
        PlacementError: if there is none, but one is needed.
    """
    gpus = gpus_here() if description is None else parse_gpus(description)
    if description is None and plan is not None and not gpus:
        gpus = planned_gpus(plan)
    if not gpus and is_needed:
        found = "No GPU was found here" if description is None else f"{description} is not a GPU"
        raise PlacementError(f"{found}.", "Describe the GPUs to check for: --gpus 4x16GiB.")
    return gpus
