"""The dry run: a model runs on virtual GPUs without its weights, and what it needs is measured.

The model is built on ``meta`` from its configuration, dispatched like a real one, then runs a real
``generate``: one prefill and a few decode steps. Operations that would mix devices are reported
with module and line; copies and the peak memory of every GPU are counted.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.gpu_spec import GPU, gpus_of
from glm4v_magic.core.model_shape import ModelShape, Workload, require_architecture
from glm4v_magic.core.options import Quantization
from glm4v_magic.core.placement import DeviceMap, GivenMap, Place, PlacementOptions
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.python_options import accepts
from glm4v_magic.core.remarks import Remark, remark
from glm4v_magic.core.wording import counted
from glm4v_magic.dry_run.report import DryRunReport, GPUUse, HopUse, MixedDevices
from glm4v_magic.hardware.cpu import cpu_here
from glm4v_magic.outside import require_current_folder
from glm4v_magic.planning.costs import cache_entries
from glm4v_magic.planning.decision import (
    TRIED,
    decide,
    make_plan,
    refuse_options_of_a_plan,
    refuse_other_than_planned,
    refuse_plan_of_another,
    require_quantised_on_gpus,
    unseen,
)
from glm4v_magic.planning.device_map import place_of, settle
from glm4v_magic.planning.files import read_given
from glm4v_magic.planning.followed import capacities
from glm4v_magic.planning.held import least_context
from glm4v_magic.planning.needs import VISITORS, longest_that_fits, needs_of_map
from glm4v_magic.planning.precision import (
    Precision,
    can_fp8,
    precision,
    require_quantizable,
)
from glm4v_magic.planning.seen import image_size_of, planned_image

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from glm4v_magic.core.model import Architecture
    from glm4v_magic.dry_run.arrival import Arrival
    from glm4v_magic.virtual_gpus import Problem, Report

__all__ = ["DEFAULT_DECODE_STEPS", "dry_run", "is_on_cpu"]

DEFAULT_DECODE_STEPS = 2

_BY_TRANSFORMERS = ("auto", "balanced")

# GPUs of a dry run never run out of memory, so that it can tell how much the real ones lack.
_ENDLESS = 1 << 50


@dataclass(frozen=True, slots=True)
class _Placement:
    """Placement of the model.

    Attributes:
        kind: ``plan``, ``auto`` or ``map``.
        dtype: dtype of weights and activations.
        quantize: quantisation as the weights are loaded.
        fp8: whether weights that were published in FP8 stay so.
        capacities: bytes that a plan may use of each GPU.
        weights: devices that the weights stay on.
        execution: devices that modules run on; different for offloaded ones.
        notes: what was done to the map.
    """

    kind: str
    dtype: str
    weights: DeviceMap
    execution: DeviceMap
    notes: tuple[Remark, ...] = ()
    quantize: Quantization | None = None
    fp8: bool = False
    capacities: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Measured:
    """Measurements on the virtual GPUs.

    Attributes:
        report: report of the virtual GPUs, from after the weights were placed.
        weights: bytes on each GPU before the run.
        cache: bytes of the KV cache on each GPU after the run.
        home: device of the inputs.
        arrivals: the fullest moment of GPUs while weights arrive.
    """

    report: Report
    weights: tuple[int, ...]
    cache: Mapping[int | None, int]
    home: str
    arrivals: Mapping[int, Arrival]


@accepts("dry_run")
def dry_run(
    architecture: Architecture,
    gpus: str | Sequence[GPU],
    device_map: GivenMap = "plan",
    *,
    text_tokens: int | None = None,
    decode_steps: int = DEFAULT_DECODE_STEPS,
    **options: Any,
) -> DryRunReport:
    """Make a dry run of a model and return the report.

    Args:
        architecture: the model without its weights; `checkpoints.architecture` finds one.
        gpus: the GPUs, or their description, such as ``"8x16GiB"``.
        device_map: ``"plan"`` for the plan we would make; ``"auto"`` for transformers' own, put on
            the model as ``from_pretrained`` does; a plan; a map; a JSON file of either; a device.
            Plans and maps are put on it as `Session.load` does. With a plan, context, images and
            batch are those of the plan unless given.
        text_tokens: text tokens of the prompt, instead of filling the context.
        decode_steps: number of decode steps after the prefill; at least 1.
        options: as for the load. Without a context it is the model's longest, or the longest that
            fits, from `held.USEFUL_CONTEXT` on, which a note tells.

    Returns:
        The report. Refused operations and GPUs that are too small are part of it, not errors;
        see `dry_run.text.raise_if_unusable`.

    Raises:
        CheckpointError: if transformers does not accept the configuration.
        GPUDescriptionError: if `gpus` cannot be read.
        DeviceMapError: if the map does not suit the model or the GPUs.
        DoesNotFitError: if a plan is asked for and none fits.
        OptionError: if the workload does not suit the model, or there is no GPU for it.
    """
    require_architecture(architecture)
    require_current_folder(OptionError)
    described = gpus_of(gpus)
    if decode_steps < 1:
        raise OptionError(f"decode_steps is {decode_steps}, but must be at least 1.")
    asked = PlacementOptions(**options)
    given = read_given(device_map)
    if not described and not is_on_cpu(given):
        raise OptionError("A dry run needs at least one GPU.", 'Describe them, as in "4x16GiB".')
    shape = architecture.shape()
    if isinstance(given, Plan):
        refuse_other_than_planned(given, options, (*TRIED, "image_size"))
        refuse_plan_of_another(given, architecture)
    tried_out = {name for name in TRIED if options.get(name) is not None}
    work = _workload(asked, given, tried_out)
    told = tuple(unseen(shape))
    by_transformers = isinstance(device_map, str) and device_map in _BY_TRANSFORMERS
    if work.context is None and text_tokens is None and given is None and not by_transformers:
        planned = make_plan(architecture, asked, described, cpu=cpu_here())
        work = replace(work, context=planned.workload.context)
        told += tuple(note for note in planned.notes if note.code == "context_shortened")
    is_unasked = work.context is None and text_tokens is None

    def tried(each: Workload, *notes: Remark) -> tuple[DryRunReport, _Placement]:
        prompt = _prompt_of(architecture, each, text_tokens, decode_steps)
        # all that may be refused comes before anything is built
        inputs = prompt.inputs(architecture)
        if by_transformers:
            placement = _by_transformers(architecture, asked, described)
        else:
            placement = _placed(architecture, asked, described, given, prompt.work)
        placement = replace(placement, notes=(*told, *notes, *placement.notes))
        return _run(
            architecture, described, placement, inputs, prompt.work, decode_steps
        ), placement

    report, placement = tried(work)
    if is_unasked and _may_fit_shorter(report):
        for context in _shorter_contexts(shape, work, placement, described):
            shorter = remark("context_shortened", context=context, longest=shape.max_context)
            report, _ = tried(replace(work, context=context), shorter)
            if report.works:
                break
    return report


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What is read first: each image with `patches` patches, and text tokens beside them."""

    work: Workload
    text_tokens: int
    patches: int | None

    def inputs(self, architecture: Architecture) -> Mapping[str, Any]:
        work = self.work
        return architecture.prompt_inputs(work.images, self.text_tokens, work.batch, self.patches)


