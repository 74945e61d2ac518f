"""What a process takes of a GPU besides tensors: the CUDA context, kernels and workspaces.

context
    Local memory for every thread that the GPU keeps resident, 2 KiB each: 256 MiB were seen on an
    RTX 3090 with its 82 multiprocessors (torch 2.7, CUDA 12.8,
    https://github.com/invoke-ai/InvokeAI/issues/9413), 426 MiB on an RTX 6000 Ada with 142
    (torch 2.10, CUDA 13.0, https://github.com/unslothai/unsloth-zoo/pull/1053).
kernels
    Those that a model uses are loaded into the context when they first run. After models of all
    families had answered, context and kernels together held 707 MiB of an H200 (132
    multiprocessors; torch 2.11, CUDA 13.0; ``pytest -m gpu tests/dry_run/test_real_gpu.py``), which
    leaves 179 MiB for the kernels. That it is as much on other GPUs is assumed.
workspaces
    Of cuBLAS and cuBLASLt, 32 MiB each from compute capability 9.0 on, 8.1 MiB and 1 MiB below
    (PyTorch, ``aten/src/ATen/cuda/CublasHandlePool.cpp`` and ``CUDABlas.cpp``).

Where only the size of a GPU is known, the highest overhead of GPUs of that size is assumed.
"""

from __future__ import annotations

__all__ = ["context_within", "cuda_overhead"]

_MIB = 2**20
_GIB = 2**30

_PER_THREAD = 2 * 2**10
_KERNELS = 192 * _MIB

_THREADS = (
    ((12, 0), 1536), ((11, 0), 1536), ((9, 0), 2048), ((8, 6), 1536), ((8, 0), 2048),
    ((7, 5), 1024), ((0, 0), 2048),
)  # fmt: skip
"""First compute capability -> resident threads of a multiprocessor (CUDA C++ Programming Guide,
"Technical Specifications per Compute Capability")."""

_SMALLEST, _PER_GIB, _LARGEST = 256 * _MIB, 16 * _MIB, 848 * _MIB


def cuda_overhead(
    memory_bytes: int,
    capability: tuple[int, int] | None = None,
    multiprocessors: int | None = None,
    context_bytes: int | None = None,
) -> int:
    """Return the bytes that a process takes of a GPU besides its tensors.

    Args:
        memory_bytes: size of the GPU's memory, from which the rest is guessed if it is not known.
        capability: its compute capability.
        multiprocessors: how many it has.
        context_bytes: what context and kernels of this process hold already, which is the least.
    """
    workspaces = _workspaces(capability)
    taken = 0 if context_bytes is None else context_bytes + workspaces
    if capability is None or multiprocessors is None:
        by_size = _SMALLEST + _PER_GIB * memory_bytes // _GIB
        return max(min(by_size, _LARGEST), taken)
    threads = next(threads for first, threads in _THREADS if capability >= first)
    return max(multiprocessors * threads * _PER_THREAD + _KERNELS + workspaces, taken)


def context_within(overhead_bytes: int, capability: tuple[int, int] | None = None) -> int:
    """Return the context and kernels with which `cuda_overhead` is at least `overhead_bytes`."""
    return max(overhead_bytes - _workspaces(capability), 0)


def _workspaces(capability: tuple[int, int] | None) -> int:
    return 64 * _MIB if capability is None or capability >= (9, 0) else 10 * _MIB
