"""Stand-ins for the kernels of weights in FP8, so that transformers' own modules run without them.

The modules call a kernel that quantises its input as it multiplies ("fused act-quant", in
transformers' ``integrations/finegrained_fp8.py``); others, which are faster where they can be
loaded, write the quantised input first. That copy is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.integrations import finegrained_fp8

__all__ = ["fp8_kernels"]

_GROUP = 128  # values of an input that share a scale


@contextmanager
def fp8_kernels() -> Iterator[None]:
    """Let transformers' modules in FP8 call stand-ins, which allocate results of the right size."""
    kept = finegrained_fp8.fp8_linear, finegrained_fp8.load_finegrained_fp8_kernel
    kernels = finegrained_fp8.FineGrainedFP8(_linear, _of_experts, _of_experts)
    try:
        finegrained_fp8.fp8_linear = _linear
        finegrained_fp8.load_finegrained_fp8_kernel = lambda: kernels
        yield
    finally:
        finegrained_fp8.fp8_linear, finegrained_fp8.load_finegrained_fp8_kernel = kept


def _linear(
    values: Tensor,
    weight: Tensor,
    scales: Tensor,
    block_size: object = None,
    bias: Tensor | None = None,
    *_: object,
    **_options: object,
) -> Tensor:
    # Until transformers 5.22 its modules name what they give, later ones give it in order.
    result = _product(values, weight, scales)
    return result if bias is None else result.add_(bias)


def _of_experts(values: Tensor, weight: Tensor, scales: Tensor, **_: Any) -> Tensor:
    """Return the result of products in which each row is multiplied by one expert's matrix."""
    return _product(values, weight[0], scales[0])


def _product(values: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    levels = values.to(weight.dtype)
    groups = -(-values.shape[-1] // _GROUP)
    factors = values.new_empty((*values.shape[:-1], groups), dtype=torch.float32)
    row = levels.flatten(0, -2)[:1].to(values.dtype)
    functional.linear(row, weight[:1].to(values.dtype))  # refuses mixed devices
    factors.flatten()[:1] * scales.flatten()[:1]
    return values.new_empty((*values.shape[:-1], weight.shape[0]))
