"""`Plan`: which units of a model live on which GPU, and what they take there.

Plain data: `planning.files` writes it as JSON and reads it back, `plan_text` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

from glm4v_magic.core import plan_text
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.remarks import PYTHON, Remark
from glm4v_magic.core.stage import Stage

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The device of every module of a model, and the memory that this takes.

    Attributes:
        model: name of the checkpoint.
        workload: workload that the plan is made for, context and dtype filled in.
        objective: ``balance`` or ``fewest``.
        stages: in the order in which they run; idle GPUs come last.
        notes: what a reader should know: a cut tower, offloaded layers and their price;
            `core.remarks.worded` puts a note into words.
    """

    model: str
    workload: Workload
    objective: str
    stages: tuple[Stage, ...]
    notes: tuple[Remark, ...] = ()

    @property
    def fullest(self) -> Stage:
        """The stage whose GPU is fullest."""
        return max(self.stages, key=lambda stage: stage.fullness)

    @property
    def fullness(self) -> float:
        """Fullness of the fullest GPU, as a fraction of its capacity."""
        return self.fullest.fullness

    @property
    def hops(self) -> int:
        """Number of hops: how often a token's hidden state moves to another GPU."""
        return sum(bool(stage.units) for stage in self.stages) - 1

    def device_map(self) -> dict[str, int | str]:
        """Module -> GPU index or ``cpu``, in the form that transformers and accelerate use.

        Offloaded modules are on the CPU here; `execution_map` says where they run.
        """
        return {
            module: "cpu" if stage.gpu is None or module in stage.offloaded else stage.gpu
            for stage in self.stages
            for module in stage.modules
        }

    def execution_map(self) -> dict[str, int | str]:
        """Module -> GPU index or ``cpu`` that its forward runs on, offloaded or not."""
        return {
            module: "cpu" if stage.gpu is None else stage.gpu
            for stage in self.stages
            for module in stage.modules
        }

    def __str__(self) -> str:
        return plan_text.text(self.model, self.workload, self.stages, self.notes, PYTHON)
