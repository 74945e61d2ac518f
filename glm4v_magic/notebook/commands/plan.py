"""``%glm4v plan``, and the options that it shares with ``%glm4v load``."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from IPython.core.magic_arguments import argument

from glm4v_magic.checkpoints.architecture import PUBLISHED, architecture
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model import Architecture
from glm4v_magic.core.model_shape import DTYPE_BYTES, QUANTIZATIONS
from glm4v_magic.core.placement import CPU_DTYPE, PlacementOptions
from glm4v_magic.notebook.command_line import DEBUG, takes
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.render.device_map import device_map_html
from glm4v_magic.notebook.render.plan import plan_bundle
from glm4v_magic.notebook.screen import show
from glm4v_magic.planning.decision import gpus_here, make_plan
from glm4v_magic.planning.files import plan_to_json
from glm4v_magic.planning.occupancy import occupancy

__all__ = [
    "PLACEMENT_OPTIONS",
    "as_options",
    "find_architecture",
    "load_line",
    "placement_options",
    "plan",
]


def _sizes(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is not a size in GiB, or sizes such as 20,20,10"
        ) from None


def _pins(text: str) -> dict[str, int]:
    pins = {}
    for part in text.split(","):
        unit, _, index = part.partition("=")
        index = index.strip().removeprefix("cuda:")
        if not unit.strip() or not (index.isascii() and index.isdigit()):
            raise ArgumentTypeError(f"{part!r} is not a unit and its GPU, such as vision=0")
        pins[unit.strip()] = int(index)
    return pins


PLACEMENT_OPTIONS = (
    argument("--gpus", metavar="SPEC", help='GPUs, such as "2x16GiB", or cpu; else those here.'),
    argument(
        "--context",
        type=int,
        metavar="N",
        help="Positions (tokens, and those of images) of prompt and answer to plan for; the "
        "model's longest unless given.",
    ),
    argument("--images", type=int, metavar="N", help="Images of a prompt; 1 unless given."),
    argument("--batch", type=int, metavar="N", help="Prompts at once; 1 unless given."),
    argument("--objective", metavar="GOAL", help="balance (the default), or fewest GPUs that fit."),
    argument(
        "--dtype",
        help=f"Of the weights: {', '.join(DTYPE_BYTES)}; as published on GPUs and "
        f"{CPU_DTYPE} on the CPU unless given.",
    ),
    argument("--quantize", metavar="KIND", help=f"The text part in {' or '.join(QUANTIZATIONS)}."),
    argument(
        "--max-memory", type=_sizes, metavar="GIB", help="Most to use of a GPU, or of each: 20,10."
    ),
    argument(
        "--reserve",
        type=float,
        metavar="GIB",
        help="Of each GPU to leave alone; 3 %% of it unless given.",
    ),
    argument("--split-vision", action="store_true", help="Cut the tower where that balances."),
    argument("--offload", action="store_true", help="Keep layers in host memory if need be."),
    argument(
        "--pin", type=_pins, metavar="UNIT=GPU", help="Units to a GPU: vision=0,layer.7=1,head=1."
    ),
)


def placement_options(arguments: Namespace) -> dict[str, Any]:
    """Return the placement options that were typed, by the names of `Session.load`."""
    names = PlacementOptions.__dataclass_fields__
    typed = {name: getattr(arguments, name) for name in names}
    if typed["max_memory"] is not None and len(typed["max_memory"]) == 1:
        (typed["max_memory"],) = typed["max_memory"]
    return {
        name: value for name, value in typed.items() if value is not None and value is not False
    }


def as_options(typed: Mapping[str, Any]) -> PlacementOptions:
    """Return what `placement_options` found as plain data."""
    return PlacementOptions(**{**typed, "pin": tuple(typed.get("pin", {}).items())})


def load_line(model: str, options: PlacementOptions) -> str:
    """Return the line that loads `model` with `options`."""
    words = ["%glm4v load", _quoted(model)]
    for option in fields(PlacementOptions):
        value = getattr(options, option.name)
        if value == option.default:
            continue
        words.append(f"--{option.name.replace('_', '-')}")
        if option.name == "pin":
            words.append(",".join(f"{unit}={index}" for unit, index in value))
        elif isinstance(value, tuple):
            words.append(",".join(f"{size:g}" for size in value))
        elif value is not True:
            words.append(_quoted(f"{value:g}" if isinstance(value, float) else str(value)))
    return " ".join(words)


def _quoted(word: str) -> str:
    if not any(sign.isspace() or sign in "\"'" for sign in word):
        return word
    return f"'{word}'" if '"' in word else f'"{word}"'


@takes(
    "glm4v plan",
    argument("model", nargs="?", help=f"Folder, repository, demo, {', '.join(PUBLISHED)}."),
    *PLACEMENT_OPTIONS,
    argument("--json", action="store_true", help="As JSON, which load --map reads."),
    DEBUG,
)
def plan(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Show which GPU would run which part of a model; loads nothing.

    Without MODEL the model in use. A published model need not be here, nor the GPUs::

        %glm4v plan GLM-4V-9B --gpus 4x16GiB
        %glm4v plan GLM-4.1V-9B-Thinking --gpus 24+16+12GiB --context 8192
    """
    model = find_architecture(arguments.model or context.model)
    options = as_options(placement_options(arguments))
    gpus = gpus_here() if options.gpus is None else parse_gpus(options.gpus)
    made = make_plan(model, options, gpus)
    if arguments.json:
        show({"text/plain": plan_to_json(made)})
        return
    bundle = plan_bundle(made)
    image = device_map_html(occupancy(made, model.shape(), gpus))
    show({**bundle, "text/html": image + bundle["text/html"]})


def find_architecture(name: str) -> Architecture:
    """The model behind a name that `load` takes, or behind a published one."""
    from glm4v_magic.checkpoints import hub

    try:
        return architecture(name)
    except CheckpointError:
        folder = hub.cached(name)
        if folder is None:
            raise
    return architecture(folder)
