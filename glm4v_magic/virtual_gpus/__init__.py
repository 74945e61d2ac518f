"""Virtual GPUs: CPU tensors that live on ``cuda:k``, for dry runs, tests and teaching.

    with VirtualGPUs("4x16GiB") as gpus:
        model = AutoModel.from_pretrained(folder, device_map=device_map)
        model.generate(...)
    print(gpus.report())

This room needs PyTorch, and of the package only how errors are worded and GPUs are described: four
modules of `core`, which are the standard library alone and are there because a plan reads the same
descriptions, ``4x16GiB``, without PyTorch. PyTorch is imported when a name is first used, so that
the pytest fixture costs nothing. Begin with `context`,
the ``with`` block; `machine` runs operations, `rules` has CUDA's rules for devices, `memory` counts
bytes, `trace` knows the running module and phase.
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
