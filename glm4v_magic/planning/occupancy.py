"""A plan divided into parts for a view: what fills each GPU, and what crosses between GPUs.

A plan has sums for each GPU. Here they are divided into the units that the weights belong to, the
KV cache in use, and the memory of other programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal

from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.model_shape import DTYPE_BYTES, ModelShape
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.plan_text import images, span
from glm4v_magic.core.remarks import Remark
from glm4v_magic.core.stage import Stage
from glm4v_magic.planning.costs import Unit, cache_entries, price
from glm4v_magic.planning.search import whole_tower
from glm4v_magic.planning.seen import planned_image

__all__ = ["Hop", "Occupancy", "OccupiedGPU", "Part", "PartKind", "occupancy"]

PartKind = Literal[
    "vision", "embedding", "layers", "head", "cache", "room", "activations", "overhead", "others",
    "reserve", "free",
]  # fmt: skip

_GROUPS: dict[str, PartKind] = {"embedding": "embedding", "text_layer": "layers", "head": "head"}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the memory of a GPU.

    Attributes:
        kind: kind of the part.
        name: name for people: ``vision``, ``layers 0-11``, ``cache``.
        size_bytes: bytes of the part on the GPU.
        modules: for weights, names in the model's module tree.
        dtype: dtype of the weights.
        host_bytes: offloaded weights, which stay in host memory.
    """

    kind: PartKind
    name: str
    size_bytes: int
    modules: tuple[str, ...] = ()
    dtype: str = ""
    host_bytes: int = 0