def _prompt_of(
    architecture: Architecture, work: Workload, text_tokens: int | None, decode_steps: int
) -> _Prompt:
    """Return the prompt of a workload, with the context and the size of images that it has.

    Raises:
        OptionError: if the workload does not suit the model.
    """
    shape = architecture.shape()
    fits = work if text_tokens is None else replace(work, context=None)
    work = replace(work, image_size=image_size_of(shape, fits))
    image = planned_image(shape, work)
    others = work.images * image.positions + decode_steps
    context = shape.max_context if work.context is None else work.context
    if text_tokens is not None:
        context = others + text_tokens
    work = replace(work, context=context)
    cache_entries(shape, work)
    if context <= others:
        raise OptionError(
            f"A context of {context:,} tokens has no room for text beside "
            f"{counted(work.images, 'image')} and {counted(decode_steps, 'decode step')}, "
            f"which take {others:,} tokens."
        )
    return _Prompt(work, context - others, image.patches)


def _may_fit_shorter(report: DryRunReport) -> bool:
    """Tell whether a shorter context may be all that a placement lacks."""
    is_small = any(gpu.weight_bytes > gpu.capacity_bytes for gpu in report.overfull)
    return bool(report.overfull) and not report.problems and not is_small


def _shorter_contexts(
    shape: ModelShape, work: Workload, placement: _Placement, gpus: Sequence[GPU]
) -> Iterator[int]:
    """Yield contexts that may fit a map, the longest first: as a plan without one is made.

    The last is the least that a plan is made for unasked.
    """
    least = least_context(shape, work)
    if least >= shape.max_context:
        return
    held = replace(work, dtype=placement.dtype, quantize=placement.quantize, fp8=placement.fp8)
    found = []
    for visitors in VISITORS:
        needs = partial(_needs, shape, placement.weights, gpus, visitors)
        way = longest_that_fits(shape, held, needs, gpus)
        found.append(max(int(str(way.values.get("context", 0))), least))
    yield from dict.fromkeys([*found, least])


