"""What torch does at the first use of CUDA: inside a block nothing, after it as before.

torch keeps in C++ that CUDA was begun, whoever answered for it: after a block nothing would begin
the CUDA of real GPUs, and without one "Torch not compiled with CUDA enabled" would be a long text
about dispatch keys.
"""

from __future__ import annotations

import ctypes

import torch

__all__ = ["forget_first_use"]

# torch::utils::set_requires_device_init(c10::DeviceType, bool), which has no name in Python
# (https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/utils/device_lazy_init.h).
_REQUIRE = "_ZN5torch5utils24set_requires_device_initEN3c1010DeviceTypeEb"
_CUDA = 1


def forget_first_use() -> None:
    """Let torch begin CUDA anew, as it would have without the block; does nothing on Windows."""
    try:
        require = getattr(ctypes.PyDLL(torch._C.__file__), _REQUIRE)
    except (AttributeError, OSError):  # compilers of Windows name it otherwise
        return
    require.argtypes = [ctypes.c_int8, ctypes.c_bool]
    require.restype = None
    require(_CUDA, True)
