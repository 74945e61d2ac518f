"""Dtypes that kernels of the CPU compute with and those of CUDA refuse, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch

__all__ = ["REFUSED_DTYPES", "Refused", "refused_dtype"]

_WHOLE = frozenset({torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8})
_HALF = frozenset({torch.float16, torch.bfloat16})
_BYTE = frozenset({torch.uint8})


@dataclass(frozen=True, slots=True)
class Refused:
    """What CUDA's kernel of an operation does not take.

    Attributes:
        kernel: its name, as CUDA's text has it.
        dtypes: those that it refuses, and the kernel of the CPU takes.
    """

    kernel: str
    dtypes: frozenset[torch.dtype] = _WHOLE


REFUSED_DTYPES: Mapping[str, Refused] = MappingProxyType(
    {
        # aten/src/ATen/native/cuda/Blas.cpp: products are cuBLAS's, which has none of integers
        **dict.fromkeys(("addmm", "mm"), Refused("addmm_cuda")),
        **dict.fromkeys(("_trilinear", "addbmm", "baddbmm", "bmm"), Refused("baddbmm_cuda")),
        **dict.fromkeys(("addmv", "mv"), Refused("addmv_impl_cuda")),
        "dot": Refused("dot"),
        "vdot": Refused("vdot"),
        **dict.fromkeys(("_convolution", "convolution"), Refused("slow_conv2d_cuda")),
        "avg_pool2d": Refused("avg_pool2d_out_cuda_frame"),
        "avg_pool3d": Refused("avg_pool3d_out_cuda"),
        "max_pool2d_with_indices": Refused("max_pool2d_with_indices_out_cuda_frame"),
        "max_pool3d_with_indices": Refused("max_pool3d_with_indices_out_cuda_frame"),
        # aten/src/ATen/native/cuda/UpSampleBilinear2d.cu and its like: images in bytes
        "upsample_bilinear2d": Refused("upsample_bilinear2d_out_frame", _BYTE),
        "upsample_bicubic2d": Refused("upsample_bicubic2d_out_frame", _BYTE),
        "_upsample_bilinear2d_aa": Refused("upsample_bilinear2d_out_frame", _BYTE),
        "_upsample_bicubic2d_aa": Refused("upsample_bicubic2d_out_frame", _BYTE),
        "angle": Refused("angle_cuda", _HALF),
        "histc": Refused("histc", _HALF),
        "igamma": Refused("igamma_cuda", _HALF),
        "igammac": Refused("igammac_cuda", _HALF),
    }
)
"""By name in ``torch.ops.aten``, without the underscore of the in-place form. PyTorch's own
database of operators says the same, in ``dtypes`` and ``dtypesIfCUDA``."""

_NAMES = {
    torch.bfloat16: "BFloat16", torch.float16: "Half", torch.int8: "Char", torch.int16: "Short",
    torch.int32: "Int", torch.int64: "Long", torch.uint8: "Byte",
}  # fmt: skip


def refused_dtype(operator: Any, tensors: Sequence[torch.Tensor]) -> str | None:
    """Return CUDA's objection to the dtype of the tensors that `operator` computes with, if any.

    Kernels return before they look at the dtype where there are no elements.
    """
    refused = _refused(operator)
    if refused is None:
        return None
    dtype = next((each.dtype for each in tensors if each.dtype in refused.dtypes), None)
    if dtype is None or any(each.numel() == 0 for each in tensors):
        return None
    return f"\"{refused.kernel}\" not implemented for '{_NAMES[dtype]}'"


@cache
def _refused(operator: Any) -> Refused | None:
    return REFUSED_DTYPES.get(operator._schema.name.partition("::")[2].removesuffix("_"))
