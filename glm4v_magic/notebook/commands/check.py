"""Dry run of a model: ``%glm4v check``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython.core.magic_arguments import argument

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.names import PUBLISHED
from glm4v_magic.core.errors import BusyError, OptionError, PlacementError
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.options import of_command, taken
from glm4v_magic.core.typed_options import typed
from glm4v_magic.dry_run.files import report_to_json
from glm4v_magic.dry_run.text import raise_if_unusable
from glm4v_magic.hardware.usable import gpus_here
from glm4v_magic.notebook.command_line import DEBUG, from_table, takes
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.live.output import show
from glm4v_magic.notebook.render.plans.dry_run import dry_run_bundle
from glm4v_magic.notebook.render.progress import line_bundle

__all__ = ["check"]

_PRINT = ""  # value of --json without a file


@takes(
    "glm4v check",
    argument("model", nargs="?", help=f"Folder, repository, demo, {', '.join(PUBLISHED)}."),
    *from_table(
        "check",
        device_map={
            "default": "plan",
            "help": "Device map or plan (JSON), auto for transformers' own, or plan (the default).",
        },
    ),
    argument(
        "--json",
        nargs="?",
        const=_PRINT,
        metavar="FILE.json",
        help="Show the report as JSON, or write it to a file.",
    ),
    DEBUG,
)
def check(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Dry run of a model: would this placement work, and what would it take?

    A real prefill and decode steps on virtual GPUs, from the configuration alone: no weights, no
    GPU. Shows operations that would mix devices, the fullest moment of each GPU, and the copies
    between them; fails if the model would not run. A loaded model stays as it is::

        %glm4v check GLM-4V-9B --gpus 8x16GiB
        %glm4v check GLM-4.1V-9B-Thinking --gpus 4x16GiB --context 8192 --map auto
        %glm4v check ~/models/glm-4v-9b --gpus 2x24GiB --map map.json --json report.json
    """
    status = context.session.status()
    if status.busy:  # virtual GPUs change torch for all threads
        raise BusyError("The model is at work.", "Check when it has finished.")
    file = _json_file(arguments.json)
    gpus = _gpus(arguments.gpus)
    work = taken(Workload, typed(arguments, of_command("check")))
    model = architecture(arguments.model or context.model, base=arguments.base, lora=arguments.lora)

    from glm4v_magic.dry_run.run import dry_run

    report = dry_run(
        model,
        gpus,
        arguments.device_map,
        context=work.context,
        images=work.images,
        batch=work.batch,
        dtype=work.dtype,
    )
    if arguments.json == _PRINT:
        show({"text/plain": report_to_json(report)})
    else:
        show(dry_run_bundle(report))
    if file is not None:
        _write(file, report_to_json(report))
        show(line_bundle(f"The report is in {file}."))
    raise_if_unusable(report)


def _gpus(description: str | None) -> tuple[GPU, ...]:
    gpus = gpus_here() if description is None else parse_gpus(description)
    if not gpus:
        found = "No GPU was found here" if description is None else f"{description} is no GPU"
        raise PlacementError(f"{found}.", "Describe the GPUs to check for: --gpus 4x16GiB.")
    return gpus


def _json_file(name: str | None) -> Path | None:
    if name is None or name == _PRINT:
        return None
    if not name.endswith(".json"):
        raise OptionError(
            f"--json {name}: the name of the file must end in .json.",
            f"To see {name} as JSON, write it first: %glm4v check {name} --json.",
        )
    return Path(name).expanduser()


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OptionError(f"--json {file} cannot be written: {error.strerror or error}.") from error
