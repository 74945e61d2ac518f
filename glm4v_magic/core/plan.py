"""`Plan`: which units of a model live on which GPU, and what they take there.

Plain data: it can be written as JSON and read back, turned into a device map, or shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Any

from glm4v_magic.core.errors import DeviceMapError, OptionError
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.wording import counted

__all__ = ["Plan", "Stage", "gib", "span"]

_FORMAT = "glm4v_magic.plan"
_VERSION = 1
_GIB = 2**30


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


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each module of a model lives, and what that takes.

    Attributes:
        model: name of the checkpoint.
        workload: what the plan is for, context and dtype filled in.
        objective: ``balance`` or ``fewest``.
        stages: in the order in which they run; idle GPUs come last.
        notes: what a reader should know: a cut tower, offloaded layers and their price.
    """

    model: str
    workload: Workload
    objective: str
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()

    @property
    def fullest(self) -> Stage:
        """The stage whose GPU is fullest."""
        return max(self.stages, key=lambda stage: stage.fullness)

    @property
    def fullness(self) -> float:
        """Of the fullest GPU, as a fraction of its capacity."""
        return self.fullest.fullness

    @property
    def hops(self) -> int:
        """How often a token's hidden state changes GPUs on its way through the model."""
        return sum(bool(stage.units) for stage in self.stages) - 1

    def device_map(self) -> dict[str, int | str]:
        """Module -> GPU index or ``cpu``, in the form that transformers and accelerate use.

        Weights of offloaded modules are on the CPU; see `execution_map` for where they run.
        """
        return {
            module: "cpu" if stage.gpu is None or module in stage.offloaded else stage.gpu
            for stage in self.stages
            for module in stage.modules
        }

    def execution_map(self) -> dict[str, int | str]:
        """Module -> GPU index or ``cpu``: where its forward runs, offloaded or not."""
        return {
            module: "cpu" if stage.gpu is None else stage.gpu
            for stage in self.stages
            for module in stage.modules
        }

    def to_json(self) -> str:
        """Write the plan as JSON that `from_json` reads."""
        return json.dumps({"format": _FORMAT, "version": _VERSION, **asdict(self)}, indent=2)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan that `to_json` wrote.

        Raises:
            DeviceMapError: if `text` is not such a plan.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise DeviceMapError(f"The plan is not valid JSON: {error}.") from None
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise DeviceMapError("The file is not a plan of glm4v_magic.")
        if data.get("version") != _VERSION:
            raise DeviceMapError(
                f"The plan has version {data.get('version')!r}; this one reads {_VERSION}."
            )
        plan = dict(data)
        del plan["format"], plan["version"]
        try:
            plan["workload"] = Workload(**_typed(Workload, plan.get("workload"), "workload"))
        except OptionError as error:
            raise DeviceMapError(f"The plan's workload is wrong: {error}") from None
        stages = plan.get("stages")
        if not isinstance(stages, list) or not stages:
            raise DeviceMapError("The plan has no stages.")
        plan["stages"] = tuple(
            Stage(**_typed(Stage, stage, f"stage {number}")) for number, stage in enumerate(stages)
        )
        return Plan(**_typed(Plan, plan, "plan"))

    def gpu_rows(self) -> list[tuple[str, ...]]:
        """The GPUs as a table, its head first; sizes in GiB."""
        rows: list[tuple[str, ...]] = [
            ("", "weights", "cache", "activ.", "other", "total", "of", "full", "units")
        ]
        for stage in self.stages:
            sizes = (stage.weight_bytes, stage.kv_bytes, stage.activation_bytes)
            capacity = stage.capacity_bytes
            rows.append(
                (
                    f"{stage.device} {stage.name}",
                    *(gib(size) for size in (*sizes, stage.overhead_bytes, stage.total_bytes)),
                    "?" if capacity is None else gib(capacity),
                    "?" if capacity is None else f"{stage.fullness:.0%}",
                    span(stage.units) or "idle",
                )
            )
        return rows

    def __str__(self) -> str:
        return self.text()

    def text(self) -> str:
        """The plan as a table, sizes in GiB."""
        w = self.workload
        title = f"{self.model}, {w.dtype}" + (f" in {w.quantize}" if w.quantize else "")
        title += f", {w.context:,} positions, {counted(w.images, 'image')}, batch of {w.batch}"
        rows = self.gpu_rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:], strict=True)]
                + [row[-1]]
            ).rstrip()
            for row in rows
        ]
        return "\n".join([title, "sizes in GiB", *lines, *self.notes])


def gib(size: int) -> str:
    """Bytes as GiB with two decimals."""
    return f"{size / _GIB:.2f}"


def span(units: Iterable[str]) -> str:
    """Unit names, runs of numbered ones shortened: ``vision, embedding, layer.0-11``."""

    def split(name: str) -> tuple[str, int | None]:
        stem, _, number = name.rpartition(".")
        return (stem, int(number)) if re.fullmatch("[0-9]+", number) else (name, None)

    def run(part: tuple[int, tuple[str, int | None]]) -> tuple[str, int]:
        place, (stem, number) = part
        return stem, 0 if number is None else number - place  # the same while numbers go up by one

    def runs() -> Iterator[str]:
        for (stem, _), group in groupby(enumerate(map(split, units)), key=run):
            numbers = [number for _, (_, number) in group if number is not None]
            if not numbers:
                yield stem
            elif len(numbers) == 1:
                yield f"{stem}.{numbers[0]}"
            else:
                yield f"{stem}.{numbers[0]}-{numbers[-1]}"

    return ", ".join(runs())


def _typed(kind: type, data: object, where: str) -> dict[str, Any]:
    """Check names and types of a dataclass's fields; lists become tuples."""
    if not isinstance(data, dict):
        raise DeviceMapError(f"The plan's {where} is not an object.")
    known = {field.name: str(field.type) for field in fields(kind)}
    if unknown := sorted(set(data) - set(known)):
        raise DeviceMapError(f"The plan's {where} has an unknown entry {unknown[0]!r}.")
    if missing := sorted(set(known) - set(data)):
        raise DeviceMapError(f"The plan's {where} lacks {missing[0]!r}.")
    checked = {}
    for name, found in data.items():
        expected = known[name]
        is_sequence = expected == "tuple[str, ...]" and isinstance(found, list)
        value = tuple(found) if is_sequence else found
        if not _is(value, expected):
            raise DeviceMapError(f"The plan's {where} has {value!r} for {name!r}.")
        checked[name] = value
    return checked


def _is(value: object, expected: str) -> bool:
    optional = expected.endswith(" | None")
    if value is None:
        return optional
    match expected.removesuffix(" | None"):
        case "int":
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0
        case "str" | "Quantization":
            return isinstance(value, str)
        case "tuple[str, ...]":
            return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    return True  # already built: the workload, the stages
