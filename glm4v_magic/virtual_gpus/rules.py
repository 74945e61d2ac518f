"""CUDA's rules for tensors on different devices, as a table.

Two families in PyTorch, told apart by the schema:

- Element-wise operations run through ``TensorIterator``, which takes one 0-dim CPU tensor as if
  it were a Python number (``TensorIteratorBase::compute_types``, aten/src/ATen/TensorIterator.cpp).
- All others get a check from the code generator, or one of their own, that requires every tensor
  on one device. Some element-wise operations are of this kind: those without ``device_check:
  NoCheck`` in aten/src/ATen/native/native_functions.yaml.

`RULES` has the exceptions.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

import torch

from glm4v_magic.virtual_gpus.tensor import CPU, META, leaves

__all__ = ["RULES", "DeviceRule", "Mismatch", "Place", "check_devices", "may_stay"]

DIFFERENT_DEVICES = (
    "Expected all tensors to be on the same device, but found at least two devices, "
    "{expected} and {found}!"
)
NO_DATA = "Cannot copy out of meta tensor; no data!"
_TOO_MANY_SCALARS = "Trying to pass too many CPU scalars to non-CPU kernel!"


class Place(enum.Enum):
    """Where a tensor may be, seen from the device of the operation."""

    SAME = "on the operation's device"
    CPU_SCALAR = "there, or one 0-dim tensor on the CPU"
    ANY_SCALAR = "there, or a 0-dim tensor anywhere"
    CPU_TOO = "there, or on the CPU"
    ANYWHERE = "on any device"


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """The rule of one operation.

    Attributes:
        places: places of the arguments that differ from `default`, by name in the schema.
        default: place of all other arguments.
        message: CUDA's text; may name ``{expected}``, the operation's device, and ``{found}``.
    """

    places: Mapping[str, Place] = field(default_factory=dict)
    default: Place = Place.SAME
    message: str = DIFFERENT_DEVICES


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Two devices that an operation does not accept together.

    Attributes:
        message: CUDA's text.
        expected: the operation's device.
        found: the other one.
    """

    message: str
    expected: torch.device
    found: torch.device


_INDICES = (
    "indices should be either on cpu or on the same device as the indexed tensor ({expected})"
)
_INDEX = DeviceRule({"indices": Place.CPU_TOO}, message=_INDICES)
_INDEX_PUT = DeviceRule({"indices": Place.CPU_TOO, "values": Place.ANY_SCALAR}, message=_INDICES)
_STRICT = DeviceRule()

RULES: Mapping[str, DeviceRule] = MappingProxyType(
    {
        # aten/src/ATen/native/TensorAdvancedIndexing.cpp: indices move to the tensor; in
        # _index_put_impl_ a 0-dim value does too
        "index": _INDEX,
        "_unsafe_index": _INDEX,
        "index_put": _INDEX_PUT,
        "_unsafe_index_put": _INDEX_PUT,
        "_index_put_impl": _INDEX_PUT,
        # value.item() is what they use, so a 0-dim value may be anywhere
        "masked_fill": DeviceRule({"value": Place.ANY_SCALAR}),
        "index_fill": DeviceRule({"value": Place.ANY_SCALAR}),
        "fill": DeviceRule({"value": Place.ANYWHERE}),
        # where_self_out in aten/src/ATen/native/TensorCompare.cpp moves every 0-dim tensor
        "where": DeviceRule(default=Place.ANY_SCALAR),
        # copies are what crosses devices
        "copy": DeviceRule(default=Place.ANYWHERE),
        "_to_copy": DeviceRule(default=Place.ANYWHERE),
        "equal": DeviceRule(
            message="Cannot compare two tensors on different devices. Got: {expected} and {found}"
        ),
        # element-wise, but without device_check: NoCheck
        "clamp": _STRICT,
        "clamp_min": _STRICT,
        "clamp_max": _STRICT,
        "gcd": _STRICT,
        "lcm": _STRICT,
        "logaddexp": _STRICT,
        "logaddexp2": _STRICT,
        "igamma": _STRICT,
        "igammac": _STRICT,
        "nextafter": _STRICT,
    }
)
"""Operations that neither accept a CPU scalar nor require one device throughout, by name in
``torch.ops.aten`` without the underscore of the in-place form."""