def _needs(
    shape: ModelShape,
    weights: DeviceMap,
    gpus: Sequence[GPU],
    visitors: float,
    work: Workload,
) -> dict[int, int] | None:
    return needs_of_map(shape, work, weights, gpus, visitors=visitors)


def is_on_cpu(given: Plan | DeviceMap | None) -> bool:
    """Tell whether a plan or a map puts everything on the CPU, so that no GPU is needed."""
    if given is None:
        return False
    return set(given.device_map().values() if isinstance(given, Plan) else given.values()) == {
        "cpu"
    }


def _workload(asked: PlacementOptions, given: object, names: Collection[str]) -> Workload:
    """Return the workload to try: that of a given plan, but for what is named."""
    work = asked.workload
    if not isinstance(given, Plan):
        return work
    tried = {name: getattr(work, name) for name in names}
    return replace(given.workload, **tried, image_size=work.image_size or given.workload.image_size)


def _placed(
    architecture: Architecture,
    asked: PlacementOptions,
    gpus: tuple[GPU, ...],
    given: Plan | DeviceMap | None,
    work: Workload,
) -> _Placement:
    if given is None:
        asked = replace(asked, context=work.context, image_size=work.image_size)
    decided = decide(architecture, asked, gpus, given, loads=False, cpu=cpu_here())
    weights = decided.device_map or {}
    if decided.plan is not None:
        execution = {**weights, **decided.execution_map}
        return _Placement(
            "plan",
            decided.dtype,
            weights,
            execution,
            decided.notes,
            decided.quantize,
            decided.fp8,
            capacities(decided.plan, gpus),
        )
    # `dispatch` runs what is offloaded on the GPU of the embedding.
    visited = place_of(weights, _embedding(architecture.shape()))
    if visited is None or visited == "cpu":
        visited = _first_gpu(weights)
    return _Placement(
        "map",
        decided.dtype,
        weights,
        _visiting(weights, visited),
        decided.notes,
        decided.quantize,
        decided.fp8,
    )


def _by_transformers(
    architecture: Architecture, asked: PlacementOptions, gpus: tuple[GPU, ...]
) -> _Placement:
    from glm4v_magic.dispatch.automatic import automatic
    from glm4v_magic.dry_run.quantised import put_stand_ins

    refuse_options_of_a_plan(asked)
    shape = architecture.shape()
    quantize = asked.quantize
    if quantize is not None:
        require_quantizable(shape, quantize)
    cpu = cpu_here()

    def held(used: Sequence[GPU], *, whole: bool = True) -> Precision:
        return precision(shape, used, asked.dtype, quantize, whole=whole, cpu=cpu)

    def mapped(fp8: bool, some: Sequence[GPU]) -> tuple[DeviceMap, list[GPU]]:
        """Return the map for weights that stay in FP8 or do not, and the GPUs that it uses."""
        dtype = held(able if fp8 else some, whole=fp8).dtype
        model = architecture.build_meta(dtype, fp8=fp8)
        put_stand_ins(model, shape, quantize)
        tree = architecture.module_tree(fp8=fp8)
        weights, _ = settle(automatic(model, some), tree, gpus, architecture.own_names)
        return weights, [gpu for gpu in some if gpu.index in weights.values()]

    # GPUs that stay idle do not decide on FP8 and dtype, but which do depends on the weights' size.
    able = tuple(gpu for gpu in gpus if can_fp8([gpu]))
    for fp8, some in ((True, gpus), (False, gpus), (True, able)):
        if fp8 and not held(able).fp8:
            continue
        weights, used = mapped(fp8, some)
        chosen = held(used, whole="cpu" not in weights.values())
        if chosen.fp8 == fp8:
            break
    else:
        weights, used = mapped(False, gpus)
        chosen = held(used, whole=False)
    if quantize is not None or shape.packed is not None:
        require_quantised_on_gpus(shape, weights)
    # accelerate runs what is offloaded on the first GPU of the map.
    visiting = _visiting(weights, _first_gpu(weights))
    return _Placement(
        "auto", chosen.dtype, weights, visiting, chosen.notes, quantize=quantize, fp8=chosen.fp8
    )


