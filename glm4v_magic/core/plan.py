"""`Plan`: which units of a model live on which GPU, and what they take there.

Plain data: `Plan.save` writes it as JSON, `planning.files` reads it back, `plan_text` shows it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from glm4v_magic.core import plan_text
from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.hub_page import read_hub_page
from glm4v_magic.core.model_shape import MadeOf, Workload
from glm4v_magic.core.options import MemorySizes, check
from glm4v_magic.core.remarks import PYTHON, Remark
from glm4v_magic.core.speed import SpeedLimit
from glm4v_magic.core.stage import Stage
from glm4v_magic.core.text_files import OTHER_NAME, replace_text

__all__ = ["PLAN_FORMAT", "PLAN_VERSION", "Limits", "Plan", "same_place"]

PLAN_FORMAT, PLAN_VERSION = "glm4v_magic.plan", 1
"""What the JSON of a plan says of itself."""


def same_place(one: str, other: str) -> bool:
    """Tell whether two names of models are one, or lead to the same place as paths."""
    first, second = (os.path.abspath(os.path.expanduser(each)) for each in (one, other))  # noqa: PTH100, PTH111  Path's own fails
    return first == second


@dataclass(frozen=True, slots=True)
class Limits:
    """Options that a plan was made with, beside workload and objective; see `core.options`.

    Its dtype is the one that was asked for; ``None`` if that of the workload was chosen to suit the
    GPUs.
    """

    max_memory: MemorySizes | None = None
    reserve: float | None = None
    split_vision: bool | None = None
    offload: bool = False
    pin: tuple[tuple[str, int], ...] = ()
    dtype: str | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            check(each.name, getattr(self, each.name))


@dataclass(frozen=True, slots=True)
class Plan:
    """The device of every module of a model, and the memory that this takes.

    Attributes:
        model: name of the checkpoint.
        workload: workload that the plan is made for, context and dtype filled in.
        objective: as in `core.options.OBJECTIVES`.
        stages: in the order in which they run; idle GPUs come last.
        notes: what a reader should know: a cut tower, offloaded layers and their price;
            `core.remarks.worded` puts a note into words.
        limits: further options that it was made with.
        speed: the least times that its GPUs allow; ``None`` on the CPU.
        made_of: what finds the model beside its name, such as an adapter.
    """

    model: str
    workload: Workload
    objective: str
    stages: tuple[Stage, ...]
    notes: tuple[Remark, ...] = ()
    limits: Limits = Limits()
    speed: SpeedLimit | None = None
    made_of: MadeOf = ()

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

    def is_of(self, model: str) -> bool:
        """Tell whether a model's name, or its folder, is the one that the plan was made for."""
        page = read_hub_page(model)
        return same_place(model, self.model) or (page is not None and page.repository == self.model)

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

    def to_json(self) -> str:
        """Return the plan as JSON, which `Session.load` takes as a device map."""
        head = {"format": PLAN_FORMAT, "version": PLAN_VERSION}
        return json.dumps({**head, **asdict(self)}, indent=2)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the plan to a JSON file, and return its path; only a plan is replaced.

        Raises:
            OptionError: if the file cannot be written, or is there and no plan.
        """
        file: object = path
        try:
            file = Path(os.path.expanduser(path))  # noqa: PTH111  Path's own fails on ~nobody
            replace_text(file, self.to_json() + "\n", is_json=True)
        except (OSError, TypeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            hint = OTHER_NAME if isinstance(error, FileExistsError) else ""
            raise OptionError(f"The plan cannot be written to {file}: {reason}.", hint) from None
        return file

    def __repr__(self) -> str:
        return plan_text.brief(self.model, self.stages)

    def __str__(self) -> str:
        return plan_text.text(
            self.model, self.workload, self.stages, self.notes, PYTHON, self.speed
        )
