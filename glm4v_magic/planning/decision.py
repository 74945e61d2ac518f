"""Turns a user's options and GPUs into a checked placement: a plan, or a given device map.

Nothing is loaded here. `decide` runs while the previous model is still in memory, so an error in
it costs nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from glm4v_magic.core.errors import DeviceMapError, OptionError
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.model_shape import ModelShape
from glm4v_magic.core.options import Quantization
from glm4v_magic.core.placement import (
    CPU_DTYPE,
    DeviceMap,
    GivenMap,
    Place,
    PlacementOptions,
)
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.remarks import Remark
from glm4v_magic.core.wording import counted
from glm4v_magic.planning.device_map import check
from glm4v_magic.planning.files import read_given
from glm4v_magic.planning.plan import plan
from glm4v_magic.planning.precision import Precision, of_plan, precision

if TYPE_CHECKING:
    from glm4v_magic.core.model import Architecture

__all__ = [
    "Placement",
    "choose",
    "decide",
    "make_plan",
]


_GIB = 2**30

# Options that have no meaning beside a given device map.
_OF_A_PLAN = (
    "context",
    "images",
    "batch",
    "objective",
    "max_memory",
    "reserve",
    "split_vision",
    "offload",
    "pin",
)


@dataclass(frozen=True, slots=True)
class Placement:
    """A checked decision on where a model goes, made before it is loaded.

    Attributes:
        dtype: dtype of the weights that are not quantised.
        device_map: module -> GPU index or ``cpu``; ``None`` if all is on the CPU.
        execution_map: device that offloaded modules run on; empty leaves it to `dispatch`.
        plan: plan of the device map; ``None`` for a given map and for the CPU.
        quantize: quantisation of the text part's linear layers, if any.
        fp8: whether weights that were published in FP8 stay so.
        notes: differences from the published weights.
    """

    dtype: str = CPU_DTYPE
    device_map: DeviceMap | None = None
    execution_map: DeviceMap = field(default_factory=dict)
    plan: Plan | None = None
    quantize: Quantization | None = None
    fp8: bool = False
    notes: tuple[Remark, ...] = ()


def make_plan(
    architecture: Architecture, options: PlacementOptions, gpus: Sequence[GPU] | None = None
) -> Plan:
    """Plan a model; imports no torch.

    Args:
        architecture: model to plan for.
        options: placement options.
        gpus: GPUs to plan for; by default those that `options` describe.

    Raises:
        DoesNotFitError: if no split fits.
        OptionError: if the workload or the images do not suit the model, or no GPUs are given or
            described.
    """
    most = architecture.max_images
    if most is not None and options.images > most:
        raise OptionError(
            f"{architecture.name} takes {counted(most, 'image')}, not {options.images}."
        )
    if gpus is None:
        if options.gpus is None:
            raise OptionError("Nothing tells which GPUs to plan for.", 'Describe them: "2x24GiB".')
        gpus = parse_gpus(options.gpus)
    shape = architecture.shape()
    chosen = precision(shape, gpus, options.dtype, options.quantize, whole=not options.offload)
    workload = replace(options.workload, dtype=chosen.dtype, fp8=chosen.fp8)
    made = plan(
        shape,
        _capped(gpus, options.memory_sizes),
        workload,
        objective=options.objective,
        reserve=None if options.reserve is None else int(options.reserve * _GIB),
        pin=dict(options.pin),
        split_vision=options.split_vision,
        offload=options.offload,
    )
    return replace(made, notes=(*chosen.notes, *made.notes))


def choose(
    architecture: Architecture,
    options: PlacementOptions,
    gpus: Sequence[GPU],
    given: GivenMap | None = None,
) -> Plan | DeviceMap | None:
    """Make a plan, or read the given map or plan; ``None`` if there are no GPUs to plan for.

    Arguments and errors are those of `decide`, but whether a map suits the model is not checked.
    """
    if given is not None:
        _refuse_options_of_a_plan(options)
    if options.quantize is not None:
        shape = architecture.shape()
        if shape.fp8 or shape.scheme:
            scheme = "in FP8" if shape.fp8 else f"quantised by {shape.scheme}"
            raise OptionError(
                f"The weights of {architecture.name} were published {scheme}, and "
                f"{options.quantize} weights are made of full ones.",
                code="quantised_already",
            )
        if not shape.quantizable:
            raise OptionError(
                f"The layers of {architecture.name} cannot be quantised as they are loaded.",
                "Leave quantize out.",
            )
        _require_bitsandbytes(options.quantize)
    if given is not None:
        return read_given(given)
    made = make_plan(architecture, options, gpus)  # without GPUs it checks the workload
    return made if gpus else None


def decide(
    architecture: Architecture,
    options: PlacementOptions,
    gpus: Sequence[GPU],
    given: GivenMap | None = None,
) -> Placement:
    """Decide where a model goes.

    Args:
        architecture: model to place.
        options: placement options; `gpus` already follows their description of the GPUs.
        gpus: GPUs to use; `hardware.usable.usable_gpus` finds those of this machine.
        given: device map or plan to follow instead of making one.

    Raises:
        DoesNotFitError: if no split fits.
        DeviceMapError: if a device map does not suit the model or the GPUs.
        OptionError: if an option has no meaning here, does not suit the model, or needs a package
            that is not installed.
    """
    chosen = choose(architecture, options, gpus, given)
    shape = architecture.shape()
    if chosen is None:
        on_cpu = precision(shape, (), options.dtype, options.quantize)
        return Placement(on_cpu.dtype, quantize=options.quantize, notes=on_cpu.notes)
    made = chosen if isinstance(chosen, Plan) else None
    wanted = chosen.device_map() if isinstance(chosen, Plan) else chosen
    weights = check(wanted, architecture.module_tree(), gpus)
    on_gpus = any(place != "cpu" for place in weights.values())
    if (options.quantize is not None or shape.packed is not None) and on_gpus:
        _require_quantised_on_gpus(shape, weights)
    whole = on_gpus and "cpu" not in weights.values()
    held = precision(shape, gpus if on_gpus else (), options.dtype, options.quantize, whole=whole)
    if made is not None and options.dtype is None:
        held = _as_planned(made, held)
    if held.fp8:
        _require_kernels()
    return Placement(
        dtype=held.dtype,
        device_map=weights,
        execution_map=_execution(made),
        plan=made,
        quantize=options.quantize,
        fp8=held.fp8,
        notes=held.notes,
    )


def _refuse_options_of_a_plan(options: PlacementOptions) -> None:
    defaults = {option.name: option.default for option in fields(options)}
    for name in _OF_A_PLAN:
        if getattr(options, name) != defaults[name]:
            raise OptionError(
                f"{name} is for making a plan, but a device map is given.",
                "Leave one of them out.",
                option=name,
            )


def _require_bitsandbytes(kind: Quantization) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise OptionError(
            f"{kind} weights need bitsandbytes, which is not installed.",
            "Install it with: pip install 'glm4v_magic[quantize]'",
        )


def _require_quantised_on_gpus(shape: ModelShape, weights: DeviceMap) -> None:
    """Raise DeviceMapError if a map keeps a part of a quantised layer on the CPU."""
    is_packed = shape.packed is not None
    quantised = [
        module
        for unit in shape.units
        if (unit.packed_values if is_packed else unit.linear_values)
        for module in unit.modules
    ]
    for name, place in weights.items():
        if place != "cpu":
            continue
        inside = (f"{name}.".startswith(f"{module}.") for module in quantised)
        around = (f"{module}.".startswith(f"{name}.") for module in quantised)
        if any(inside) or any(around):
            raise DeviceMapError(
                f"The device map keeps {name} on the CPU, and quantised layers cannot be "
                "offloaded.",
                "Put the quantised layers on GPUs; the rest may be on the CPU.",
            )


def _as_planned(made: Plan, here: Precision) -> Precision:
    if made.workload.fp8 and not here.fp8:
        raise DeviceMapError(
            "The plan keeps weights in FP8, which these GPUs cannot compute with.",
            "Make a plan for these GPUs.",
        )
    return of_plan(made)


def _require_kernels() -> None:
    if importlib.util.find_spec("kernels") is None:
        raise OptionError(
            "Weights that stay in FP8 need the package kernels, which is not installed.",
            code="kernels_missing",
        )


def _execution(made: Plan | None) -> dict[str, Place]:
    return {} if made is None else made.execution_map()


def _capped(gpus: Sequence[GPU], sizes: tuple[float, ...]) -> tuple[GPU, ...]:
    if not sizes or not gpus:
        return tuple(gpus)
    if len(sizes) == 1:
        sizes *= len(gpus)
    if len(sizes) != len(gpus):
        raise OptionError(
            f"max_memory has {counted(len(sizes), 'size')} for {counted(len(gpus), 'GPU')}.",
            "Give one number, or one for each GPU.",
            option="max_memory",
        )
    return tuple(
        replace(gpu, free_bytes=min(gpu.usable_bytes, int(size * _GIB)))
        for gpu, size in zip(gpus, sizes, strict=True)
    )
