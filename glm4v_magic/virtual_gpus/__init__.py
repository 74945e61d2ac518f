"""Virtual GPUs: CPU tensors that live on ``cuda:k``, for dry runs, tests and teaching.

    with VirtualGPUs("4x16GiB") as gpus:
        model = AutoModel.from_pretrained(folder, device_map=device_map)
        model.generate(...)
    print(gpus.report())

This room imports only `core` and is useful without the rest of the package. Begin with `context`,
the ``with`` block; `machine` runs operations, `rules` has CUDA's rules for devices, `memory` counts
bytes, `trace` knows the running module and phase.
"""

from __future__ import annotations

from glm4v_magic.virtual_gpus.context import VirtualGPUs, active
from glm4v_magic.virtual_gpus.report import (
    CopyRecord,
    Guess,
    MemoryPeak,
    MetaTensorError,
    MixedDeviceError,
    Problem,
    Report,
    SourceLine,
)
from glm4v_magic.virtual_gpus.tensor import VirtualTensor

__all__ = [
    "CopyRecord",
    "Guess",
    "MemoryPeak",
    "MetaTensorError",
    "MixedDeviceError",
    "Problem",
    "Report",
    "SourceLine",
    "VirtualGPUs",
    "VirtualTensor",
    "active",
]