def _embedding(shape: ModelShape) -> str:
    """Return the name of the weight of the word embeddings."""
    unit = next(unit for unit in shape.units if unit.kind == "embedding")
    return f"{unit.modules[0]}.weight"


def _first_gpu(weights: DeviceMap) -> Place:
    return next((place for place in weights.values() if place != "cpu"), "cpu")


def _visiting(weights: DeviceMap, visited: Place) -> DeviceMap:
    return {name: visited if place == "cpu" else place for name, place in weights.items()}


def _run(
    architecture: Architecture,
    gpus: tuple[GPU, ...],
    placement: _Placement,
    inputs: Mapping[str, Any],
    work: Workload,
    decode_steps: int,
) -> DryRunReport:
    from glm4v_magic.dry_run.quantised import put_stand_ins

    shape = architecture.shape()
    model = architecture.build_meta(placement.dtype, fp8=placement.fp8)
    put_stand_ins(model, shape, placement.quantize)
    machine = gpus or (GPU(0, "", 0),)  # unused
    measured = _measure(model, shape, placement, inputs, machine, decode_steps)
    return DryRunReport(
        model=architecture.name,
        dtype=placement.dtype,
        quantize=placement.quantize,
        fp8=placement.fp8,
        placement=placement.kind,
        images=work.images,
        batch=work.batch,
        context=work.context,
        prompt_tokens=inputs["input_ids"].shape[1],
        decode_steps=decode_steps,
        gpus=tuple(_gpu_use(gpu, measured, placement.capacities) for gpu in gpus),
        copies=tuple(_copies(measured.report)),
        decode_hops=_decode_hops(shape, placement, measured.home),
        problems=tuple(_problems(measured.report.problems)),
        offloaded=tuple(
            name for name, place in placement.weights.items() if place != placement.execution[name]
        ),
        notes=placement.notes,
    )


def _measure(
    model: PreTrainedModel,
    shape: ModelShape,
    placement: _Placement,
    inputs: Mapping[str, Any],
    gpus: tuple[GPU, ...],
    decode_steps: int,
) -> _Measured:
    import torch
    from transformers import GenerationConfig

    from glm4v_magic.dispatch.hooks import dispatch, dispatch_like_accelerate
    from glm4v_magic.dry_run.arrival import arrivals
    from glm4v_magic.dry_run.fp8 import fp8_kernels
    from glm4v_magic.torch_state import torch_state_kept
    from glm4v_magic.virtual_gpus import VirtualGPUs

    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
    endless = [_ENDLESS] * (max(gpu.index for gpu in gpus) + 1)
    virtual = VirtualGPUs(endless, values="none", on_mismatch="collect")
    kernels = fp8_kernels() if placement.fp8 else nullcontext()
    with torch_state_kept(), kernels, closing(virtual), virtual as virtual, torch.no_grad():
        virtual.without_data(model)
        if placement.kind == "auto":
            dispatch_like_accelerate(model, placement.weights)
        else:
            dispatch(model, placement.weights, placement.execution)
        weights = virtual.live_bytes
        arriving = arrivals(model, shape, placement.quantize, weights)
        home = model.device
        if home.type == "meta":  # the first weight is offloaded: its first GPU, then
            first = virtual.devices[gpus[0].index]
            home = next((d for d in virtual.devices if weights[d.index or 0]), first)
        on_home = {name: tensor.to(home) for name, tensor in inputs.items()}
        virtual.reset()
        with warnings.catch_warnings():
            # where the first weight is offloaded, the model says that it is on another device
            warnings.filterwarnings("ignore", "You are calling .generate", UserWarning)
            output = model.generate(
                **on_home, max_new_tokens=decode_steps + 1, return_dict_in_generate=True
            )
        cache: Counter[int | None] = Counter()  # the CPU has no index
        for layer in output.past_key_values.layers:
            for tensor in _cached(layer):
                cache[tensor.device.index] += tensor.nbytes
        return _Measured(virtual.report(), weights, cache, str(home), arriving)