@dataclass(frozen=True, slots=True)
class OccupiedGPU:
    """A GPU and the parts that fill its memory.

    Attributes:
        device: torch's name of the device.
        name: product name.
        total_bytes: size of the GPU's memory; for the CPU, which is not checked, `planned_bytes`.
        usable_bytes: memory that the plan may use; ``None`` on the CPU.
        parts: parts from left to right; together `total_bytes`, or more if it does not fit.
    """

    device: str
    name: str
    total_bytes: int
    usable_bytes: int | None
    parts: tuple[Part, ...]

    @property
    def planned_bytes(self) -> int:
        """Bytes that the plan takes."""
        outside = ("others", "reserve", "free")
        return sum(part.size_bytes for part in self.parts if part.kind not in outside)

    @property
    def fullness(self) -> float | None:
        """`planned_bytes` as a fraction of `usable_bytes`; ``None`` on the CPU."""
        if self.usable_bytes is None:
            return None
        return self.planned_bytes / self.usable_bytes if self.usable_bytes > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Hop:
    """Tensors that cross from one GPU to another.

    Attributes:
        source, target: devices.
        what: ``hidden state``, ``visual tokens``, ``patches`` or ``logits``.
        token_bytes: bytes for each generated token.
        image_bytes: bytes for each image; ``None`` if it depends on the image.
    """

    source: str
    target: str
    what: str
    token_bytes: int
    image_bytes: int | None = 0


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Everything that the view of a device map shows.

    Attributes:
        model: name of the checkpoint.
        work: workload of the plan, in words, for the title.
        gpus: GPUs in the order in which a token visits them, idle ones last.
        hops: hops between them, and back.
        notes: notes of the plan.
        problem: why the model does not fit; empty if it does.
        loaded: whether the model is in memory, not only planned.
    """

    model: str
    work: str
    gpus: tuple[OccupiedGPU, ...]
    hops: tuple[Hop, ...] = ()
    notes: tuple[Remark, ...] = ()
    problem: str = ""
    loaded: bool = False

    @property
    def fullest(self) -> OccupiedGPU | None:
        """The GPU with the highest `fullness`; ``None`` on the CPU."""
        gpus = [gpu for gpu in self.gpus if gpu.fullness is not None]
        return max(gpus, key=lambda gpu: gpu.fullness or 0.0, default=None)


def occupancy(
    plan: Plan,
    shape: ModelShape,
    gpus: Sequence[GPU] = (),
    *,
    cached_tokens: int = 0,
    problem: str = "",
    loaded: bool = False,
) -> Occupancy:
    """Divide a plan into parts.

    Args:
        plan: plan for this model.
        shape: sizes of the model.
        gpus: GPUs with their real sizes; by default as large as the plan may use.
        cached_tokens: KV cache entries in use.
        problem: why the model does not fit, for an over-full plan.
        loaded: whether the model is in memory.

    Raises:
        DeviceMapError: if the plan, perhaps from a file, has units that the model does not have.
        OptionError: if its workload does not suit the model.
    """
    fine = price(shape, plan.workload)
    units = {unit.name: unit for unit in (*fine, *whole_tower(shape, fine))}
    for name in (name for stage in plan.stages for name in stage.units):
        if name not in units:
            raise DeviceMapError(f"The plan has a unit {name!r}, which {shape.name} does not have.")
    entries = plan.workload.batch * cache_entries(shape, plan.workload)
    used = min(cached_tokens / entries, 1.0)
    by_index = {gpu.index: gpu for gpu in gpus}
    occupied = tuple(
        _gpu(
            stage,
            [units[name] for name in stage.units],
            None if stage.gpu is None else by_index.get(stage.gpu),
            plan.workload.dtype or shape.dtype,
            plan.workload.form,
            used,
        )
        for stage in plan.stages
    )
    hops = tuple(_hops(plan, shape, units))
    return Occupancy(plan.model, _work(plan), occupied, hops, plan.notes, problem, loaded)


def _work(plan: Plan) -> str:
    work = plan.workload
    quantized = f", text part in {work.form}" if work.form else ""
    return f"{work.dtype}{quantized}: {work.context or 0:,} tokens of context, {images(work)}" + (
        f", batch of {work.batch}" if work.batch > 1 else ""
    )


def _gpu(
    stage: Stage, units: list[Unit], gpu: GPU | None, dtype: str, quantize: str, used: float
) -> OccupiedGPU:
    parts = [*_weights(stage, units, dtype, quantize)]
    cached = round(stage.kv_bytes * used)
    parts += [
        Part("cache", "cache in use", cached),
        Part("room", "cache, to the full context" if cached else "cache", stage.kv_bytes - cached),
        Part("activations", "activations, at their peak", stage.activation_bytes),
        Part("overhead", "CUDA context", stage.overhead_bytes),
    ]
    taken = sum(part.size_bytes for part in parts)
    usable = stage.capacity_bytes
    if usable is None:
        return OccupiedGPU(stage.device, stage.name, max(taken, 1), None, _present(parts))
    total = usable if gpu is None else gpu.total_bytes
    others = 0 if gpu is None else gpu.total_bytes - gpu.usable_bytes
    parts += [
        # Other programs may have taken more memory since the plan was made.
        Part("free", "free", max(min(usable, total - others) - taken, 0)),
        Part("reserve", "reserve", max(total - others - max(usable, 0), 0)),
        Part("others", "other programs", others),
    ]
    return OccupiedGPU(stage.device, stage.name, max(total, 1), usable, _present(parts))


def _present(parts: Iterable[Part]) -> tuple[Part, ...]:
    return tuple(part for part in parts if part.size_bytes or part.host_bytes)


def _weights(stage: Stage, units: list[Unit], dtype: str, quantize: str) -> Iterator[Part]:
    """Yield the weights of a stage as parts; consecutive layers are one part."""
    for kind, group in groupby(units, key=lambda unit: "vision" if unit.in_tower else unit.kind):
        members = list(group)
        away = [unit for unit in members if set(unit.modules) <= set(stage.offloaded)]
        size, host = (sum(unit.weight_bytes for unit in each) for each in (members, away))
        name = span(unit.name for unit in members).replace("layer.", "layers ")
        if kind == "text_layer" and len(members) == 1:
            name = name.replace("layers", "layer")
        yield Part(
            _GROUPS.get(kind, "vision"),
            name,
            size - host,
            tuple(module for unit in members for module in unit.modules),
            f"{dtype}, linear layers in {quantize}" if quantize and kind == "text_layer" else dtype,
            host,
        )


def _hops(plan: Plan, shape: ModelShape, units: dict[str, Unit]) -> Iterator[Hop]:
    """Yield the hops of a token, and of an image, through the stages.

    Logits go back to the device of the ids: that of the first weight
    (``PreTrainedModel.device``). The units with the first weights are never offloaded.
    """
    size = DTYPE_BYTES[plan.workload.dtype or shape.dtype]
    # The embedding holds a hidden state per token; the head computes logits per row.
    hidden = size * _values(shape, "embedding", "text", "held_values")
    logits = size * _values(shape, "head", "row", "values")
    stages = [stage for stage in plan.stages if stage.units]
    for before, after in pairwise(stages):
        kind = units[after.units[0]].kind
        if kind == "embedding":
            per_image = hidden * planned_image(shape, plan.workload).visual_tokens
            yield Hop(before.device, after.device, "visual tokens", 0, per_image)
        elif units[after.units[0]].in_tower:
            yield Hop(before.device, after.device, "patches", 0, None)
        else:
            yield Hop(before.device, after.device, "hidden state", hidden)
    if len(stages) > 1:
        first, last = stages[0], stages[-1]
        yield Hop(last.device, first.device, "logits", logits)


def _values(shape: ModelShape, kind: str, tokens: str, attribute: str) -> int:
    return max(
        getattr(activation, attribute)
        for unit in shape.units
        if unit.kind == kind
        for activation in unit.activations
        if activation.tokens == tokens
    )
