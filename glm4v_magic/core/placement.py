"""Device maps, and the options for placing a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.options import PlacementFields, check
from glm4v_magic.core.plan import Plan

__all__ = ["CPU_DTYPE", "DeviceMap", "GivenMap", "Place", "PlacementOptions"]


Place: TypeAlias = int | str
"""A GPU's index, or ``cpu``."""


DeviceMap: TypeAlias = dict[str, Place]


GivenMap: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Plan
"""A device map, a plan, or the path of a JSON file with either."""


CPU_DTYPE = "float32"  # CPUs without instructions for bfloat16 emulate it; see cpu_dtype.py


@dataclass(frozen=True, slots=True)
class PlacementOptions(PlacementFields):
    """How a model is to be placed.

    Raises:
        OptionError: if a value is out of range or unknown.
        GPUDescriptionError: if `gpus` cannot be read.
    """

    def __post_init__(self) -> None:
        for each in fields(self):
            check(each.name, getattr(self, each.name))
        if self.gpus is not None:
            parse_gpus(self.gpus)

    @property
    def memory_sizes(self) -> tuple[float, ...]:
        """`max_memory` as sizes in GiB; empty if none is given."""
        if self.max_memory is None:
            return ()
        return self.max_memory if isinstance(self.max_memory, tuple) else (self.max_memory,)

    @property
    def workload(self) -> Workload:
        """The workload part of the options."""
        return Workload(self.context, self.images, self.batch, self.dtype, self.quantize)