def _cached(layer: Any) -> Iterator[Tensor]:
    """Yield the tensors of a cache layer: keys and values, or the state of linear attention."""
    for name in ("keys", "values", "indexer_keys"):
        held = getattr(layer, name, None)
        if held is not None:
            yield held
    for name in ("conv_states", "recurrent_states"):
        yield from (state for state in getattr(layer, name, {}).values() if state is not None)


def _gpu_use(gpu: GPU, measured: _Measured, planned: Mapping[int, int]) -> GPUUse:
    peaks = [peak for peak in measured.report.peaks if peak.device == gpu.index]
    peak = max(peaks, key=lambda peak: peak.peak_bytes)
    most, phase, module = peak.peak_bytes, peak.phase, peak.module
    arriving = measured.arrivals.get(gpu.index)
    if arriving is not None and arriving.peak_bytes > most:
        (most, module), phase = arriving, "load"
    weights, cache = measured.weights[gpu.index], measured.cache.get(gpu.index, 0)
    is_used = most > 0
    return GPUUse(
        gpu=gpu.index,
        name=gpu.name,
        capacity_bytes=min(gpu.usable_bytes, planned.get(gpu.index, gpu.usable_bytes)),
        weight_bytes=weights,
        kv_bytes=cache,
        activation_bytes=max(0, most - weights - cache),
        overhead_bytes=gpu.overhead_bytes if is_used else 0,
        phase=phase if is_used else "",
        module=module if is_used else "",
    )


def _copies(report: Report) -> Iterator[HopUse]:
    steps = dict(report.forwards)
    prefill, decode = report.hops("prefill"), report.hops("decode")
    per_step = max(1, steps.get("decode", 0))
    for source, target in sorted({**prefill, **decode}):
        prefill_copies, prefill_bytes = prefill.get((source, target), (0, 0))
        copies, size = decode.get((source, target), (0, 0))
        yield HopUse(
            source,
            target,
            prefill_copies,
            prefill_bytes,
            -(-copies // per_step),
            -(-size // per_step),
        )


def _decode_hops(shape: ModelShape, placement: _Placement, home: str) -> int:
    """Count the hops of a token: from its id through embedding, layers and head, and back."""
    devices = [home]
    for unit in shape.units:
        if not unit.kind.startswith("vision"):
            devices += [_device(name, placement.execution) for name in unit.modules[:1]]
    if shape.units[-1].kind == "head":
        devices.append(_device(shape.units[-1].modules[-1], placement.execution))
    known = [device for device in [*devices, home] if device]
    return sum(a != b for a, b in pairwise(known))


def _device(module: str, execution: DeviceMap) -> str:
    """Return the device of a module, or of its first part if the map names parts only."""
    name = module
    while name not in execution and name:
        name = name.rpartition(".")[0]
    place = execution.get(name)
    if place is None:
        inside = (p for part, p in execution.items() if part.startswith(module + "."))
        place = next(inside, None)
    if place is None:
        return ""
    return f"cuda:{place}" if isinstance(place, int) else place


def _problems(problems: Sequence[Problem]) -> Iterator[MixedDevices]:
    counted = Counter(
        MixedDevices(
            problem.message,
            problem.operation,
            problem.module,
            f"{_short(problem.source.file)}:{problem.source.line} in {problem.source.function}",
            problem.source.code,
            problem.devices,
            problem.phase,
        )
        for problem in problems
    )
    for problem, count in counted.items():
        yield replace(problem, count=count)


def _short(file: str) -> str:
    """Return the part of a path that is the same on every computer."""
    parts = PurePath(file).parts
    for folder in ("site-packages", "glm4v_magic"):
        if folder in parts:
            last = len(parts) - 1 - parts[::-1].index(folder)
            return str(PurePath(*parts[last + (folder == "site-packages") :]))
    return str(PurePath(*parts[-2:]))
