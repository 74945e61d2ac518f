"""Reports of virtual GPUs, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "CopyRecord",
    "Guess",
    "MemoryPeak",
    "MetaTensorError",
    "MixedDeviceError",
    "Problem",
    "Report",
    "SourceLine",
]


@dataclass(frozen=True, slots=True)
class SourceLine:
    """The line of the model's or the user's code that asked for an operation.

    Attributes:
        file: path of the source file, or ``<stdin>`` and the like.
        line: number of the line, from 1; 0 where no such code is on the stack.
        function: name of the function around the line.
        code: text of the line without its indentation; empty where the file cannot be read.
    """

    file: str
    line: int
    function: str
    code: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


@dataclass(frozen=True, slots=True)
class Problem:
    """An operation that CUDA refuses because its tensors are on different devices.

    Attributes:
        message: CUDA's text.
        operation: for example ``aten.add.Tensor``.
        devices: the two devices of the message, for example ``("cuda:2", "cuda:3")``.
        module: dotted name, within the model, of the innermost module whose forward ran the
            operation; empty for the model itself and outside of any forward.
        source: line of the model's or the user's code that called it.
        phase: ``load``, ``prefill``, ``decode``, or a name given by `VirtualGPUs.phase`.
    """

    message: str
    operation: str
    devices: tuple[str, str]
    module: str
    source: SourceLine
    phase: str

    def __str__(self) -> str:
        return f"{self.message} ({self.operation} in {_named(self.module)}, {self.source})"


@dataclass(frozen=True, slots=True)
class CopyRecord:
    """Copies of tensors from one device to another, between the same two modules in one phase.

    Attributes:
        phase: phase of the copy; see `Problem`.
        source: device copied from, for example ``cuda:0`` or ``cpu``.
        target: device copied to.
        made_in: module that made the tensor; empty for inputs, weights and the model itself.
        used_in: module that needed the copy; empty outside of any forward.
        count: number of copies.
        total_bytes: their sizes, added up.
    """

    phase: str
    source: str
    target: str
    made_in: str
    used_in: str
    count: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryPeak:
    """The fullest moment of one GPU in one phase.

    Attributes:
        phase: phase of the peak; see `Problem`.
        device: index of the GPU.
        peak_bytes: peak bytes of its tensors.
        start_bytes: bytes of its tensors when the phase began; for prefill, the weights.
        module: module whose forward reached the peak; empty for the model itself.
    """

    phase: str
    device: int
    peak_bytes: int
    start_bytes: int
    module: str


@dataclass(frozen=True, slots=True)
class Guess:
    """A whole number that was read from a tensor without data; zero was returned.

    Attributes:
        operation: for example ``aten.argmax.default``: the next token.
        module: module that read it; see `Problem`.
        count: number of reads.
    """

    operation: str
    module: str
    count: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything recorded on virtual GPUs.

    Attributes:
        problems: refused operations, in the order they happened.
        copies: by phase, devices and modules.
        peaks: one for each GPU and phase.
        live_bytes: bytes of the live tensors on each GPU.
        forwards: number of forwards of the model in each phase, for copies per step.
        guesses: zeros returned for missing data.
    """

    problems: tuple[Problem, ...]
    copies: tuple[CopyRecord, ...]
    peaks: tuple[MemoryPeak, ...]
    live_bytes: tuple[int, ...]
    forwards: tuple[tuple[str, int], ...]
    guesses: tuple[Guess, ...]

    def hops(self, phase: str) -> dict[tuple[str, str], tuple[int, int]]:
        """Copies and bytes of one phase by (source, target)."""
        return _sum_by_devices(copy for copy in self.copies if copy.phase == phase)


class MixedDeviceError(RuntimeError):
    """CUDA's refusal of an operation on tensors of different devices; `problem` tells where."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class MetaTensorError(MixedDeviceError, NotImplementedError):
    """Refusal of an operation that needs the values of a tensor on ``meta``, which has none."""


def _named(module: str) -> str:
    return f"module {module}" if module else "no submodule"


def _sum_by_devices(copies: Iterable[CopyRecord]) -> dict[tuple[str, str], tuple[int, int]]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for copy in copies:
        count, total = sums.get((copy.source, copy.target), (0, 0))
        sums[copy.source, copy.target] = (count + copy.count, total + copy.total_bytes)
    return sums
