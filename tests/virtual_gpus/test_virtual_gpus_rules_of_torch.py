"""The rules for devices are those of the PyTorch that is installed.

PyTorch says in ``native_functions.yaml``, which comes with it, which operators its code generator
checks, and its own binary tells which of the others take a scalar of the CPU: the first half of
their kernels, with these checks, needs no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
from torch._C import DispatchKey as Key
from torch.utils._python_dispatch import _disable_current_modes
from torchgen.gen import parse_native_yaml
from torchgen.model import DeviceCheckType, DispatchKey, NativeFunction, SchemaKind

from glm4v_magic.virtual_gpus import VirtualGPUs
from glm4v_magic.virtual_gpus.rules import CPU_ONLY, RULES, TAKES_CPU_SCALAR

# Kernels with checks of their own that need no rule, by what they are
OWN_CHECKS = {
    "an output that is written is on the device of the operation": """
        abs all aminmax angle any cumprod cumsum hardswish hardtanh log_sigmoid_forward logical_not
        max mean min norm prod renorm std sum var _index_put_impl binomial
    """,
    "training and other back ends": """
        _cudnn_ctc_loss _cudnn_rnn _efficient_attention_backward _flash_attention_backward
        _fused_adagrad _fused_adam _fused_adamw _fused_sgd _nested_from_padded
        _nested_view_from_buffer _scaled_dot_product_efficient_attention_backward
        _scaled_dot_product_flash_attention_backward _use_cudnn_ctc_loss _use_miopen_ctc_loss
        _validate_compressed_sparse_indices miopen_ctc_loss
    """,
}
# Operators of the CPU that PyTorch never calls for a tensor of a GPU
FOR_THE_CPU = (
    "_convert_weight_to_int4pack_for_cpu", "_dyn_quant_matmul_4bit", "_dyn_quant_pack_4bit_weight",
    "_empty_affine_quantized", "_empty_per_channel_affine_quantized", "_foobar",
    "_functional_assert_async", "_make_dep_token", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward", "_test_functorch_fallback",
    "_test_optional_filled_intlist", "_test_optional_floatlist", "_test_optional_intlist",
    "_upsample_lanczos2d_aa_backward", "_weight_int4pack_mm_for_cpu", "from_file",
    "mkldnn_rnn_layer", "mkldnn_rnn_layer_backward", "narrow_copy", "quantize_per_tensor",
    "slow_conv3d_forward",
)  # fmt: skip

_yaml = Path(torchgen.__file__).parent / "packaged/ATen/native"


@cache
def functions() -> tuple[dict[str, NativeFunction], Any, set[str]]:
    """All functions by name, the kernels by back end, and the names of composite ones."""
    parsed = parse_native_yaml(str(_yaml / "native_functions.yaml"), str(_yaml / "tags.yaml"))
    kernels = parsed.backend_indices
    composite = {
        str(name)
        for key, index in kernels.items()
        if str(key).startswith("Composite")
        for name in index.index
    }
    return {str(f.func.name): f for f in parsed.native_functions}, kernels, composite


def kernel_of(name: str) -> NativeFunction:
    by_name, *_ = functions()
    delegate = by_name[name].structured_delegate
    return by_name[str(delegate)] if delegate else by_name[name]


def with_cuda_kernel() -> Iterator[tuple[str, str, NativeFunction]]:
    """Functions of several tensors: full name, name of the rule, and the function."""
    by_name, kernels, _ = functions()
    for name, function in by_name.items():
        tensors = [a for a in function.func.arguments.flat_all if a.type.is_tensor_like()]
        several = len(tensors) > 1 or any(a.type.is_list_like() for a in tensors)
        if several and kernels[DispatchKey.CUDA].has_kernel(kernel_of(name)):
            yield name, name.partition(".")[0].removesuffix("_"), function


def is_iterator(name: str) -> bool:
    return "TensorIterator" in (kernel_of(name).structured_inherits or "")


def test_what_the_code_generator_checks_takes_no_other_device() -> None:
    strict = {
        rule
        for _, rule, function in with_cuda_kernel()
        if function.device_check == DeviceCheckType.ExactSame
    }
    assert len(strict) > 300
    # rules that differ in their text alone
    assert strict & RULES.keys() == {"equal", "masked_scatter"}
    assert not strict & TAKES_CPU_SCALAR


def operator(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def passes_the_check(name: str, odd: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether the kernel's own check takes `odd` in one place among `others`."""
    packet, _, overload = name.partition(".")
    schema = torch._C._get_schema(f"aten::{packet}", overload)
    for place, argument in enumerate(schema.arguments):
        if "Tensor" not in str(argument.type):
            continue
        args, kwargs = [], {}
        for position, other in enumerate(schema.arguments):
            value = odd if position == place else _default(other, others)
            if other.kwarg_only:
                kwargs[other.name] = value
            else:
                args.append(value)
        if not _is_refused(operator(name), args, kwargs):
            return True
    return False


