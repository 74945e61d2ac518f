"""What a dry run found: plain data, as text, as JSON; needs no torch.

`dry_run.run` makes it, `notebook.render.dry_run` shows it in a notebook.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields

from glm4v_magic.core.errors import DeviceMapError, DoesNotFitError, PlacementError
from glm4v_magic.core.wording import counted, gib

__all__ = ["DryRunReport", "GPUUse", "HopUse", "MixedDevices"]

_KIND = ("glm4v_magic.dry_run", 1)  # format and version
_WIDTH = 100  # of the report as text
_MODULE_NAME = 16  # letters of a module's name that are shown in any case
_FULLEST = 9.99  # beyond that, how full a GPU is says nothing
_SHOWN = 12  # findings; JSON has them all


@dataclass(frozen=True, slots=True)
class GPUUse:
    """What one GPU held at its fullest moment.

    Attributes:
        gpu: the GPU, as in ``cuda:<gpu>``.
        name: of the GPU.
        capacity_bytes: what may be used of it.
        weight_bytes: of the weights and buffers that stay on it.
        kv_bytes: of the key/value cache on it, at the end.
        activation_bytes: the rest of the peak: activations, and weights that visit.
        overhead_bytes: CUDA context and workspaces, which a dry run does not see; 0 if idle.
        phase: ``load``, ``prefill`` or ``decode``: when the peak was.
        module: whose forward reached it; empty outside of any.
    """

    gpu: int
    name: str
    capacity_bytes: int
    weight_bytes: int = 0
    kv_bytes: int = 0
    activation_bytes: int = 0
    overhead_bytes: int = 0
    phase: str = ""
    module: str = ""

    @property
    def device(self) -> str:
        """The device's name in torch."""
        return f"cuda:{self.gpu}"

    @property
    def peak_bytes(self) -> int:
        """Most bytes of tensors at once."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def total_bytes(self) -> int:
        """All that the GPU must hold."""
        return self.peak_bytes + self.overhead_bytes

    @property
    def fullness(self) -> float:
        """`total_bytes` as a fraction of the capacity, which other programs may have used up."""
        return self.total_bytes / max(1, self.capacity_bytes)

    @property
    def short_bytes(self) -> int:
        """What the GPU lacks; 0 if it is large enough."""
        return max(0, self.total_bytes - self.capacity_bytes)


@dataclass(frozen=True, slots=True)
class MixedDevices:
    """An operation that a real machine refuses.

    Attributes:
        message: what CUDA says.
        operation: name of the operator, such as ``aten.add.Tensor``.
        module: whose forward it is in.
        source: ``file:line in function``, and the line itself.
        code: text of that line.
        devices: the two that meet.
        phase: ``prefill`` or ``decode``.
        count: how often it happened there.
    """

    message: str
    operation: str
    module: str
    source: str
    code: str
    devices: tuple[str, str]
    phase: str
    count: int = 1

    def __str__(self) -> str:
        where = self.module or "no submodule"
        times = f", {self.count} times" if self.count > 1 else ""
        return f"{self.phase}: {self.message} ({self.operation} in {where}, {self.source}{times})"


@dataclass(frozen=True, slots=True)
class HopUse:
    """Copies between two devices, in the prefill and in one decode step.

    Attributes:
        source: device copied from.
        target: device copied to.
        prefill_copies, prefill_bytes: of the whole prefill.
        decode_copies, decode_bytes: of one decode step, the mean of all, rounded up.
    """

    source: str
    target: str
    prefill_copies: int
    prefill_bytes: int
    decode_copies: int
    decode_bytes: int


@dataclass(frozen=True, slots=True)
class DryRunReport:
    """Everything that a dry run found.

    Attributes:
        model: name of the checkpoint.
        dtype: of weights and activations.
        placement: ``plan``, ``auto`` (transformers' own), or ``map``.
        images: images of each row.
        batch: rows.
        prompt_tokens: ids of a row, visual ones included.
        decode_steps: how many followed the prefill.
        gpus: by GPU index.
        copies: between devices, the CPU included.
        decode_hops: device changes of a token in one decode step: from where its id is, through
            all layers, and back with its logits.
        problems: refused operations, in the order they happened.
        offloaded: modules whose weights wait in host memory.
    """

    model: str
    dtype: str
    placement: str
    images: int
    batch: int
    prompt_tokens: int
    decode_steps: int
    gpus: tuple[GPUUse, ...]
    copies: tuple[HopUse, ...]
    decode_hops: int
    problems: tuple[MixedDevices, ...] = ()
    offloaded: tuple[str, ...] = ()

    @property
    def overfull(self) -> tuple[GPUUse, ...]:
        """GPUs that are too small."""
        return tuple(gpu for gpu in self.gpus if gpu.short_bytes)

    @property
    def works(self) -> bool:
        """Whether nothing would be refused and everything fits."""
        return not self.problems and not self.overfull

    @property
    def fullest(self) -> GPUUse:
        """The GPU that is fullest for its size."""
        return max(self.gpus, key=lambda gpu: gpu.fullness)

    def gpu_copies(self) -> tuple[int, int]:
        """Copies from GPU to GPU in the prefill and in one decode step."""
        between = [hop for hop in self.copies if "cpu" not in (hop.source, hop.target)]
        return sum(h.prefill_copies for h in between), sum(h.decode_copies for h in between)

    def findings(self) -> tuple[str, ...]:
        """What stands in the way, one line each; none if it works."""
        lines = [str(problem) for problem in self.problems]
        for gpu in self.overfull:
            where = f"{gpu.phase}, {gpu.module}" if gpu.module else gpu.phase
            lines.append(
                f"out of memory: {gpu.device} needs {gib(gpu.total_bytes)} GiB and has "
                f"{gib(gpu.capacity_bytes)}, so {gib(gpu.short_bytes)} GiB are short ({where})"
            )
        return tuple(lines)

    def main_findings(self) -> tuple[str, ...]:
        """The first of `findings`, and how many more there are."""
        lines = self.findings()
        rest = len(lines) - _SHOWN
        return (*lines[:_SHOWN], f"and {rest} more") if rest > 0 else lines

    def raise_if_unusable(self) -> None:
        """Raise what a real machine would run into first, as one line.

        Raises:
            PlacementError: if an operation is refused.
            DoesNotFitError: if a GPU is too small.
        """
        if self.works:
            return
        first, *rest = self.findings()
        more = f" ({len(rest)} more)" if rest else ""
        what = f"{self.model} would not run on this placement{more}: {first}."
        if self.problems:
            raise PlacementError(what, "A plan of ours keeps together what must be.")
        plan = "" if self.placement == "plan" else "a plan of ours, "
        raise DoesNotFitError(what, f"Use {plan}more or larger GPUs, or a shorter context.")

    def to_json(self) -> str:
        """Write the report as JSON that `from_json` reads, with what follows from it."""
        kind = dict(zip(("format", "version"), _KIND, strict=True))
        derived = {"works": self.works, "findings": self.findings()}
        return json.dumps({**kind, **asdict(self), **derived}, indent=2)

    @staticmethod
    def from_json(text: str) -> DryRunReport:
        """Read a report that `to_json` wrote.

        Raises:
            DeviceMapError: if `text` is not such a report.
        """
        try:
            data = json.loads(text)
        except ValueError:
            data = None
        if not isinstance(data, dict) or (data.get("format"), data.get("version")) != _KIND:
            raise DeviceMapError("The text is not the report of a dry run.")
        try:
            content = {field.name: data[field.name] for field in fields(DryRunReport)}
            content["gpus"] = tuple(GPUUse(**gpu) for gpu in content["gpus"])
            content["copies"] = tuple(HopUse(**hop) for hop in content["copies"])
            content["problems"] = tuple(
                MixedDevices(**{**problem, "devices": tuple(problem["devices"])})
                for problem in content["problems"]
            )
            content["offloaded"] = tuple(content["offloaded"])
        except (KeyError, TypeError) as error:
            raise DeviceMapError(f"The report of a dry run is damaged ({error}).") from None
        return DryRunReport(**content)

    def title(self) -> str:
        """What was run, as one line."""
        placed = {"plan": "as planned", "auto": 'device_map="auto"'}.get(self.placement, "by map")
        rows = f", batch of {self.batch}" if self.batch > 1 else ""
        return (
            f"{self.model}, {self.dtype}, {placed}: a prompt of {self.prompt_tokens:,} tokens with "
            f"{counted(self.images, 'image')}{rows}, "
            f"then {counted(self.decode_steps, 'decode step')}"
        )

    def waiting(self) -> str:
        """Say how many modules are offloaded."""
        count = len(self.offloaded)
        return f"{counted(count, 'module')} wait{'s' if count == 1 else ''} in host memory"

    def verdict(self) -> str:
        """How it went, as one line."""
        if self.works:
            gpu = self.fullest
            return (
                f"It would run; the fullest GPU is {gpu.device} ({gpu.fullness:.0%}). One token "
                f"takes {self.gpu_copies()[1]} copies for {self.decode_hops} hops."
            )
        short = f"{counted(len(self.overfull), 'GPU')} too small" if self.overfull else ""
        mixed = f"{counted(len(self.problems), 'operation')} refused" if self.problems else ""
        return "It would not run: " + " and ".join(part for part in (mixed, short) if part) + "."

    def gpu_rows(self) -> list[tuple[str, ...]]:
        """The GPUs as a table, its head first; sizes in GiB."""
        head = (
            "",
            "weights",
            "cache",
            "activ.",
            "other",
            "total",
            "of",
            "full",
            "peak in",
            "module",
        )
        return [head, *(_gpu_row(gpu) for gpu in self.gpus)]

    def copy_rows(self) -> list[tuple[str, ...]]:
        """The copies as a table, its head first."""
        head = ("", "prefill", "size", "per decode step", "size")
        return [head, *(_copy_row(hop) for hop in self.copies)]

    def text(self) -> str:
        """The report as tables, at most 100 columns wide."""
        lines = [*_wrapped(self.title()), *_wrapped(self.verdict())]
        for finding in self.main_findings():
            lines += _wrapped(finding, bullet="- ")
        lines += ["", "sizes in GiB", *_aligned(self.gpu_rows(), names=2)]
        if self.copies:
            lines += ["", "copies", *_aligned(self.copy_rows())]
        if self.offloaded:
            lines += ["", f"{self.waiting()}, first {self.offloaded[0]}."]
        return "\n".join(lines)


def _gpu_row(gpu: GPUUse) -> tuple[str, ...]:
    sizes = (gpu.weight_bytes, gpu.kv_bytes, gpu.activation_bytes, gpu.overhead_bytes)
    return (
        f"{gpu.device} {gpu.name.removeprefix('NVIDIA ').removeprefix('GeForce ')}",
        *map(gib, (*sizes, gpu.total_bytes, gpu.capacity_bytes)),
        f"{min(gpu.fullness, _FULLEST):.0%}",
        gpu.phase if gpu.peak_bytes else "idle",
        gpu.module,
    )


def _copy_row(hop: HopUse) -> tuple[str, ...]:
    return (
        f"{hop.source} -> {hop.target}",
        str(hop.prefill_copies),
        _sized(hop.prefill_bytes),
        str(hop.decode_copies),
        _sized(hop.decode_bytes),
    )


def _sized(size: int) -> str:
    """Bytes in the largest unit that they fill: a hop moves anything from an id to weights."""
    for unit, power in (("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if size >= 1024**power:
            return f"{size / 1024**power:.2f} {unit}"
    return f"{size} B"


def _wrapped(text: str, bullet: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_on_hyphens=False,
    )


def _aligned(rows: Sequence[Sequence[str]], names: int = 0) -> Iterator[str]:
    """Lines of a table: numbers to the right, the first column and the last `names` to the left.

    The last column, if it is of names, gets what room the others leave; the first one helps out.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if names:
        room = _WIDTH - sum(widths[:-1]) - 2 * (len(widths) - 1)
        widths[-1] = max(_MODULE_NAME, room)
        widths[0] -= widths[-1] - room
        rows = [(row[0][: widths[0]], *row[1:-1], _shortened(row[-1], widths[-1])) for row in rows]
    for row in rows:
        cells = [
            cell.ljust(width) if index == 0 or index >= len(row) - names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _shortened(name: str, width: int) -> str:
    """The end of a module's name, which says more than its beginning."""
    whole = name
    while len(name) > width and "." in whole:
        whole = whole.partition(".")[2]
        name = f"…{whole}"
    return name
