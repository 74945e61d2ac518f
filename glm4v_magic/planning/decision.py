"""Turns a user's options and GPUs into a checked placement: a plan, or a given device map.

Nothing is loaded here. `decide` runs while the previous model is still in memory, so an error in
it costs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.errors import DeviceMapError, DoesNotFitError, OptionError
from glm4v_magic.core.gpu_spec import ANY_CPU, CPU, GPU, parse_gpus
from glm4v_magic.core.model_shape import (
    ModelShape,
    ModuleTree,
    Workload,
    require_architecture,
)
from glm4v_magic.core.options import OPTIONS, Quantization, taken
from glm4v_magic.core.placement import (
    CPU_DTYPE,
    DeviceMap,
    GivenMap,
    Place,
    PlacementOptions,
)
from glm4v_magic.core.plan import Limits, Plan, same_place
from glm4v_magic.core.remarks import Remark, remark
from glm4v_magic.core.wording import counted, gib, printable, sized
from glm4v_magic.planning.costs import cache_entries, price
from glm4v_magic.planning.device_map import place_of, present, settle
from glm4v_magic.planning.files import read_given
from glm4v_magic.planning.followed import followed, priced_units
from glm4v_magic.planning.held import held_plan
from glm4v_magic.planning.packages import require_bitsandbytes
from glm4v_magic.planning.plan import task_of
from glm4v_magic.planning.precision import (
    Precision,
    of_plan,
    precision,
    require_quantizable,
    require_whole_blocks,
    used_by,
)
from glm4v_magic.planning.search import can_fit, offloadable
from glm4v_magic.planning.seen import image_size_of

if TYPE_CHECKING:
    from glm4v_magic.core.model import Architecture, Sized

__all__ = [
    "TRIED",
    "Placement",
    "choose",
    "decide",
    "make_plan",
    "may_fit",
    "refuse_for_any_gpu",
    "refuse_options_of_a_plan",
    "refuse_other_than_planned",
    "refuse_plan_of_another",
    "require_quantised_on_gpus",
    "unseen",
]


_AGAIN = "Make a new plan."
_LONGEST_NAME = 80
_GIB = 2**30
_ENDLESS = 2**40  # GiB

TRIED = ("context", "images", "batch")
"""Options that a dry run may try with other values than those of a given plan."""

_LIMITS = ("max_memory", "reserve", "split_vision", "offload", "pin")

_OF_A_PLAN = (*TRIED, "objective", *_LIMITS)
"""Options that have no meaning beside a device map, and must be those of a given plan."""

_TOLD = (*_OF_A_PLAN, "image_size", "dtype", "quantize")
"""Options that must be those of a given plan."""


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
        image_size: side in pixels of the largest square image that is seen; ``None`` for the
            checkpoint's own limit.
    """

    dtype: str = CPU_DTYPE
    device_map: DeviceMap | None = None
    execution_map: DeviceMap = field(default_factory=dict)
    plan: Plan | None = None
    quantize: Quantization | None = None
    fp8: bool = False
    notes: tuple[Remark, ...] = ()
    image_size: int | None = None


def make_plan(
    architecture: Sized,
    options: PlacementOptions,
    gpus: Sequence[GPU] | None = None,
    *,
    cpu: CPU = ANY_CPU,
) -> Plan:
    """Plan a model; imports no torch.

    Args:
        architecture: model to plan for.
        options: placement options.
        gpus: GPUs to plan for; by default those that `options` describe.
        cpu: the CPU of the machine, if no GPU is used.

    Raises:
        DoesNotFitError: if no split fits.
        OptionError: if the workload or the images do not suit the model, or no GPUs are given or
            described.
    """
    require_architecture(architecture)
    _refuse_more_images(architecture, options)
    if gpus is None:
        if options.gpus is None:
            raise OptionError("Nothing tells which GPUs to plan for.", 'Describe them: "2x24GiB".')
        gpus = parse_gpus(options.gpus)
    shape = architecture.shape()
    limits = Limits(**{name: getattr(options, name) for name in (*_LIMITS, "dtype")})
    try:
        made, chosen = held_plan(
            shape,
            _capped(gpus, options),
            options.workload,
            whole=not options.may_offload,
            cpu=cpu,
            offload=options.may_offload,
            **_of_a_split(options),
        )
    except DoesNotFitError as error:
        if error.plan is not None:
            error.plan = replace(error.plan, limits=limits)
        raise
    _refuse_more_host_memory(made, shape, options)
    notes = (
        *unseen(shape),
        *chosen.notes,
        *made.notes,
        *(() if gpus else _without_effect(options)),
    )
    return replace(made, notes=notes, limits=limits)


