"""What CUDA has no kernel for because of the dtype is refused, and what it has one for is not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn import functional

from glm4v_magic.virtual_gpus import VirtualGPUs
from glm4v_magic.virtual_gpus.dtypes import REFUSED_DTYPES
from tests.virtual_gpus.operator_database import call, on

pytestmark = pytest.mark.filterwarnings("ignore")

TAKEN_ALL_THE_SAME = {
    "native_dropout_backward": "training",
    "norm": "complex32, of which PyTorch computes little",
    "scatter_reduce": "of bool; which dtypes it takes depends on the reduction",
    "torch._scaled_mm": "float8 of AMD's GPUs",
    "torch._scaled_mm_v2": "float8 of AMD's GPUs",
}
OF_THE_BUILD = {torch.bfloat16, torch.float8_e5m2}
"""Dtypes that the database takes from `torch.version.cuda`, which a build for the CPU lacks."""
WITHOUT_HALF = {"angle", "histc", "igamma", "igammac"}
SAMPLES = 6


@cache
def gaps() -> dict[str, tuple[Any, frozenset[torch.dtype]]]:
    """Operators by name and variant, with the dtypes that the CPU takes and CUDA does not."""
    from torch.testing._internal.common_methods_invocations import op_db

    found = {}
    for operator in op_db:
        only = set(operator.dtypes) - set(operator.dtypesIfCUDA or operator.dtypes)
        only -= set() if operator.name in WITHOUT_HALF else OF_THE_BUILD
        if only:
            found[f"{operator.name} {operator.variant_test_name}"] = operator, frozenset(only)
    return found


def outcomes(operator: Any, dtype: torch.dtype) -> Iterator[str]:
    """What happens on a virtual GPU with each sample that has elements and runs on the CPU."""
    random.seed(1)
    torch.manual_seed(1)
    try:
        samples = list(operator.sample_inputs("cpu", dtype, requires_grad=False))[:SAMPLES]
    except Exception:  # PyTorch makes no samples of every dtype that it names
        return
    for sample in samples:
        arguments = (sample.input, sample.args, dict(sample.kwargs))
        try:
            call(operator, on("cpu", arguments))
        except Exception:
            continue
        try:
            with VirtualGPUs("1x1GiB"):
                call(operator, on("cuda:0", arguments))
            yield "taken"
        except NotImplementedError as error:
            yield "refused" if "\" not implemented for '" in str(error) else str(error)


def test_what_the_cpu_takes_and_cuda_does_not_is_refused() -> None:
    computed = set()
    count = 0
    for operator, dtypes in gaps().values():
        for dtype in dtypes:
            found = list(outcomes(operator, dtype))
            count += len(found)
            if found and "refused" not in found:
                computed.add(operator.name)
    assert count > 300
    assert computed == TAKEN_ALL_THE_SAME.keys()


@pytest.mark.nightly
def test_what_cuda_takes_is_not_refused() -> None:
    count = 0
    for operator, only in gaps().values():
        taken = set(operator.dtypesIfCUDA) & set(operator.dtypes) - only
        for dtype in taken | ({torch.bfloat16} - only):
            found = list(outcomes(operator, dtype))
            count += len(found)
            assert "refused" not in found, (operator.name, dtype)
    assert count > 300


def ints(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.int64)


OPERATIONS = {
    "matmul": ("addmm_cuda", "Long", lambda d: ints(2, 2).to(d) @ ints(2, 2).to(d)),
    "batched": ("baddbmm_cuda", "Long", lambda d: ints(3, 2, 2).to(d) @ ints(3, 2, 2).to(d)),
    "in place": ("addmm_cuda", "Long", lambda d: ints(2, 2).to(d).addmm_(*ints(2, 2, 2).to(d))),
    "out": (
        "addmm_cuda", "Long",
        lambda d: torch.mm(*ints(2, 2, 2).to(d), out=torch.empty(2, 2, dtype=torch.long, device=d)),
    ),
    "linear": ("addmm_cuda", "Int", lambda d: functional.linear(*ints(2, 2, 2).to(d).int())),
    "vectors": ("dot", "Long", lambda d: torch.dot(ints(2).to(d), ints(2).to(d))),
    "matrix and vector": ("addmv_impl_cuda", "Long", lambda d: ints(2, 2).to(d) @ ints(2).to(d)),
    "einsum": ("baddbmm_cuda", "Long", lambda d: torch.einsum("ij,jk->ik", *ints(2, 2, 2).to(d))),
    "convolution": (
        "slow_conv2d_cuda", "Long",
        lambda d: functional.conv2d(ints(1, 1, 3, 3).to(d), ints(1, 1, 2, 2).to(d)),
    ),
    "pool": (
        "max_pool2d_with_indices_out_cuda_frame", "Byte",
        lambda d: functional.max_pool2d(ints(1, 4, 4).to(d, torch.uint8), 2),
    ),
    "image": (
        "upsample_bilinear2d_out_frame", "Byte",
        lambda d: functional.interpolate(
            ints(1, 3, 4, 4).to(d, torch.uint8), size=(8, 8), mode="bilinear"
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("values", ["real", "none"])
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_text_is_that_of_cuda_with_the_line(name, around, values):
    kernel, dtype, work = OPERATIONS[name]
    with VirtualGPUs("1x1GiB", values=values), around():
        work("cpu")
        with pytest.raises(NotImplementedError) as told:
            work("cuda:0")
    assert str(told.value).startswith(f"\"{kernel}\" not implemented for '{dtype}' (aten.")
    assert "test_virtual_gpus_dtypes.py" in str(told.value)


def test_what_is_near_is_computed():
    with VirtualGPUs("1x1GiB"):
        image = ints(1, 3, 4, 4).to("cuda:0", torch.uint8)
        assert functional.interpolate(image, size=(8, 8), mode="nearest").sum() == 192
        assert functional.interpolate(image.float(), size=(8, 8), mode="bilinear").sum() == 192
        assert (ints(2, 0).to("cuda:0") @ ints(0, 2).to("cuda:0")).tolist() == [[0, 0], [0, 0]]
        assert (ints(2, 2).to("cuda:0") * 3).sum() == 12
        assert torch.einsum("ij->i", ints(2, 3).to("cuda:0")).tolist() == [3, 3]


def test_names_of_the_table_are_operators():
    assert all(hasattr(torch.ops.aten, name) for name in REFUSED_DTYPES)
