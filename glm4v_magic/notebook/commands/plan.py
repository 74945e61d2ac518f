"""``%glm4v plan``, and what it shares with ``%glm4v load``."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DeviceMapError, OptionError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model import Architecture
from glm4v_magic.core.options import PlacementFields, of_group
from glm4v_magic.core.placement import GivenMap, PlacementOptions
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.remarks import worded
from glm4v_magic.core.text_files import OTHER_NAME, replace_text
from glm4v_magic.core.typed_options import typed
from glm4v_magic.hardware.cpu import cpu_here
from glm4v_magic.hardware.usable import gpus_here
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import takes
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.live.output import show
from glm4v_magic.notebook.next_steps import CELL
from glm4v_magic.notebook.own_options import PRINT
from glm4v_magic.notebook.render.plans.device_map import device_map_html
from glm4v_magic.notebook.render.plans.machines import machines_bundle
from glm4v_magic.notebook.render.plans.plan import plan_bundle
from glm4v_magic.notebook.render.progress import line_bundle
from glm4v_magic.outside import expanded, is_file, is_folder
from glm4v_magic.planning.decision import make_plan, unseen
from glm4v_magic.planning.files import PLANNED, read_given
from glm4v_magic.planning.machines import MachineFit, machines
from glm4v_magic.planning.occupancy import occupancy

__all__ = [
    "as_options",
    "given_map",
    "json_file",
    "named_map",
    "names_a_file",
    "placement_options",
    "plan",
    "show_written",
]

_LONGEST_PATH = 160  # characters of a path in a message


def placement_options(arguments: Namespace) -> dict[str, Any]:
    """Return the placement options that were typed, by the names of `Session.load`."""
    return typed(arguments, of_group(PlacementFields))


def as_options(given: Mapping[str, Any]) -> PlacementOptions:
    """Return the result of `placement_options` as a dataclass."""
    return PlacementOptions(**given)


@takes("glm4v plan", *ARGUMENTS["plan"])
def plan(
    context: Context, arguments: Namespace, names: Mapping[str, Any]
) -> Plan | tuple[MachineFit, ...]:
    """Show which GPU would run which part of a model; loads nothing.

    Without MODEL the model in use. A published model need not be here, nor the GPUs::

        %glm4v plan GLM-4V-9B --gpus 4x16GiB
        %glm4v plan GLM-4.1V-9B-Thinking --gpus 24+16+12GiB --context 8192

    A plan can be kept, checked and loaded as it is, with the options that it was made with. As a
    Python object, it is what load(device_map=...) takes::

        %glm4v plan GLM-4V-9B --gpus 4x16GiB --quantize 4bit --save plan.json
        %glm4v check GLM-4V-9B --gpus 4x16GiB --map plan.json
        %glm4v load ~/models/glm-4v-9b --map plan.json
        made = %glm4v plan GLM-4V-9B --gpus 4x16GiB

    Which machine to rent or buy, for the context, images and batch that are given::

        %glm4v plan GLM-4.1V-9B-Thinking --machines --context 8192
    """
    files = [json_file(arguments.save, "--save"), json_file(arguments.json, "--json")]
    model = architecture(context.named(arguments.model), **context.made_of(arguments))
    options = as_options(placement_options(arguments))
    if arguments.machines:
        return _on_machines(model, options, arguments)
    gpus = gpus_here() if options.gpus is None else parse_gpus(options.gpus)
    made = make_plan(model, options, gpus, cpu=cpu_here())
    if arguments.json == PRINT:
        print(made.to_json())  # noqa: T201  as a display it would be quoted, or cut off
    else:
        bundle = plan_bundle(made)
        image = device_map_html(occupancy(made, model.shape(), gpus))
        show({**bundle, "text/html": image + bundle["text/html"]})
    for file in filter(None, files):
        show_written("The plan", file, made.to_json())
    return made


def _on_machines(
    model: Architecture, options: PlacementOptions, arguments: Namespace
) -> tuple[MachineFit, ...]:
    """Show a model on common machines.

    Raises:
        OptionError: if GPUs are described, or a plan is to be written.
    """
    file = json_file(arguments.json, "--json")
    if options.gpus is not None or arguments.save:
        what = "--save" if arguments.save else "--gpus"
        raise OptionError(
            f"--machines shows a table of common machines, so {what} has no meaning.",
            "Leave it out; --json FILE writes the table.",
        )
    found = machines(model, options)
    text = json.dumps([fit.as_json() for fit in found], indent=2)
    if arguments.json == PRINT:
        print(text)  # noqa: T201  as a display it would be quoted, or cut off
    else:
        show(machines_bundle(model.name, found))
        for note in unseen(model.shape()):
            show(line_bundle(worded(note, CELL)))
    if file is not None:
        show_written("The table", file, text)
    return found


def given_map(typed: str | None, names: Mapping[str, Any]) -> GivenMap | None:
    """Return what ``--map`` names: a word for a way to place a model, or a plan or map.

    Args:
        typed: as `named_map` takes it.
        names: variables of the notebook.
    """
    named = named_map(typed, names)
    return None if named is None else read_given(named) or named


def named_map(typed: str | None, names: Mapping[str, Any]) -> GivenMap | None:
    """Return the value of the variable that ``--map`` names, or else the word itself.

    A variable may hold whatever `load(device_map=...)` takes. Words for ways and devices are
    themselves, and a file comes before a variable that holds neither a plan nor a map.

    Args:
        typed: a word for a way to place a model or for a device, a map in JSON, or the name of a
            file or variable.
        names: variables of the notebook.

    Raises:
        DeviceMapError: if the variable holds nothing that says where a model goes.
    """
    if typed is None or typed not in names or typed in PLANNED:
        return typed
    held: GivenMap = names[typed]
    if not isinstance(held, Plan | Mapping):
        if not names_a_file(typed) or is_file(expanded(typed)):
            return typed
        try:
            names_a_file(held)
        except DeviceMapError as error:
            error.what = f"{typed} is a variable. {error.what}"
            raise
    return held


def names_a_file(given: GivenMap) -> bool:
    """Tell whether a device map is the name of a file, there or not; `read_given` reads it.

    Raises:
        DeviceMapError: if it is neither that nor anything else that says where a model goes.
    """
    from glm4v_magic.planning.given_map import whole

    if isinstance(given, Plan | Mapping):
        return False
    if isinstance(given, str) and (given in PLANNED or given.lstrip().startswith("{")):
        return False
    return whole(given) is None


def json_file(name: str | None, option: str) -> Path | None:
    """Return the file that an option names, if it names one.

    Raises:
        OptionError: if its name does not end in ``.json``, as a model's would not, or is empty
            for an option that needs one.
    """
    if name == PRINT and option == "--save":
        raise OptionError(f"{option} is empty.", f"Name a file: {option} plan.json")
    if name is None or name == PRINT:
        return None
    if not name.endswith(".json"):
        way = f"To name a model, put it before the option: {name} {option}."
        if option == "--save":  # which needs a file, so that no model can be meant
            way = f"For example: {option} {Path(name).stem or 'plan'}.json"
        raise OptionError(f"{option} {name}: the name of the file must end in .json.", way)
    return expanded(name)


def show_written(what: str, file: Path, text: str) -> None:
    """Write a result to a file, and say in a line that it was written, or why not.

    A failure is not an error: the result itself exists, and stays.

    Args:
        what: what the result is called, as in "The plan".
        file: the file; one of the same kind that is there is replaced.
        text: the result.
    """
    try:
        replace_text(file, text + "\n", is_json=True)
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, FileNotFoundError) and not is_folder(file.parent):
            reason = f"there is no folder {_short(file.parent)}"
        told = f"{what} is shown here, but cannot be written to {_short(file)}: {reason}."
        if isinstance(error, FileExistsError):
            told += f" {OTHER_NAME}"
        show(line_bundle(told))
    else:
        show(line_bundle(f"{what} is in {_short(file)}."))


def _short(path: Path) -> str:
    """Return a path for a message; of a long one, such as pasted text, both ends."""
    text = str(path)
    return text if len(text) <= _LONGEST_PATH else f"{text[:40]}...{text[-60:]}"
