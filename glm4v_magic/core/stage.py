"""`Stage`: the part of a model that one GPU runs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Stage"]


@dataclass(frozen=True, slots=True)
class Stage:
    """What one GPU runs.

    Attributes:
        gpu: the GPU, as in ``cuda:<gpu>``; ``None`` is the CPU.
        name: of the GPU.
        capacity_bytes: what may be used of it; ``None`` on the CPU, where it is not checked.
        units: names of the units, in order; none if the GPU is idle.
        modules: names of their modules.
        offloaded: those of `modules` whose weights wait in host memory and visit the GPU.
        weight_bytes: of the weights that stay on the GPU.
        kv_bytes: of the key/value cache of its layers.
        activation_bytes: activations at the worst moment, visiting weights included.
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
        for name in ("gpu", "weight_bytes", "kv_bytes", "activation_bytes", "overhead_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}, but must not be negative")

    @property
    def device(self) -> str:
        """The device's name in torch."""
        return "cpu" if self.gpu is None else f"cuda:{self.gpu}"

    @property
    def total_bytes(self) -> int:
        """All that the stage takes on its GPU."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes + self.overhead_bytes

    @property
    def fullness(self) -> float:
        """`total_bytes` as a fraction of the capacity; 0 where the capacity is not checked."""
        return self.total_bytes / self.capacity_bytes if self.capacity_bytes else 0.0
