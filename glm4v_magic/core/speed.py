"""`SpeedLimit`: how fast a plan can be at most, by what its GPUs read and compute.

It is what the hardware allows; `planning.speed` computes it. `MEASURED` says how much of it was
reached where that was measured. Programs reach about half of it, unless starting the kernels takes
longer than running them: `LAYER_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from glm4v_magic.core.gpu_models import gpu_model

__all__ = ["LAYER_SECONDS", "MEASURED", "MeasuredShare", "SpeedLimit", "measured_on"]

LAYER_SECONDS = 0.8e-3
"""Seconds that the host takes to start a decoder layer's kernels in a decode step, on any GPU.

Measured beside an H200: 0.71 and 0.94 ms for each of GLM-4V-9B's 40 layers
(``benchmarks/real_gpu.py``), 0.60 ms for each of 8 layers a sixth as wide
(``benchmarks/tokens_per_second.py``).
"""

_EXPECTED = 0.5


@dataclass(frozen=True, slots=True)
class MeasuredShare:
    """How much of the limit of tokens/s was reached.

    Attributes:
        gpu: name of the GPU, as in `gpu_models`, or ``CPU``.
        share: tokens/s over the limit with an empty KV cache, the least and the most.
        prefill: least time to the first token over what was measured, likewise; ``None`` if
            unknown.
        what: what was measured, and by which benchmark.
    """

    gpu: str
    share: tuple[float, float]
    what: str
    prefill: tuple[float, float] | None = None


MEASURED = (
    MeasuredShare(
        "CPU",
        (0.41, 0.41),
        "95 million parameters in float32, one thread of a CPU that did other things as well; "
        "benchmarks/speed_limit.py",
    ),
    MeasuredShare(
        "H200",
        (0.10, 0.13),
        "GLM-4V-9B in bfloat16, random weights; benchmarks/real_gpu.py",
        (0.44, 0.48),
    ),
)


def measured_on(names: Iterable[str]) -> tuple[MeasuredShare, ...]:
    """Return what was measured on GPUs, each once; empty unless on all of them."""
    models = {name: gpu_model(name) for name in names}
    known = {name if model is None else model.name for name, model in models.items()}
    found = tuple(each for each in MEASURED if each.gpu in known)
    return found if known <= {each.gpu for each in found} else ()


@dataclass(frozen=True, slots=True)
class SpeedLimit:
    """The least times of a plan, in seconds; ``None`` where a GPU's speed is unknown.

    Attributes:
        step_seconds: a decode step, a token for each row, with an empty KV cache.
        full_step_seconds: a decode step with the planned context in the KV cache.
        prefill_seconds: prefill of the planned context and images.
        batch: number of rows.
        unknown: names of the GPUs whose memory bandwidth is unknown.
        layers: number of decoder layers.
        crosses_bus: whether weights come from host memory for every token.
    """

    step_seconds: float | None
    full_step_seconds: float | None
    prefill_seconds: float | None
    batch: int = 1
    unknown: tuple[str, ...] = ()
    layers: int = 0
    crosses_bus: bool = False

    @property
    def tokens_per_second(self) -> float | None:
        """The most tokens per second, of all rows together."""
        return self.batch / self.step_seconds if self.step_seconds else None

    @property
    def full_tokens_per_second(self) -> float | None:
        """`tokens_per_second` at the end of the planned context."""
        return self.batch / self.full_step_seconds if self.full_step_seconds else None

    @property
    def starts_slowly(self) -> bool:
        """Whether starting the kernels of a step takes longer than twice the limit's time."""
        return self.step_seconds is not None and _of_host(self) > self.step_seconds / _EXPECTED

    @property
    def expected_tokens_per_second(self) -> float | None:
        """What a program is expected to reach: half the limit, or what the host can start."""
        if self.step_seconds is None:
            return None
        return self.batch / max(self.step_seconds / _EXPECTED, _of_host(self))


def _of_host(speed: SpeedLimit) -> float:
    return speed.layers * LAYER_SECONDS
