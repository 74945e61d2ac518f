"""Checks after loading: is every weight on its device, and does every GPU hold what is planned?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from glm4v_magic.core.errors import PlacementError
from glm4v_magic.core.placement import Place
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.wording import gib
from glm4v_magic.dispatch.devices import name_of
from glm4v_magic.planning.device_map import place_of

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["verify_bytes", "verify_places"]

_REPORT = (
    "This is a bug of the loader, not of the map, and the model was not kept; load it again, or "
    "with another map."
)


def verify_places(model: nn.Module, device_map: Mapping[str, Place]) -> None:
    """Compare the devices of a dispatched model's tensors with its device map.

    Offloaded weights are on ``meta`` while they are not in use; their buffers stay on the GPU.

    Raises:
        PlacementError: if a tensor is on another device.
    """
    on_gpus = any(place != "cpu" for place in device_map.values())
    buffers = {name for name, _ in model.named_buffers()}
    for name, tensor in _tensors(model):
        place = place_of(device_map, name)
        wanted = "None" if place is None else name_of(place)
        found = str(tensor.device)
        offloaded = wanted == "cpu" and on_gpus
        if found != wanted and not (offloaded and (found == "meta" or name in buffers)):
            raise PlacementError(f"{name} was to be on {wanted}, but arrived on {found}.", _REPORT)


def verify_bytes(model: nn.Module, plan: Plan, *, is_quantised: bool = False) -> None:
    """Compare the bytes of the weights on each GPU with the plan.

    bitsandbytes keeps its scales outside the parameters, so quantised weights may take less.

    Raises:
        PlacementError: if they differ.
    """
    found: Counter[str] = Counter()
    for parameter in model.parameters():
        found[str(parameter.device)] += parameter.nbytes
    for stage in plan.stages:
        device = "cpu" if stage.gpu is None else name_of(stage.gpu)
        planned, there = stage.weight_bytes, found[device]
        is_less = (is_quantised or plan.workload.quantize is not None) and there < planned
        if stage.gpu is not None and there != planned and not is_less:
            raise PlacementError(
                f"{gib(there)} GiB of weights ({there:,} bytes) are on {device}, where the "
                f"plan has {gib(planned)} GiB ({planned:,} bytes).",
                _REPORT,
            )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