def may_fit(architecture: Architecture, options: PlacementOptions, gpus: Sequence[GPU]) -> bool:
    """Tell in a fraction of its time whether `make_plan` finds a split that fits on GPUs.

    How much host memory there is for what is offloaded is left to `make_plan`.

    Raises:
        OptionError: as `make_plan`.
    """
    shape = architecture.shape()
    whole = not options.may_offload
    chosen = precision(shape, gpus, options.dtype, options.quantize, whole=whole)
    work = replace(options.workload, dtype=chosen.dtype, fp8=chosen.fp8)
    task = task_of(shape, _capped(gpus, options), work, **_of_a_split(options))
    away = frozenset(offloadable(task)) if options.may_offload else frozenset()
    return can_fit(task) or (bool(away) and can_fit(task, away))


def refuse_for_any_gpu(architecture: Architecture, options: PlacementOptions) -> None:
    """Raise what `make_plan` raises for options that suit no GPU, however large.

    Raises:
        OptionError: if the workload or the images do not suit the model.
        DeviceMapError: if a unit is pinned that the model does not have.
    """
    require_architecture(architecture)
    _refuse_more_images(architecture, options)
    shape = architecture.shape()
    if options.quantize is not None:
        require_quantizable(shape, options.quantize)
    task_of(shape, (), options.workload, **_of_a_split(options))


def _refuse_more_images(architecture: Sized, work: PlacementOptions | Workload) -> None:
    most = architecture.max_images
    if most is not None and work.images > most:
        raise OptionError(f"{architecture.name} takes {counted(most, 'image')}, not {work.images}.")


def _of_a_split(options: PlacementOptions) -> dict[str, Any]:
    """Return the keyword arguments of `plan` that the options give, without the workload."""
    return {
        "objective": options.objective,
        "reserve": None if options.reserve is None else _bytes(options.reserve),
        "pin": dict(options.pin),
        "split_vision": options.split_vision,
        "host_bytes": None if options.host_memory is None else _bytes(options.host_memory),
    }


def choose(
    architecture: Architecture,
    options: PlacementOptions,
    gpus: Sequence[GPU],
    given: GivenMap | None = None,
    *,
    loads: bool = True,
    cpu: CPU = ANY_CPU,
) -> Plan | DeviceMap | None:
    """Make a plan, or read the given map or plan; ``None`` if there are no GPUs to plan for.

    Raises what `decide` raises, except for a map that does not suit the model. Arguments as there.
    """
    chosen = None if given is None else read_given(given)
    # A dry run may try another workload than the plan's.
    tried = () if loads else (*TRIED, "image_size")
    if isinstance(chosen, Plan):
        names = [name for name in _TOLD if name not in tried]
        _refuse_contradictions(chosen, options, names)
        _refuse_other_parts(chosen, architecture)
        refuse_plan_of_another(chosen, architecture)
        _require_planned_gpus(chosen, gpus)
    elif chosen is not None:
        refuse_options_of_a_plan(options)
    quantize = chosen.workload.quantize if isinstance(chosen, Plan) else options.quantize
    if quantize is not None:
        require_quantizable(architecture.shape(), quantize)
        if loads:
            require_bitsandbytes(f"{quantize} weights")
    if chosen is not None:
        places = chosen.device_map() if isinstance(chosen, Plan) else chosen
        require_whole_blocks(architecture.shape(), quantize, places.values())
        return chosen
    # Without GPUs this checks the options.
    made = make_plan(architecture, options, gpus, cpu=cpu)
    return made if gpus else None


