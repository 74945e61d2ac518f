"""Where a model is wanted: device maps, and the options of a placement."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from glm4v_magic.core.errors import OptionError, did_you_mean
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import Quantization, Workload
from glm4v_magic.core.plan import Plan

__all__ = ["CPU_DTYPE", "DeviceMap", "GivenMap", "Objective", "Place", "PlacementOptions"]


Place: TypeAlias = int | str
"""A GPU's index, or ``cpu``."""


DeviceMap: TypeAlias = dict[str, Place]


Objective = Literal["balance", "fewest"]


GivenMap: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Plan
"""A device map, a plan, or a JSON file of either."""


CPU_DTYPE = "float32"  # bfloat16 is slower on most CPUs


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """How a model is to be placed.

    Attributes:
        gpus: description of the GPUs (see `core.gpu_spec`); ``None`` for those that are found.
        context, images, batch, dtype, quantize: as in `Workload`.
        objective: ``balance`` or ``fewest``, as in `plan.plan`.
        max_memory: the most GiB to use of a GPU: one number, or one for each GPU.
        reserve: GiB of each GPU to leave alone; 3 % of its size by default.
        split_vision, offload: as in `plan.plan`.
        pin: unit and GPU index, pairs of them; as in `plan.plan`.

    Raises:
        OptionError: on a value that makes no sense.
        GPUDescriptionError: if `gpus` cannot be read.
    """

    gpus: str | None = None
    context: int | None = None
    images: int = 1
    batch: int = 1
    objective: Objective = "balance"
    dtype: str | None = None
    quantize: Quantization | None = None
    max_memory: float | tuple[float, ...] | None = None
    reserve: float | None = None
    split_vision: bool = False
    offload: bool = False
    pin: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        Workload(self.context, self.images, self.batch, self.dtype, self.quantize)
        if self.gpus is not None:
            parse_gpus(self.gpus)
        objectives = get_args(Objective)
        if self.objective not in objectives:
            raise OptionError(
                f"Unknown objective {self.objective!r}; there are {' and '.join(objectives)}.",
                did_you_mean(str(self.objective), objectives),
            )
        if any(size <= 0 for size in self.memory_sizes):
            raise OptionError("max_memory is in GiB of a GPU and must be above 0.")
        if self.reserve is not None and self.reserve < 0:
            raise OptionError(f"The reserve is {self.reserve} GiB, but cannot be negative.")
        if self.quantize is not None and self.offload:
            raise OptionError("Quantised layers cannot be offloaded.", "Leave one of them out.")

    @property
    def memory_sizes(self) -> tuple[float, ...]:
        """`max_memory` as sizes in GiB; empty if none is given."""
        if self.max_memory is None:
            return ()
        return self.max_memory if isinstance(self.max_memory, tuple) else (self.max_memory,)

    @property
    def workload(self) -> Workload:
        """What to plan for."""
        return Workload(self.context, self.images, self.batch, self.dtype, self.quantize)


def _sizes(max_memory: float | tuple[float, ...] | None) -> tuple[float, ...]:
    if max_memory is None:
        return ()
    return max_memory if isinstance(max_memory, tuple) else (max_memory,)
