"""Device maps, and the options for placing a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, SupportsIndex, TypeAlias

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.options import OPTIONS, PlacementFields, check
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.wording import counted

__all__ = ["CPU_DTYPE", "DeviceMap", "GivenMap", "Place", "PlacementOptions"]


Place: TypeAlias = int | str
"""A GPU's index, or ``cpu``."""


DeviceMap: TypeAlias = dict[str, Place]


GivenMap: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Plan | SupportsIndex
"""A device map, a plan, the path of a JSON file with either, or one device for everything.

A `torch.device` is taken as well.
"""


CPU_DTYPE = "float32"
"""Dtype on CPUs that only emulate bfloat16, having no instructions for it; measured by
``benchmarks/cpu_dtype.py``.
"""


@dataclass(frozen=True, slots=True)
class PlacementOptions(PlacementFields):
    """How a model is to be placed.

    Raises:
        OptionError: if a value is out of range or unknown.
        GPUDescriptionError: if `gpus` cannot be read.
    """

    def __post_init__(self) -> None:
        for each in fields(self):
            value = OPTIONS[each.name].normal(getattr(self, each.name))
            object.__setattr__(self, each.name, value)
            check(each.name, value)
        if self.gpus is not None:
            parse_gpus(self.gpus)

    @property
    def may_offload(self) -> bool:
        """Whether layers may be kept in host memory: `offload` allows it, or a size for ``cpu``."""
        return self.offload or (self.host_memory or 0) > 0

    @property
    def host_memory(self) -> float | None:
        """GiB of host memory for layers; ``None`` for no limit."""
        return self._by_device.get("cpu")

    def memory_of(self, gpus: Sequence[int]) -> tuple[float, ...]:
        """Return `max_memory` of each GPU in GiB; empty if none is given.

        Args:
            gpus: indices of the GPUs.

        Raises:
            OptionError: if `max_memory` names other GPUs than these.
        """
        if isinstance(self.max_memory, int | float):
            return (self.max_memory,) * len(gpus)
        if self._by_device:
            foreign = self._by_device.keys() - {*gpus, "cpu"}
            if foreign:
                raise OptionError(
                    f"max_memory names GPU {min(foreign, key=str)}, which is not there.",
                    "Name those that are there.",
                    option="max_memory",
                )
            sizes = tuple(self._by_device.get(index, 0.0) for index in gpus)
            return sizes if any(index in self._by_device for index in gpus) else ()
        sizes = tuple(self.max_memory or ())  # type: ignore[arg-type]  # no pairs
        if sizes and len(sizes) != len(gpus):
            raise OptionError(
                f"max_memory has {counted(len(sizes), 'size')} for {counted(len(gpus), 'GPU')}.",
                "Give one number, or one for each GPU.",
                option="max_memory",
            )
        return sizes

    @property
    def _by_device(self) -> dict[int | str, float]:
        sizes = self.max_memory if isinstance(self.max_memory, tuple) else ()
        return dict(each for each in sizes if isinstance(each, tuple))

    @property
    def workload(self) -> Workload:
        """The workload part of the options."""
        return Workload(
            self.context,
            self.images,
            self.batch,
            self.dtype,
            self.quantize,
            image_size=self.image_size,
        )