def decide(
    architecture: Architecture,
    options: PlacementOptions,
    gpus: Sequence[GPU],
    given: GivenMap | None = None,
    *,
    loads: bool = True,
    cpu: CPU = ANY_CPU,
) -> Placement:
    """Decide where a model goes.

    Args:
        architecture: model to place.
        options: placement options; their description of the GPUs is in `gpus` already.
        gpus: GPUs to use; `hardware.usable.usable_gpus` finds those of this machine.
        given: device map or plan to follow instead of making one; see `files.read_given`.
        loads: whether it is to be loaded here, so that packages have to be installed; a dry run
            does without, and may try another workload than that of a given plan.
        cpu: the CPU of the machine.

    Raises:
        DoesNotFitError: if no split fits.
        DeviceMapError: if a device map does not suit the model or the GPUs.
        OptionError: if an option has no meaning here, contradicts a given plan, does not suit the
            model, or needs a package that is not installed.
    """
    chosen = choose(architecture, options, gpus, given, loads=loads, cpu=cpu)
    shape = architecture.shape()
    if chosen is None:
        on_cpu = precision(shape, (), options.dtype, options.quantize, cpu=cpu)
        return Placement(
            on_cpu.dtype,
            quantize=options.quantize,
            notes=(*on_cpu.notes, *_without_effect(options, shape if loads else None)),
            image_size=image_size_of(shape, options.workload),
        )
    made = chosen if isinstance(chosen, Plan) else None
    wanted = chosen.device_map() if isinstance(chosen, Plan) else chosen
    tree = architecture.module_tree()
    weights, told = settle(wanted, tree, gpus, architecture.own_names)
    on_gpus = any(place != "cpu" for place in weights.values())
    quantize = options.quantize if made is None else made.workload.quantize
    if (quantize is not None or shape.packed is not None) and on_gpus:
        require_quantised_on_gpus(shape, weights)
    whole = on_gpus and "cpu" not in weights.values()
    used = used_by(made, gpus) if made else [g for g in gpus if g.index in weights.values()]
    held = precision(shape, used, options.dtype, quantize, whole=whole, cpu=cpu)
    if made is not None:
        made, held = _as_planned(made, held, options.dtype)
    if made is not None and given is not None:
        made = followed(made, shape, gpus)
    if held.fp8 and loads:
        architecture.require_kernels()
    if held.fp8 and not set(weights) <= set(tree.modules):
        weights, _ = settle(
            weights, architecture.module_tree(fp8=True), gpus, architecture.own_names
        )
    if loads:
        work = Workload(dtype=held.dtype, quantize=quantize, fp8=held.fp8)
        what = "device map" if made is None else "plan"
        _require_room(what, shape, work, weights, tree, gpus)
    return Placement(
        dtype=held.dtype,
        device_map=weights,
        execution_map=_execution(made),
        plan=made,
        quantize=quantize,
        fp8=held.fp8,
        notes=(*held.notes, *_shortened(made), *_of_another(made, architecture), *told),
        image_size=image_size_of(shape, options.workload if made is None else made.workload),
    )


def _shortened(made: Plan | None) -> Iterator[Remark]:
    """Yield the note on a context that nobody asked for, which is not the model's longest."""
    yield from (note for note in (made.notes if made else ()) if note.code == "context_shortened")


def _of_another(made: Plan | None, architecture: Architecture) -> Iterator[Remark]:
    """Yield the note on what a plan was made for, if that is not the model that follows it."""
    if made is None:
        return
    adapter = dict(made.made_of).get("lora")
    if not made.is_of(architecture.name):
        planned = made.model if adapter is None else f"{made.model} and the adapter {adapter}"
        yield remark("planned_for_another", planned=printable(planned))
    elif adapter is not None and "lora" not in dict(architecture.made_of):
        yield remark("planned_with_adapter", lora=printable(adapter))


