"""CUDA's rules for tensors on different devices, as a table.

Two families in PyTorch, told apart by the schema:

- Some element-wise operations of several tensors run through a ``TensorIterator`` that takes one
  0-dim CPU tensor as if it were a Python number (``allow_cpu_scalars`` in
  aten/src/ATen/TensorIterator.cpp): `TAKES_CPU_SCALAR`.
- All others get a check from the code generator, or one of their own, that requires every tensor
  on one device: those without ``device_check: NoCheck`` in
  aten/src/ATen/native/native_functions.yaml, and those whose ``TensorIterator`` takes no scalars.

`RULES` has the exceptions. Operations that have no kernel for CUDA but one made of other operations
have no rule: on several devices, that kernel runs and its operations are checked; see
`composite_kernel`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch._C import DispatchKey

from glm4v_magic.virtual_gpus.tensor import CPU, META, leaves

__all__ = [
    "CPU_ONLY",
    "IMPLICIT",
    "NO_DATA",
    "RULES",
    "SETS",
    "TAKES_CPU_SCALAR",
    "DeviceRule",
    "Mismatch",
    "Place",
    "check_devices",
    "composite_kernel",
    "is_cpu_only",
    "is_implicit",
    "lazy_views",
    "may_stay",
]

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
        decides: name of the argument whose device is the operation's, even if it is the CPU;
            empty if it is that of any tensor on a GPU.
        message: CUDA's text; may name ``{expected}``, the operation's device, and ``{found}``.
    """

    places: Mapping[str, Place] = field(default_factory=dict)
    default: Place = Place.SAME
    decides: str = ""
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
_INDEX_PUT = DeviceRule(
    {"indices": Place.CPU_TOO, "values": Place.ANY_SCALAR}, decides="self", message=_INDICES
)
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
        # value.item() is what they use, so a 0-dim value may be anywhere; masked_fill__cuda, which
        # is called if it is on a GPU, wants the tensor there, too
        "masked_fill": DeviceRule({"value": Place.ANY_SCALAR}),
        "index_fill": DeviceRule({"value": Place.ANY_SCALAR}, decides="self"),
        "fill": DeviceRule({"value": Place.ANYWHERE}),
        # where_self_out in aten/src/ATen/native/TensorCompare.cpp moves every 0-dim tensor
        "where": DeviceRule(default=Place.ANY_SCALAR),
        # copies are what crosses devices
        "copy": DeviceRule(default=Place.ANYWHERE),
        "_to_copy": DeviceRule(default=Place.ANYWHERE),
        # aten/src/ATen/native/TensorProperties.cpp compares storages
        "is_set_to": DeviceRule(default=Place.ANYWHERE),
        # checkSetStorage in aten/src/ATen/native/Resize.h: of a tensor and of a storage alike
        "set": DeviceRule(
            decides="self",
            message='Attempted to set the storage of a tensor on device "{expected}" to a storage '
            'on different device "{found}".  This is no longer allowed; the devices must match.',
        ),
        "equal": DeviceRule(
            message="Cannot compare two tensors on different devices. Got: {expected} and {found}"
        ),
        # aten/src/ATen/native/BinaryOps.cpp: the result is made on the device of `self`
        "logical_and": DeviceRule({"other": Place.CPU_SCALAR}),
        "logical_or": DeviceRule({"other": Place.CPU_SCALAR}),
        "logical_xor": DeviceRule({"other": Place.CPU_SCALAR}),
        # aten/src/ATen/native/cuda/Loss.cu: loss.mul_(weight)
        "binary_cross_entropy": DeviceRule({"weight": Place.CPU_SCALAR}),
        # bernoulli_kernel in aten/src/ATen/native/cuda/CUDATemplates.h: p.to(kCUDA)
        "bernoulli": DeviceRule({"p": Place.ANYWHERE}),
        # made of other operations that say the same in words of their own
        "convolution": _STRICT,
        "embedding": _STRICT,
        "masked_scatter": _STRICT,
        "mv": _STRICT,
        "stack": _STRICT,
    }
)
"""Operations with a rule of their own, by name in ``torch.ops.aten`` without the underscore of the
in-place form."""

SETS = frozenset({
    torch.ops.aten.set_.source_Storage, torch.ops.aten.set_.source_Storage_storage_offset,
    torch.ops.aten.set_.source_Tensor, torch.ops.aten.set_.source_Tensor_storage_offset,
})  # fmt: skip
"""Operations that give a tensor the memory of another one, or a storage: its device is `set`'s."""

