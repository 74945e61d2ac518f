"""The least time of a decode step and of a prefill that the hardware allows.

A decode step reads every weight of the text part once, of a layer with experts those that a token
chooses, and the KV cache, each at the bandwidth of the memory of its GPU. GPUs run one after
another, so their times add up. What is offloaded crosses the bus first: a plan has room for one
such unit at a time, so none is copied while another computes. A hop brings the hidden states to
the next GPU.

A prefill multiplies every token with every weight (two operations each) and pairs of tokens in the
attention, half of them where it looks back only; images pass through the tower. A unit takes the
time of its operations or that of reading its weights once, whichever is longer.

Real programs take about twice as long: kernels wait for each other, and small products leave a
GPU idle. A decode step takes longer still where the host cannot start kernels as fast as the GPU
runs them. Nothing is counted for that here; `core.speed` has what is expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import add
from typing import NamedTuple

from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.model_shape import DTYPE_BYTES, ModelShape, UnitShape, Workload
from glm4v_magic.core.speed import SpeedLimit
from glm4v_magic.core.stage import Stage
from glm4v_magic.planning.costs import cache_entries, price
from glm4v_magic.planning.seen import planned_image

__all__ = ["HOP_SECONDS", "Bus", "UnitWork", "bus_of", "speed_limit", "unit_seconds", "work_of"]

HOP_SECONDS = 2e-6
"""Least time of a copy between two GPUs, however small: CUDA's sample p2pBandwidthLatencyTest
shows 1.5 to 2.5 microseconds with peer access, and ten times as much without."""

_LANES = 16
_PCIE = {  # first compute capability of GPUs with it -> generation, bytes per second and lane
    (9, 0): ("5.0", 32e9 / 8 * 128 / 130),
    (8, 0): ("4.0", 16e9 / 8 * 128 / 130),
    (0, 0): ("3.0", 8e9 / 8 * 128 / 130),
}
"""PCIe 5.0, 4.0 and 3.0: 32, 16 and 8 GT/s per lane, 128 of 130 bits are data."""


class Bus(NamedTuple):
    """The bus between a GPU and the host: its name, and the bytes per second that it carries."""

    name: str
    rate: float

    def seconds(self, size: int) -> str:
        """Return the least time that `size` bytes take, as it is shown."""
        return f"{size / self.rate:.2f}"


@dataclass(frozen=True, slots=True)
class UnitWork:
    """What a unit reads and computes.

    Attributes:
        name: name of the unit.
        weight_bytes: all its weights, which are copied if it is offloaded.
        step_bytes: weights that a decode step reads.
        cache_bytes: KV cache that a decode step reads at the end of the planned context.
        operations: floating-point operations of the prefill.
        in_tower: whether it is a part of the vision tower.
    """

    name: str
    weight_bytes: int
    step_bytes: int
    cache_bytes: int
    operations: int
    in_tower: bool


def bus_of(gpu: GPU) -> Bus:
    """Return the bus of a GPU, whose compute capability tells the generation of PCIe.

    One of unknown capability has the fastest: its times are the least that are possible.
    """
    capability = max(_PCIE) if gpu.capability is None else gpu.capability
    generation, rate = next(bus for first, bus in _PCIE.items() if capability >= first)
    return Bus(f"PCIe {generation} x{_LANES}", rate * _LANES)


def work_of(shape: ModelShape, workload: Workload) -> tuple[UnitWork, ...]:
    """Return what each unit reads and computes under `workload`.

    Raises:
        OptionError: as `costs.cache_entries`.
    """
    row = cache_entries(shape, workload)
    image = planned_image(shape, workload)
    images = workload.batch * workload.images
    size = DTYPE_BYTES[workload.dtype or shape.dtype]
    found = []
    for unit, priced in zip(shape.units, price(shape, workload), strict=True):
        idle = _idle_bytes(unit, workload, size)
        step = priced.weight_bytes - idle
        operations = 2 * (unit.values - unit.idle_values) * workload.batch * row
        operations += workload.batch * row * row * unit.pair_products  # looks back only: half of 2
        if unit.kind == "embedding":  # looks up a row for each token
            step = workload.batch * size * unit.row_length
            operations = 0
        elif unit.kind == "head":  # of the last token of each row
            operations = 2 * unit.values * workload.batch
        elif priced.in_tower:
            step = 0
            of_image = image.visual_tokens if unit.kind == "vision_projector" else image.patches
            operations = 2 * unit.values * of_image + 2 * of_image**2 * unit.pair_products
            operations *= images * (unit.kind != "vision_embedding")
        found.append(
            UnitWork(
                unit.name, priced.weight_bytes, step, priced.kv_bytes, operations, priced.in_tower
            )
        )
    return tuple(found)


def _idle_bytes(unit: UnitShape, workload: Workload, size: int) -> int:
    """Return the bytes of the weights that a token does not use."""
    if not unit.idle_values:
        return 0
    experts = [matrix for matrix in unit.packed if ".experts" in matrix.module]
    if experts:
        held = sum(matrix.nbytes for matrix in experts)
        return unit.idle_values * held // sum(matrix.values for matrix in experts)
    if workload.fp8 and unit.fp8_values:
        return unit.idle_values
    return unit.idle_values * size


def speed_limit(
    shape: ModelShape, stages: Sequence[Stage], gpus: Sequence[GPU], workload: Workload
) -> SpeedLimit:
    """Return the limit of a plan.

    Args:
        shape: sizes of the model.
        stages: stages of the plan.
        gpus: its GPUs, with what is known of their speed.
        workload: what it is planned for.
    """
    by_index = {gpu.index: gpu for gpu in gpus}
    used = [stage for stage in stages if stage.units and stage.gpu in by_index]
    slow = [gpu for stage in used if (gpu := by_index[stage.gpu or 0]).bandwidth is None]
    if slow or not used:
        names = tuple(dict.fromkeys(gpu.name for gpu in slow))
        return SpeedLimit(None, None, None, workload.batch, names)
    works = {work.name: work for work in work_of(shape, workload)}
    modules = {unit.name: unit.modules for unit in shape.units}
    tower = tuple(work.name for work in works.values() if work.in_tower)
    step = full = prefill = 0.0
    crosses_bus = False
    for stage in used:
        gpu = by_index[stage.gpu or 0]
        for name in _fine(stage, tower):
            work, away = works[name], set(modules[name]) <= set(stage.offloaded)
            crosses_bus |= away and not work.in_tower
            times = unit_seconds(work, gpu, away)
            step, full, prefill = map(add, (step, full, prefill), times)
    hops = HOP_SECONDS * (sum(not _only_tower(stage) for stage in used) - 1)
    is_known = all(by_index[stage.gpu or 0].flops is not None for stage in used)
    return SpeedLimit(
        step + hops,
        full + hops,
        prefill if is_known else None,
        workload.batch,
        layers=sum(unit.kind == "text_layer" for unit in shape.units),
        crosses_bus=crosses_bus,
    )


def unit_seconds(work: UnitWork, gpu: GPU, away: bool) -> tuple[float, float, float]:
    """Return seconds of a decode step with an empty and with a full KV cache, and of a prefill.

    Args:
        work: the unit.
        gpu: GPU that it runs on; its bandwidth is known.
        away: whether the unit is offloaded, so that its weights cross the bus.
    """
    assert gpu.bandwidth is not None
    crossing = work.weight_bytes / bus_of(gpu).rate if away else 0.0
    step = 0.0 if work.in_tower else work.step_bytes / gpu.bandwidth + crossing
    read = work.weight_bytes if work.in_tower else work.step_bytes
    computing = 0.0 if gpu.flops is None else work.operations / gpu.flops
    prefill = 0.0
    if work.operations or not work.in_tower:  # without images there is nothing to do for the tower
        prefill = max(computing, read / gpu.bandwidth) + crossing
    return step, step + work.cache_bytes / gpu.bandwidth, prefill


def _fine(stage: Stage, tower: Sequence[str]) -> Iterator[str]:
    """Yield the units of a stage, of a whole tower its parts."""
    for name in stage.units:
        yield from tower if name == "vision" else (name,)


def _only_tower(stage: Stage) -> bool:
    return all(name.startswith("vision") for name in stage.units)
