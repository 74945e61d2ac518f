"""From what was asked to where a model goes: the cards there are, a plan or a given map, checked.

Nothing is loaded here. `decide` is called while the model before is still in memory; whatever it
refuses costs nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from glm4v_magic.errors import (
    DeviceMapError,
    GPUDescriptionError,
    OptionError,
    PlacementError,
    did_you_mean,
)
from glm4v_magic.gpu_spec import GPU, parse_gpus
from glm4v_magic.placement.costs import Quantization, Workload
from glm4v_magic.placement.device_map import DeviceMap, Place, check, read_device_map
from glm4v_magic.placement.gpus import find_gpus
from glm4v_magic.placement.plan import plan
from glm4v_magic.placement.search import Objective
from glm4v_magic.placement.stages import Plan
from glm4v_magic.wording import counted

if TYPE_CHECKING:
    from glm4v_magic.checkpoints.architecture import Architecture
    from glm4v_magic.virtual_gpus import VirtualGPUs

__all__ = [
    "CPU_DTYPE",
    "GivenMap",
    "Placement",
    "PlacementOptions",
    "as_plan",
    "decide",
    "gpus_here",
    "make_plan",
]

GivenMap: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Plan
"""A device map, a plan, or a JSON file of either."""

CPU_DTYPE = "float32"  # bfloat16 is slower on most CPUs
_GIB = 2**30
# A card says it has less than its name: 16 GB of a T4 are 14.6 GiB with error correction.
_NAMEPLATE = 1.15


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """How a model is to be placed.

    Attributes:
        gpus: description of the cards (see `gpu_spec`); ``None`` for those that are found.
        context, images, batch, dtype, quantize: as in `Workload`.
        objective: ``balance`` or ``fewest``, as in `plan.plan`.
        max_memory: the most GiB to use of a card: one number, or one for each card.
        reserve: GiB of each card to leave alone; 3 % of its size by default.
        split_vision, offload: as in `plan.plan`.
        pin: unit and GPU index, pairs of them; as in `plan.plan`.

    Raises:
        OptionError: on a value that makes no sense.
        GPUDescriptionError: if `gpus` cannot be read.
    """

    gpus: str | None = None
    context: int | None = None
    images: int = 1
    batch: int = 1
    objective: Objective = "balance"
    dtype: str | None = None
    quantize: Quantization | None = None
    max_memory: float | tuple[float, ...] | None = None
    reserve: float | None = None
    split_vision: bool = False
    offload: bool = False
    pin: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        Workload(self.context, self.images, self.batch, self.dtype, self.quantize)
        if self.gpus is not None:
            parse_gpus(self.gpus)
        objectives = get_args(Objective)
        if self.objective not in objectives:
            raise OptionError(
                f"Unknown objective {self.objective!r}; there are {' and '.join(objectives)}.",
                did_you_mean(str(self.objective), objectives),
            )
        if any(size <= 0 for size in _sizes(self.max_memory)):
            raise OptionError("max_memory is in GiB of a card and must be above 0.")
        if self.reserve is not None and self.reserve < 0:
            raise OptionError(f"The reserve is {self.reserve} GiB, but cannot be negative.")
        if self.quantize is not None and self.offload:
            raise OptionError("Quantised layers cannot be offloaded.", "Leave one of them out.")

    @property
    def workload(self) -> Workload:
        """What to plan for."""
        return Workload(self.context, self.images, self.batch, self.dtype, self.quantize)


# What has no meaning beside a map that is given.
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
    """Where a model goes: decided and checked, not yet done.

    Attributes:
        dtype: of the weights that are not quantised.
        device_map: module -> GPU index or ``cpu``; ``None`` is all on the CPU.
        execution_map: where offloaded modules run; empty leaves it to `dispatch`.
        plan: that the map is from; ``None`` for a map that was given, and for the CPU.
        quantize: of the text part's linear layers.
    """

    dtype: str = CPU_DTYPE
    device_map: DeviceMap | None = None
    execution_map: DeviceMap = field(default_factory=dict)
    plan: Plan | None = None
    quantize: Quantization | None = None


def gpus_here() -> tuple[GPU, ...]:
    """Return the cards of this machine, or the virtual ones in use; imports no torch."""
    virtual = _virtual_gpus()
    return virtual.cards if virtual else tuple(found.gpu for found in find_gpus())


def make_plan(
    architecture: Architecture, options: PlacementOptions, gpus: Sequence[GPU] | None = None
) -> Plan:
    """Plan a model; imports no torch.

    Args:
        architecture: the model.
        options: what was asked.
        gpus: the cards; by default those of `options`, or those that are here.

    Raises:
        DoesNotFitError: if no split fits.
        OptionError: if the workload or the pictures do not suit the model.
        PlacementError: if a card does not tell its size.
    """
    most = architecture.max_images
    if most is not None and options.images > most:
        raise OptionError(
            f"{architecture.name} takes {counted(most, 'picture')}, not {options.images}."
        )
    if gpus is None:
        gpus = gpus_here() if options.gpus is None else parse_gpus(options.gpus)
    workload = options.workload
    if not gpus and workload.dtype is None:
        workload = replace(workload, dtype=CPU_DTYPE)
    return plan(
        architecture.shape(),
        _capped(gpus, options.max_memory),
        workload,
        objective=options.objective,
        reserve=None if options.reserve is None else int(options.reserve * _GIB),
        pin=dict(options.pin),
        split_vision=options.split_vision,
        offload=options.offload,
    )


def decide(
    architecture: Architecture, options: PlacementOptions, given: GivenMap | None = None
) -> Placement:
    """Decide where a model goes on this machine.

    Args:
        architecture: the model.
        options: what was asked.
        given: a map or a plan to follow instead of making one.

    Raises:
        DoesNotFitError: if no split fits.
        DeviceMapError: if a map does not suit the model or the cards.
        GPUDescriptionError: if the cards are described, and torch sees no such cards here.
        OptionError: if an option has no meaning, does not suit the model, or wants a package
            that is not installed.
    """
    if given is not None:
        _refuse_options_of_a_plan(options)
    if options.quantize is not None:
        _require_bitsandbytes(options.quantize)
    gpus = _usable(options.gpus)
    if given is not None:
        made = as_plan(given)
        wanted = made.device_map() if made else read_device_map(given)  # type: ignore[arg-type]
    elif gpus:
        made = make_plan(architecture, options, gpus)
        wanted = made.device_map()
    else:
        make_plan(architecture, options, gpus)  # refuses what makes no sense for the model
        return Placement(options.dtype or CPU_DTYPE, quantize=options.quantize)
    published = architecture.shape().dtype
    weights = check(wanted, architecture.build_meta(options.dtype or published), gpus)
    on_cards = any(place != "cpu" for place in weights.values())
    if options.quantize is not None and on_cards and "cpu" in weights.values():
        raise DeviceMapError(
            "The device map keeps modules on the CPU, and quantised layers cannot be offloaded.",
            "Put every module on a GPU.",
        )
    return Placement(
        dtype=options.dtype or (published if on_cards else CPU_DTYPE),
        device_map=weights,
        execution_map=_execution(made),
        plan=made,
        quantize=options.quantize,
    )


def _refuse_options_of_a_plan(options: PlacementOptions) -> None:
    defaults = {option.name: option.default for option in fields(options)}
    for name in _OF_A_PLAN:
        if getattr(options, name) != defaults[name]:
            raise OptionError(
                f"{name} is for making a plan, but a device map is given.",
                "Leave one of them out.",
            )


def _require_bitsandbytes(kind: Quantization) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise OptionError(
            f"{kind} weights need bitsandbytes, which is not installed.",
            "Install it with: pip install 'glm4v_magic[quantize]'",
        )


def as_plan(given: GivenMap) -> Plan | None:
    """Return the plan that is given, itself or as a file; ``None`` for a map.

    Raises:
        DeviceMapError: if a file is neither.
    """
    if isinstance(given, Plan):
        return given
    if isinstance(given, Mapping):
        return None
    read_device_map(given)  # says what is wrong with the file
    text = Path(given).expanduser().read_text(encoding="utf-8")
    return Plan.from_json(text) if "format" in json.loads(text) else None


def _execution(made: Plan | None) -> dict[str, Place]:
    return {} if made is None else made.execution_map()


def _virtual_gpus() -> VirtualGPUs | None:
    context = sys.modules.get("glm4v_magic.virtual_gpus.context")
    return None if context is None else context.active()


def _usable(description: str | None) -> tuple[GPU, ...]:
    """Cards that torch can use; as described, if they are."""
    described = None if description is None else parse_gpus(description)
    if described == ():
        return ()
    virtual = _virtual_gpus()
    if virtual is not None:
        found: tuple[GPU | None, ...] = virtual.cards
    else:
        cards = find_gpus()
        cards = cards[: _seen_by_torch()] if cards else ()
        if described is None:
            return tuple(card.gpu for card in cards)
        found = tuple(_size_known(card) for card in cards)
    if described is None:
        return tuple(card for card in found if card is not None)
    if len(described) > len(found):
        there = "none" if not found else f"only {len(found)}"
        raise GPUDescriptionError(
            f"{description!r} describes {counted(len(described), 'GPU')}, "
            f"but torch sees {there} here.",
            "Leave --gpus out to load; %glm4v plan and %glm4v check work for any description.",
        )
    return tuple(_both(one, card) for one, card in zip(described, found, strict=False))


def _seen_by_torch() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _size_known(card: Any) -> GPU | None:
    try:
        return card.gpu
    except PlacementError:
        return None


def _both(described: GPU, found: GPU | None) -> GPU:
    """A card of which no more is used than was described, nor than there is."""
    if found is None:
        return described
    if described.total_bytes > found.total_bytes * _NAMEPLATE:
        raise GPUDescriptionError(
            f"cuda:{found.index} ({found.name}) has {found.total_bytes / _GIB:.1f} GiB, not "
            f"{described.total_bytes / _GIB:.1f} GiB.",
            "Describe it as it is, or leave --gpus out.",
        )
    return replace(found, free_bytes=min(described.total_bytes, found.usable_bytes))


def _sizes(max_memory: float | tuple[float, ...] | None) -> tuple[float, ...]:
    if max_memory is None:
        return ()
    return max_memory if isinstance(max_memory, tuple) else (max_memory,)


def _capped(gpus: Sequence[GPU], max_memory: float | tuple[float, ...] | None) -> tuple[GPU, ...]:
    sizes = _sizes(max_memory)
    if not sizes or not gpus:
        return tuple(gpus)
    if len(sizes) == 1:
        sizes *= len(gpus)
    if len(sizes) != len(gpus):
        raise OptionError(
            f"max_memory has {counted(len(sizes), 'size')} for {counted(len(gpus), 'GPU')}.",
            "Give one number, or one for each card.",
        )
    return tuple(
        replace(gpu, free_bytes=min(gpu.usable_bytes, int(size * _GIB)))
        for gpu, size in zip(gpus, sizes, strict=True)
    )
