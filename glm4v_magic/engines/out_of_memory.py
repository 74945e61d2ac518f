"""The error for a GPU that ran out of memory: which one, by how much, who else uses it, advice.

The text of torch's error has the GPU, the request and the free memory; NVML knows who else is
there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from glm4v_magic.core.errors import OutOfMemoryError
from glm4v_magic.core.remarks import Remark
from glm4v_magic.hardware.processes import GPUUser

__all__ = ["is_out_of_memory", "out_of_memory"]

# c10/cuda/CUDACachingAllocator.cpp, c10/core/impl/alloc_cpu.cpp, CUDA's own error, and cuBLAS,
# which asks for its workspace by itself.
_TEXTS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "mha_graph.execute(handle, variant_pack, workspace_ptr",  # cuDNN's attention, seen on an H200
)
_SIZE = r"([0-9.]+ (?:bytes|[KMG]iB))"
_ASKED = re.compile(rf"[Tt]ried to allocate {_SIZE}")
_GPU = re.compile(r"GPU (\d+) has a total capacity")
_FREE = re.compile(rf"of which {_SIZE} is free")
_MOST_USERS = 3
_GIB = 2**30


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` means that a GPU or the host ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def out_of_memory(text: str, doing: str, advice: Remark) -> OutOfMemoryError:
    """Return the error that the user sees.

    Args:
        text: text of torch's error.
        doing: what the model was doing: ``while the prompt was read``.
        advice: advice on what to change.
    """
    gpu, asked, free = _GPU.search(text), _ASKED.search(text), _FREE.search(text)
    on_host = gpu is None and ("CPU" in text or "alloc_cpu" in text or not text)
    where = f"cuda:{gpu[1]}" if gpu else "The host" if on_host else "A GPU"
    what = f"{where} ran out of memory {doing}"
    if asked:
        what += f": {asked[1]} were asked for" + (f" and {free[1]} are free" if free else "")
    what += "."
    if gpu:
        what += _others(int(gpu[1]))
    error = OutOfMemoryError(what)
    error.advise_like(advice)
    return error


def _others(index: int) -> str:
    """Return who else uses a GPU; empty if nobody does, or if unknown."""
    from glm4v_magic.hardware.gpus import find_gpus
    from glm4v_magic.hardware.processes import other_users
    from glm4v_magic.virtual_gpus import active

    if active() is not None:
        return ""
    gpu = next((gpu for gpu in find_gpus() if gpu.index == index), None)
    if gpu is None:
        return ""
    users = other_users(gpu)
    if users:
        return f" Also on this GPU: {_listed(users)}."
    if gpu.other_bytes:
        return f" Other programs and the driver hold {gpu.other_bytes / _GIB:.1f} GiB of it."
    return ""


def _listed(users: Sequence[GPUUser]) -> str:
    named = [_described(user) for user in users[:_MOST_USERS]]
    more = len(users) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _described(user: GPUUser) -> str:
    name = PurePath(user.name).name
    size = "" if user.used_bytes is None else f"{user.used_bytes / _GIB:.1f} GiB"
    what = ", ".join(part for part in (name, size) if part)
    return f"process {user.pid}" + (f" ({what})" if what else "")
