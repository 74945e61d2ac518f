"""`Stage`: the part of a model that one GPU runs."""

from __future__ import annotations

from dataclasses import dataclass

from glm4v_magic.core.gpu_spec import device_name

__all__ = ["Stage"]


@dataclass(frozen=True, slots=True)
class Stage:
    """The part of a model that one GPU, or the CPU, runs.

    Attributes:
        gpu: GPU index, as in ``cuda:<gpu>``; ``None`` is the CPU.
        name: name of the GPU.
        capacity_bytes: memory that may be used; ``None`` on the CPU, which is not checked.
        units: names of the units, in execution order; empty if the GPU is idle.
        modules: names of their modules.
        offloaded: modules whose weights stay in host memory and are copied to the GPU when used.
        weight_bytes: weights that stay on the GPU.
        kv_bytes: KV cache of its layers.
        activation_bytes: peak of the activations, copied weights of offloaded modules included; or
            of what a load needs beside weights and the cache, where that is more.
        overhead_bytes: CUDA context and workspaces.

    Raises:
        ValueError: if the GPU's index or one of these sizes is negative.
    """

    gpu: int | None
    name: str
    capacity_bytes: int | None
    units: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    offloaded: tuple[str, ...] = ()
    weight_bytes: int = 0
    kv_bytes: int = 0
    activation_bytes: int = 0
    overhead_bytes: int = 0

    def __post_init__(self) -> None:
        for name in (
            "gpu",
            "capacity_bytes",
            "weight_bytes",
            "kv_bytes",
            "activation_bytes",
            "overhead_bytes",
        ):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}, but must not be negative")

    @property
    def device(self) -> str:
        """The device's name in torch."""
        return "cpu" if self.gpu is None else device_name(self.gpu, self.name)

    @property
    def total_bytes(self) -> int:
        """All memory that the stage takes on its GPU."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes + self.overhead_bytes

    @property
    def fullness(self) -> float:
        """`total_bytes` as a fraction of the capacity; 0 where the capacity is not checked."""
        return self.total_bytes / self.capacity_bytes if self.capacity_bytes else 0.0
