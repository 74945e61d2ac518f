"""What to do where memory ran out while a model was loaded: only what helps on these devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from glm4v_magic.core.errors import DeviceMapError, OptionError, PlacementError
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.core.options import QUANTIZATIONS, Quantization
from glm4v_magic.core.remarks import Remark, remark
from glm4v_magic.hardware.host import free_host_bytes
from glm4v_magic.hardware.usable import gpus_here
from glm4v_magic.planning.costs import price
from glm4v_magic.planning.decision import Placement
from glm4v_magic.planning.needs import needs_of_map
from glm4v_magic.planning.plan import task_of
from glm4v_magic.planning.precision import INT8_FROM, any_below, require_whole_blocks
from glm4v_magic.planning.search import can_fit

__all__ = ["advice_for_load"]

_SHORT = 256  # tokens


def advice_for_load(shape: ModelShape, placement: Placement) -> Remark:
    """Return the ways out, once what was loaded has been released.

    Args:
        shape: sizes of the model.
        placement: where it was to go.
    """
    plan = placement.plan
    is_idle = plan is not None and not all(stage.units for stage in plan.stages)
    ways = [remark("free_memory"), remark("idle_gpus_too") if is_idle else remark("more_gpus")]
    ways += _smaller_weights(shape, placement)
    if plan is None and placement.device_map is not None:
        ways.append(remark("plan_instead_of_map"))
    return remark("loading_ran_out", ways=tuple(ways))


def _smaller_weights(shape: ModelShape, placement: Placement) -> Iterator[Remark]:
    """Yield the mildest quantisation that the devices compute with and have room for."""
    if placement.quantize == "4bit" or not shape.quantizable:
        return
    device_map = placement.device_map or {"": "cpu"}
    gpus = _gpus_now()
    used = [gpu for gpu in gpus if gpu.index in device_map.values()]
    for kind in QUANTIZATIONS:
        if kind == placement.quantize or (kind == "8bit" and any_below(INT8_FROM, used)):
            continue
        try:
            require_whole_blocks(shape, kind, device_map.values())
        except OptionError:
            continue
        if _has_room(shape, placement, kind, gpus):
            yield remark("eight_bit") if kind == "8bit" else remark("four_bit")
            return


def _has_room(
    shape: ModelShape, placement: Placement, kind: Quantization, gpus: Sequence[GPU]
) -> bool:
    """Tell whether weights of a kind are known to have room, or nothing is known of it."""
    plan, device_map = placement.plan, placement.device_map
    short = min(_SHORT, shape.max_context)
    work = Workload(short, images=0, dtype=placement.dtype, quantize=kind)
    if device_map is None or set(device_map.values()) == {"cpu"}:
        return sum(unit.weight_bytes for unit in price(shape, work)) <= free_host_bytes()
    if not gpus:  # none tells its size
        return True
    if plan is not None:
        try:
            task = task_of(shape, gpus, replace(plan.workload, quantize=kind, fp8=False))
            return can_fit(task)
        except (DeviceMapError, OptionError):  # the plan was for a model of other sizes
            return True
    needed = needs_of_map(shape, work, device_map, gpus) or {}
    return all(needed.get(gpu.index, 0) <= gpu.usable_bytes for gpu in gpus)


def _gpus_now() -> tuple[GPU, ...]:
    try:
        return gpus_here()
    except PlacementError:
        return ()