TAKES_CPU_SCALAR = frozenset({
    "add", "addcmul", "atan2", "bitwise_and", "bitwise_left_shift", "bitwise_or",
    "bitwise_right_shift", "bitwise_xor", "copysign", "div", "eq", "floor_divide", "fmax", "fmin",
    "fmod", "ge", "gt", "heaviside", "hypot", "le", "lerp", "lt", "maximum", "minimum", "mse_loss",
    "mul", "ne", "pow", "remainder", "rsub", "smooth_l1_loss", "special_chebyshev_polynomial_t",
    "special_chebyshev_polynomial_u", "special_chebyshev_polynomial_v",
    "special_chebyshev_polynomial_w", "special_hermite_polynomial_h",
    "special_hermite_polynomial_he", "special_laguerre_polynomial_l",
    "special_legendre_polynomial_p", "special_shifted_chebyshev_polynomial_t",
    "special_shifted_chebyshev_polynomial_u", "special_shifted_chebyshev_polynomial_v",
    "special_shifted_chebyshev_polynomial_w", "special_xlog1py", "special_zeta", "sub", "xlogy",
    "__ilshift_", "__irshift_", "__lshift_", "__rshift_",
})  # fmt: skip
"""Operations that take one 0-dim tensor of the CPU, named as in `RULES`."""

CPU_ONLY = frozenset({
    "_add_relu", "_histogramdd_bin_edges", "_histogramdd_from_bin_cts",
    "_histogramdd_from_bin_tensors", "_spdiags", "_upsample_lanczos2d_aa", "histogram", "to_mkldnn",
})  # fmt: skip
"""Operations that have a kernel for the CPU and none for CUDA, named as in `RULES`."""

_ELEMENT_WISE = DeviceRule(default=Place.CPU_SCALAR)
_COMPOSITE = DispatchKey.CompositeExplicitAutograd
IMPLICIT = DispatchKey.CompositeImplicitAutograd
_COMPOSITE_NEW = DispatchKey.CompositeExplicitAutogradNonFunctional
# PyTorch generates a kernel for _COMPOSITE_NEW for most operations; these have no other.
_COMPOSITE_NEW_ALONE = (
    "_trilinear", "as_strided_scatter", "diagonal_scatter", "linalg_pinv", "select_scatter",
    "slice_scatter",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Operand:
    tensor: torch.Tensor
    place: Place
    is_written: bool
    decides: bool


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
def composite_kernel(operator: Any) -> DispatchKey | None:
    """Return the key of the kernel that is made of other operations, if CUDA uses that one."""
    name = _name(operator)
    if name in RULES or name in TAKES_CPU_SCALAR:
        return None
    if name in _COMPOSITE_NEW_ALONE:
        return _COMPOSITE_NEW
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    # what has a kernel for the CPU has one for CUDA, or is in CPU_ONLY
    is_composite = has(operator.name(), _COMPOSITE.name) and not has(operator.name(), "CPU")
    return _COMPOSITE if is_composite else None


@cache
def is_implicit(operator: Any) -> bool:
    """Tell whether PyTorch replaces an operation by others, unless it is in inference mode."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), IMPLICIT.name)


@contextmanager
def lazy_views() -> Iterator[None]:
    """Within the block, PyTorch carries out lazy conjugation and negation where a kernel needs it.

    It calls dispatch modes with the keys for that switched off. In inference mode they are then off
    inside operations that are made of others too: ``fft.hfftn`` would transform what is not
    conjugated yet (torch 2.13, under any ``TorchDispatchMode``).
    """
    conjugate = torch._C._SetExcludeDispatchKeyGuard(DispatchKey.Conjugate, False)
    negative = torch._C._SetExcludeDispatchKeyGuard(DispatchKey.Negative, False)
    with conjugate, negative:
        yield


@cache
def is_cpu_only(operator: Any) -> bool:
    """Tell whether CUDA has no kernel for an operation of the CPU."""
    return _name(operator) in CPU_ONLY


def is_gpu_only(operator: Any) -> bool:
    """Tell whether an operation that is not PyTorch's own has no kernel that the CPU could run."""
    name = operator.name()
    has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    return not name.startswith("aten::") and not has_kernel(name, "CPU")


@cache
def _rule(operator: Any) -> DeviceRule:
    name = _name(operator)
    return RULES.get(name) or (_ELEMENT_WISE if name in TAKES_CPU_SCALAR else _STRICT)


def _name(operator: Any) -> str:
    name: str = operator._schema.name.partition("::")[2]
    return name.removesuffix("_")


def _operands(
    operator: Any, rule: DeviceRule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[_Operand]:
    for position, argument in enumerate(operator._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        place = rule.places.get(argument.name, rule.default)
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        for tensor in leaves(value):
            yield _Operand(tensor, place, is_written, argument.name == rule.decides)


def _common_device(operands: Sequence[_Operand]) -> torch.device:
    """Return the first device that is not the CPU, among the tensors that decide it, or theirs."""
    for operand in operands:
        if operand.decides:
            return operand.tensor.device
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