def unseen(shape: ModelShape) -> Iterator[Remark]:
    """Yield the note on a revision that is not here: nobody knows whether there is one."""
    if shape.unseen_revision:
        yield remark("revision_unseen", revision=printable(shape.unseen_revision))


def refuse_options_of_a_plan(
    options: PlacementOptions, but: Sequence[str] = ("context", "images", "batch")
) -> None:
    """Raise OptionError if an option is given that says how to make a plan, except ``but``."""
    for name in _OF_A_PLAN:
        if name not in but and getattr(options, name) != OPTIONS[name].default:
            raise OptionError(
                f"{name} is for making a plan, but a device map is given.",
                "Leave one of them out.",
                option=name,
            )


def refuse_other_than_planned(
    made: Plan, given: Mapping[str, Any], but: Collection[str] = ()
) -> None:
    """Raise OptionError if an option differs from that of a plan, be it the default.

    Args:
        made: the plan.
        given: options as they were given, by the names of `PlacementOptions`; others are passed
            over, and so is what asks for nothing: ``None``, a dtype ``"auto"``, no pins.
        but: those that may differ.
    """
    options = taken(PlacementOptions, given)
    names = [
        name
        for name in _TOLD
        if name not in but
        and given.get(name) is not None
        and getattr(options, name) not in (None, ())
    ]
    _refuse_contradictions(made, options, names, is_given=True)


def _refuse_contradictions(
    made: Plan, options: PlacementOptions, names: Sequence[str], *, is_given: bool = False
) -> None:
    """Raise OptionError if an option differs from that of a plan.

    Args:
        made: the plan.
        options: the options.
        names: those to look at.
        is_given: whether they were given; otherwise those with their default value were not.
    """
    for name in names:
        asked, planned = getattr(options, name), _of_plan(made, name)
        is_asked = is_given or asked != OPTIONS[name].default
        if is_asked and not _is_same(name, asked, planned, made):
            is_without = planned is None or planned is False or planned == ()
            was = "without" if is_without else f"with {_shown(planned)}"
            raise OptionError(
                f"{name} is {_shown(asked)}, but the plan was made {was}.",
                "Leave it out, or make a new plan.",
                option=name,
            )


def _require_planned_gpus(made: Plan, gpus: Sequence[GPU]) -> None:
    """Raise DeviceMapError if a plan uses a GPU that is not there."""
    here = {gpu.index for gpu in gpus}
    gone = [stage.gpu for stage in made.stages if stage.units and stage.gpu not in {None, *here}]
    if not gone:
        return
    model = printable(made.model)
    has_blanks = any(each.isspace() for each in model)
    named = remark("named_model", model=model)
    if has_blanks:
        named = remark("quoted_model", model=model)
    asked = (
        *made.made_of,
        ("dtype", made.limits.dtype),
        ("quantize", made.workload.quantize),
        *((("offload", ""),) if made.limits.offload else ()),
    )
    for name, value in asked:
        if value is not None:
            named = remark("named_with", model=named, name=name, value=printable(value))
    raise DeviceMapError(
        f"The plan of {printable(made.model)} uses GPU {gone[0]}, but {present(gpus)}.",
        code="plan_of_other_gpus",
        model=named,
    )


def _refuse_other_parts(made: Plan, architecture: Architecture) -> None:
    """Raise OptionError if the model is made of something else than that of a plan.

    Revision and base belong to a name: those of another model are not compared.
    """
    asked = dict(architecture.made_of)
    for name, planned in made.made_of:
        if name not in asked or (name != "lora" and not made.is_of(architecture.name)):
            continue
        is_same = asked[name] == planned
        if not is_same and (name == "revision" or not same_place(asked[name], planned)):
            raise OptionError(
                f"{name} is {printable(asked[name])}, but the plan was made with "
                f"{printable(planned)}.",
                "Leave it out, or make a new plan.",
                option=name,
            )


