"""Virtual GPUs: CPU tensors that live on ``cuda:k``, for dry runs, tests and teaching.

    with VirtualGPUs("4x16GiB") as gpus:
        model = AutoModel.from_pretrained(folder, device_map=device_map)
        model.generate(...)
    print(gpus.report())

This room needs PyTorch, and nothing else of the package: a copy of the folder works. Where the rest
is there, errors are worded as its own and GPUs may be named (`package`). PyTorch is imported when a
name is first used, so that the pytest fixture costs nothing. Begin with `context`, the ``with``
block; `machine` runs operations, `rules` has CUDA's rules for devices, `memory` counts bytes,
`trace` knows the running module and phase.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {"VirtualGPUs": "context", "VirtualTensor": "tensor", "active": "context"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'report')}"), name)
