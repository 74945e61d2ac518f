"""A CUDA device guard that does nothing, for a PyTorch that has no GPU to guard.

C++ code such as ``Tensor.__getitem__`` and ``copy_`` opens a *device guard* for every tensor whose
device says ``cuda:k``. A CPU build of PyTorch has none for CUDA ("PyTorch is not linked with
support for cuda devices"); a CUDA build has one that calls the driver. The registry of guards is
an exported array of pointers, one per device type, and the guard of ``meta`` does nothing: while
virtual GPUs are in use, the CUDA entry points to it.

Where there is no GPU the entry stays as it is afterwards. Nothing else can use it there, and
virtual tensors outlive their block: without any guard, C++ would abort the process on one of them
(in a destructor of autograd, which cannot raise) before Python could say what is wrong.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from glm4v_magic.virtual_gpus.package import PlacementError

__all__ = ["install_noop_cuda_guard"]

# c10/core/DeviceType.h
_CUDA = 1
_META = 14
# c10/core/impl/DeviceGuardImplInterface.h: std::atomic<const DeviceGuardImplInterface*>
# device_guard_impl_registry[], in the name mangling of GCC and Clang (Linux, macOS).
_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"
_LIBRARIES = ("libc10.so", "libc10.dylib")


def install_noop_cuda_guard() -> Callable[[], None]:
    """Let C++ code accept tensors on ``cuda:k`` without a driver.

    Returns:
        A function that gives a real GPU its guard back; does nothing without one.

    Raises:
        PlacementError: if the registry cannot be reached, unless PyTorch is a CUDA build that
            sees no GPU and brings such a guard itself.
    """
    registry = _find_registry()
    if registry is not None and registry[_META]:
        has_gpu = torch.cuda.is_available()
        before = registry[_CUDA]
        registry[_CUDA] = registry[_META]

        def restore() -> None:
            if has_gpu:
                registry[_CUDA] = before

        return restore
    if _set_builtin_guard():
        return lambda: None
    raise PlacementError(
        "Virtual GPUs do not work with this build of PyTorch: it has no CUDA device guard, and "
        "none can be put in its place.",
        "Use PyTorch for Linux or macOS, or a CUDA build on a computer without a GPU.",
    )


def _find_registry() -> ctypes.Array[ctypes.c_void_p] | None:
    folder = Path(torch.__file__).parent / "lib"
    for name in _LIBRARIES:
        if (folder / name).exists():
            try:
                library = ctypes.CDLL(str(folder / name))
                return (ctypes.c_void_p * (_META + 1)).in_dll(library, _REGISTRY)
            except (OSError, ValueError):
                return None
    return None


def _set_builtin_guard() -> bool:
    """Use the guard of PyTorch's own fake tensors; only a CUDA build that sees no GPU has it."""
    if torch.version.cuda is None or torch.cuda.device_count() > 0:
        return False
    torch._C._ensureCUDADeviceGuardSet()
    return True