_ELEMENT_WISE = DeviceRule(default=Place.CPU_SCALAR)


@dataclass(frozen=True, slots=True)
class _Operand:
    tensor: torch.Tensor
    place: Place
    is_written: bool


def check_devices(
    operator: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    tensors: Sequence[torch.Tensor],
) -> tuple[torch.device, Mismatch | None]:
    """Return the device that `operator` runs on, and CUDA's objection to its tensors, if any.

    Args:
        operator: an operator of ``torch.ops``.
        args: its positional arguments.
        kwargs: its keyword arguments.
        tensors: the tensors in `args` and `kwargs`.

    Returns:
        The device, and ``None`` if all tensors may be where they are. If they may not, the
        device is where the operation makes sense: that of the tensor it writes to, if any.
    """
    if not tensors:
        return CPU, None
    first = tensors[0].device
    if all(tensor.device == first for tensor in tensors):
        return first, None
    rule = _rule(operator)
    operands = list(_operands(operator, rule, args, kwargs))
    device = _common_device(operands)
    mismatch = _find_mismatch(rule, operands, device)
    if mismatch is not None:
        written = next((operand for operand in operands if operand.is_written), None)
        device = written.tensor.device if written is not None else device
    return device, mismatch


def may_stay(tensor: torch.Tensor, device: torch.device) -> bool:
    """Tell whether a tensor need not be moved to repair an operation on `device`."""
    return tensor.device == device or (tensor.dim() == 0 and tensor.device == CPU)


@cache
def _rule(operator: Any) -> DeviceRule:
    name = operator._schema.name.partition("::")[2].removesuffix("_")
    element_wise = torch.Tag.pointwise in getattr(operator, "tags", ())
    return RULES.get(name) or (_ELEMENT_WISE if element_wise else _STRICT)


def _operands(
    operator: Any, rule: DeviceRule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[_Operand]:
    for position, argument in enumerate(operator._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        place = rule.places.get(argument.name, rule.default)
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        for tensor in leaves(value):
            yield _Operand(tensor, place, is_written)


def _common_device(operands: Sequence[_Operand]) -> torch.device:
    """Return the first device that is not the CPU, among the tensors that decide it."""
    deciding = [o for o in operands if o.place not in (Place.CPU_TOO, Place.ANYWHERE)] or operands
    devices = (operand.tensor.device for operand in deciding)
    return next((device for device in devices if device != CPU), CPU)


def _find_mismatch(
    rule: DeviceRule, operands: Sequence[_Operand], device: torch.device
) -> Mismatch | None:
    cpu_scalars = 0
    for operand in operands:
        tensor = operand.tensor
        if tensor.device == device:
            continue
        if tensor.device == META:
            return Mismatch(NO_DATA, device, META)
        if operand.place is Place.ANYWHERE:
            continue
        if device == META and tensor.device != CPU:
            return Mismatch(NO_DATA, META, tensor.device)
        is_scalar = tensor.dim() == 0 and not operand.is_written
        if operand.place is Place.CPU_SCALAR and is_scalar and tensor.device == CPU:
            cpu_scalars += 1
            if cpu_scalars > 1:
                return Mismatch(_TOO_MANY_SCALARS, device, CPU)
            continue
        if operand.place is Place.ANY_SCALAR and is_scalar:
            continue
        if operand.place is Place.CPU_TOO and tensor.device == CPU:
            continue
        custom = operand.place is Place.CPU_TOO or Place.CPU_TOO not in rule.places.values()
        message = rule.message if custom else DIFFERENT_DEVICES
        return Mismatch(message.format(expected=device, found=tensor.device), device, tensor.device)
    return None
