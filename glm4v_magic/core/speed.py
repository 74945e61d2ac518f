"""`SpeedLimit`: how fast a plan can be at most, by what its GPUs read and compute.

No measurement: what the hardware allows. `planning.speed` computes it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SpeedLimit"]


@dataclass(frozen=True, slots=True)
class SpeedLimit:
    """The least times of a plan, in seconds; ``None`` where a GPU's speed is unknown.

    Attributes:
        step_seconds: a decode step, a token for each row, with an empty KV cache.
        full_step_seconds: a decode step with the planned context in the KV cache.
        prefill_seconds: prefill of the planned context and images.
        batch: number of rows.
        unknown: names of the GPUs whose memory bandwidth is unknown.
    """

    step_seconds: float | None
    full_step_seconds: float | None
    prefill_seconds: float | None
    batch: int = 1
    unknown: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float | None:
        """The most tokens per second, of all rows together."""
        return self.batch / self.step_seconds if self.step_seconds else None

    @property
    def full_tokens_per_second(self) -> float | None:
        """`tokens_per_second` at the end of the planned context."""
        return self.batch / self.full_step_seconds if self.full_step_seconds else None