def _is_same(name: str, asked: Any, planned: Any, made: Plan) -> bool:
    """Tell whether two values of an option mean the same for the GPUs of a plan."""
    if name == "pin":
        return dict(asked) == dict(planned)
    if name != "max_memory" or planned is None:
        return bool(asked == planned)
    gpus = sorted(stage.gpu for stage in made.stages if stage.gpu is not None)
    one, other = PlacementOptions(max_memory=asked), PlacementOptions(max_memory=planned)
    return one.memory_of(gpus) == other.memory_of(gpus) and one.host_memory == other.host_memory


def _of_plan(made: Plan, name: str) -> object:
    for part in (made.workload, made.limits, made):
        if hasattr(part, name):
            return getattr(part, name)
    raise AttributeError(name)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple) and all(isinstance(each, tuple) for each in value):
        unit = "GiB" if any(isinstance(each[1], float) for each in value) else ""
        return ",".join(f"{name}={number:g}{unit}" for name, number in value)
    if isinstance(value, tuple):
        return ",".join(f"{each:g}" for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def refuse_plan_of_another(made: Plan, architecture: Sized) -> None:
    """Raise DeviceMapError unless a plan has the units, the weights and a workload of the model."""
    shape, work = architecture.shape(), made.workload
    # What units there are, and their weights, does not depend on how the model is used.
    weights = priced_units(shape, Workload(dtype=work.dtype, quantize=work.quantize, fp8=work.fp8))
    named = (name for stage in made.stages for name in stage.units)
    unknown = next((name for name in named if name not in weights), None)
    if unknown is not None:
        raise _not_of(made, shape, f"names a unit that it does not have, {_short(unknown)!r}")
    for stage in made.stages:
        units = [weights[name] for name in stage.units]
        away = {*stage.offloaded}
        kept = sum(0 if {*unit.modules} & away else unit.weight_bytes for unit in units)
        if kept != stage.weight_bytes:
            raise _not_of(
                made,
                shape,
                f"says {stage.weight_bytes:,} bytes of weights for {stage.device}, whose units "
                f"have {kept:,} in {', '.join(filter(None, (work.dtype, work.form)))}",
            )
        modules = [module for unit in units for module in unit.modules]
        whole = {m for unit in units if {*unit.modules} & away for m in unit.modules}
        if Counter(stage.modules) != Counter(modules) or away != whole:
            raise _not_of(made, shape, f"says other modules for {stage.device} than its units have")
    try:
        _refuse_more_images(architecture, work)
        cache_entries(shape, work)
    except OptionError as error:
        raise DeviceMapError(f"The plan is wrong: {error.what}", _AGAIN) from None


def _not_of(made: Plan, shape: ModelShape, says: str) -> DeviceMapError:
    """Return the error for a plan of another model, or one that was changed after it was made."""
    if made.model != shape.name:
        return DeviceMapError(
            f"The plan is of another model than {shape.name}: it says {_short(made.model)}.",
            "Make a plan for this one.",
        )
    return DeviceMapError(f"The plan of {shape.name} {says}.", _AGAIN)


def _short(name: str) -> str:
    shown = " ".join(printable(name).split())
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[:_LONGEST_NAME]}..."


def require_quantised_on_gpus(shape: ModelShape, weights: DeviceMap) -> None:
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