def _default(argument: Any, tensor: torch.Tensor) -> Any:
    if "Tensor" in str(argument.type):
        return tensor
    if argument.has_default_value():
        return argument.default_value
    return "floor" if "str" in str(argument.type) else 1


def _is_refused(operator: Any, args: list[Any], kwargs: dict[str, Any]) -> bool:
    with (
        torch._C.DisableTorchFunction(),
        _disable_current_modes(),
        torch._C._DisableTorchDispatch(),
    ):
        try:
            operator._op_dk(Key.CompositeExplicitAutogradNonFunctional, *args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            # what passes fails later: this PyTorch has no CUDA to make the result with
            if "Could not run" in str(error):
                return False
            if "same device" in str(error) or "CPU scalars" in str(error):
                return True
            raise
    return False


INTEGERS_ONLY = "bitwise_"


@pytest.mark.skipif(torch.version.cuda is not None, reason="the kernels of CUDA would run")
def test_iterators_take_scalars_of_the_cpu_as_the_binary_does() -> None:
    with VirtualGPUs("2x1GiB"):
        taken, refused = set(), set()
        for name, rule, function in with_cuda_kernel():
            is_checked = function.device_check == DeviceCheckType.ExactSame
            if is_checked or not is_iterator(name) or rule in RULES:
                continue
            if function.func.kind() != SchemaKind.functional:
                continue
            dtype = torch.int64 if rule.startswith(INTEGERS_ONLY) else torch.float32
            here = torch.ones(3, dtype=dtype, device="cuda:0")
            scalar = torch.ones((), dtype=dtype)
            (taken if passes_the_check(name, scalar, here) else refused).add(rule)
            for other in (torch.ones(3, dtype=dtype), torch.ones((), dtype=dtype, device="cuda:1")):
                assert not passes_the_check(name, other, here), name
    assert len(taken) > 40
    assert "addcdiv" in refused
    assert taken <= TAKES_CPU_SCALAR
    assert not refused & TAKES_CPU_SCALAR


def test_every_other_kernel_has_a_rule_or_a_reason() -> None:
    known = {
        *RULES,
        *TAKES_CPU_SCALAR,
        *(name for each in OWN_CHECKS.values() for name in each.split()),
    }
    missing = {
        rule
        for name, rule, function in with_cuda_kernel()
        if function.device_check == DeviceCheckType.NoCheck
        and not is_iterator(name)
        and not rule.startswith("_foreach")  # those fall back on one operator per tensor
    }
    assert not missing - known


def test_what_exists_for_the_cpu_alone() -> None:
    by_name, kernels, composite = functions()
    alone = {
        name.partition(".")[0].removesuffix("_")
        for name in by_name
        if kernels[DispatchKey.CPU].has_kernel(kernel_of(name))
        and not kernels[DispatchKey.CUDA].has_kernel(kernel_of(name))
        and name not in composite
    }
    assert alone - set(FOR_THE_CPU) == CPU_ONLY
    with (
        VirtualGPUs("1x1GiB"),
        pytest.raises(NotImplementedError, match=r"Could not run 'aten::hi"),
    ):
        torch.histogram(torch.ones(3, device="cuda"), 4)