def _require_room(
    what: str,
    shape: ModelShape,
    work: Workload,
    weights: DeviceMap,
    tree: ModuleTree,
    gpus: Sequence[GPU],
) -> None:
    """Raise DoesNotFitError if the weights that a map puts on a GPU are larger than its memory.

    Of a layer that is cut, each weight is taken for the same share of the layer's bytes as of its
    values.
    """
    on_gpus: Counter[Place] = Counter()
    for unit in price(shape, work):
        inside = {
            name: tree.values.get(name, 0)
            for name in tree.tensors
            if name not in tree.ties
            and any(f"{name}.".startswith(f"{module}.") for module in unit.modules)
        }
        for name, values in inside.items():
            place = place_of(weights, name)
            assert place is not None  # `settle` raises for a map with gaps
            on_gpus[place] += unit.weight_bytes * values // (sum(inside.values()) or 1)
    for gpu in gpus:
        if on_gpus[gpu.index] > gpu.usable_bytes:
            size, room = sized(on_gpus[gpu.index]), sized(gpu.usable_bytes)
            raise DoesNotFitError(
                f"The {what} puts {size} of weights on GPU {gpu.index}, which has {room}.",
                "Put some of them on other GPUs or on the cpu, or let a plan take its place.",
            )


def _as_planned(made: Plan, here: Precision, asked: str | None = None) -> tuple[Plan, Precision]:
    """Return a plan with the precision in which it is followed on the GPUs here.

    A dtype that nobody asked for was chosen to suit the GPUs that the plan was made for; float16
    and bfloat16 have the same size.

    Raises:
        DeviceMapError: if these GPUs cannot compute so.
    """
    if made.workload.fp8 and not here.fp8:
        raise DeviceMapError(
            "The plan keeps weights in FP8, which these GPUs cannot compute with.",
            "Make a plan for these GPUs.",
        )
    planned = of_plan(made)
    is_chosen = made.limits.dtype is None and asked is None
    if not (is_chosen and planned.dtype == "bfloat16" and here.dtype == "float16"):
        return made, planned
    others = (note for note in made.notes if note not in planned.notes)
    work = replace(made.workload, dtype=here.dtype)
    return replace(made, workload=work, notes=(*here.notes, *others)), here


def _execution(made: Plan | None) -> dict[str, Place]:
    return {} if made is None else made.execution_map()


def _capped(gpus: Sequence[GPU], options: PlacementOptions) -> tuple[GPU, ...]:
    sizes = options.memory_of([gpu.index for gpu in gpus]) if gpus else ()
    if not sizes:
        return tuple(gpus)
    return tuple(
        replace(gpu, free_bytes=min(gpu.usable_bytes, _bytes(size)))
        for gpu, size in zip(gpus, sizes, strict=True)
    )


def _bytes(gibibytes: float) -> int:
    """Return GiB in bytes, at most those of `_ENDLESS`: the size may be infinite."""
    return int(min(gibibytes, _ENDLESS) * _GIB)


def _without_effect(
    options: PlacementOptions, loaded: ModelShape | None = None
) -> Iterator[Remark]:
    """Yield a note on the options that say nothing where there is no GPU.

    Args:
        options: the options.
        loaded: model that is loaded; ``None`` for a plan or a dry run, which the workload is for.
    """
    names = ["objective", *_LIMITS]
    usual = {name: OPTIONS[name].default for name in TRIED}
    work = options.workload
    if loaded is not None and (
        image_size_of(loaded, work) == image_size_of(loaded, replace(work, **usual))
    ):  # where images keep their sizes, it limits those
        names = [*TRIED, *names]
    idle = [name for name in names if getattr(options, name) != OPTIONS[name].default]
    if idle:
        yield remark("without_gpus", options=", ".join(idle))


def _refuse_more_host_memory(made: Plan, shape: ModelShape, options: PlacementOptions) -> None:
    limit = options.host_memory
    if limit is None:
        return
    away = {module for stage in made.stages for module in stage.offloaded}
    units = price(shape, made.workload)
    size = sum(unit.weight_bytes for unit in units if {*unit.modules} & away)
    if size > limit * _GIB:
        raise DoesNotFitError(
            f"{made.model} would keep {gib(size)} GiB in host memory, but max_memory allows "
            f"{limit:g} GiB.",
            "Allow more, or use more GPUs.",
        )
