"""The report of a dry run in words: as tables, line by line, or as the error that it foretells."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from glm4v_magic.core.errors import DoesNotFitError, PlacementError
from glm4v_magic.core.remarks import PYTHON, Words, worded
from glm4v_magic.core.wording import counted, gib, sized
from glm4v_magic.dry_run.report import DryRunReport, GPUUse, HopUse

__all__ = [
    "copy_rows",
    "findings",
    "gpu_rows",
    "main_findings",
    "notes",
    "raise_if_unusable",
    "report_text",
    "title",
    "verdict",
    "waiting",
]

_WIDTH = 100  # of the report as text
_MODULE_NAME = 16  # letters of a module's name that are shown in any case
_FULLEST = 9.99  # beyond that, how full a GPU is says nothing
_SHOWN = 12  # findings; JSON has them all


def findings(report: DryRunReport) -> tuple[str, ...]:
    """Return the problems that would keep it from working, one line each; empty if it works."""
    lines = [str(problem) for problem in report.problems]
    for gpu in report.overfull:
        where = f"{gpu.phase}, {gpu.module}" if gpu.module else gpu.phase
        lines.append(
            f"out of memory: {gpu.device} needs {gib(gpu.total_bytes)} GiB and has "
            f"{gib(gpu.capacity_bytes)}, so {sized(gpu.short_bytes)} are short ({where})"
        )
    return tuple(lines)


def main_findings(report: DryRunReport) -> tuple[str, ...]:
    """Return the first of `findings`, and how many more there are."""
    lines = findings(report)
    rest = len(lines) - _SHOWN
    return (*lines[:_SHOWN], f"and {rest} more") if rest > 0 else lines


def raise_if_unusable(report: DryRunReport) -> None:
    """Raise the first error that a real machine would run into.

    Raises:
        PlacementError: if an operation is refused.
        DoesNotFitError: if a GPU is too small.
    """
    if report.works:
        return
    first, *rest = findings(report)
    more = f" ({len(rest)} more)" if rest else ""
    what = f"{report.model} would not run on this placement{more}: {first}."
    if report.problems:
        raise PlacementError(what, "A plan of ours keeps together what must be.")
    plan = "" if report.placement == "plan" else "a plan of ours, "
    if any(gpu.weight_bytes > gpu.capacity_bytes for gpu in report.overfull):
        raise DoesNotFitError(what, f"Use {plan}more or larger GPUs: the weights alone are larger.")
    raise DoesNotFitError(what, f"Use {plan}more or larger GPUs, or a shorter context.")


def title(report: DryRunReport) -> str:
    """Return what was run, in one line."""
    placed = {"plan": "as planned", "auto": 'device_map="auto"'}.get(report.placement, "by map")
    rows = f", batch of {report.batch}" if report.batch > 1 else ""
    shared = ""
    if report.context is not None and report.prompt_tokens + report.decode_steps > report.context:
        taken = report.context - report.decode_steps
        shared = f" ({taken:,} of the context, where visual tokens share positions)"
    return (
        f"{report.model}, {report.form}, {placed}: a prompt of {report.prompt_tokens:,} tokens"
        f"{shared} with {counted(report.images, 'image')}{rows}, "
        f"then {counted(report.decode_steps, 'decode step')}"
    )


def waiting(report: DryRunReport) -> str:
    """Return how many modules are offloaded, in one line."""
    count = len(report.offloaded)
    return f"{counted(count, 'module')} wait{'s' if count == 1 else ''} in host memory"


def verdict(report: DryRunReport) -> str:
    """Return how it went, in one line."""
    if report.is_on_cpu:
        return "It would run on the CPU; nothing is on a GPU."
    if report.works:
        gpu = report.fullest
        return (
            f"It would run; the fullest GPU is {gpu.device} ({gpu.fullness:.0%}). One token "
            f"takes {report.gpu_copies()[1]} copies for {report.decode_hops} hops."
        )
    short = f"{counted(len(report.overfull), 'GPU')} too small" if report.overfull else ""
    mixed = f"{counted(len(report.problems), 'operation')} refused" if report.problems else ""
    return "It would not run: " + " and ".join(part for part in (mixed, short) if part) + "."


def notes(report: DryRunReport, words: Words = PYTHON) -> tuple[str, ...]:
    """Return the report's notes in the words of a front end, a line each."""
    return tuple(worded(note, words) for note in report.notes)


def gpu_rows(report: DryRunReport) -> list[tuple[str, ...]]:
    """Return the rows of a table of the GPUs, its header first; sizes in GiB."""
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
    return [head, *(_gpu_row(gpu) for gpu in report.gpus)]


def copy_rows(report: DryRunReport) -> list[tuple[str, ...]]:
    """Return the rows of a table of the copies, its header first."""
    head = ("", "prefill", "size", "per decode step", "size")
    return [head, *(_copy_row(hop) for hop in report.copies)]


def report_text(report: DryRunReport, words: Words = PYTHON) -> str:
    """Return the report as tables, at most 100 columns wide."""
    lines = [*_wrapped(title(report)), *_wrapped(verdict(report))]
    for finding in main_findings(report):
        lines += _wrapped(finding, bullet="- ")
    for note in notes(report, words):
        lines += _wrapped(note)
    if report.gpus:
        lines += ["", "sizes in GiB", *_aligned(gpu_rows(report), names=2)]
    if report.copies:
        lines += ["", "copies", *_aligned(copy_rows(report))]
    if report.offloaded:
        lines += ["", f"{waiting(report)}, first {report.offloaded[0]}."]
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
    """Return bytes in a unit that suits them: a hop moves anything from one id to weights."""
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
    """Yield the lines of a table: numbers to the right; the first and last `names` columns left.

    A last column of names gets the width that the others leave; if that is too little, the first
    one is shortened, too.
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
    """Return the end of a module's name, which says more than its beginning."""
    whole = name
    while len(name) > width and "." in whole:
        whole = whole.partition(".")[2]
        name = f"…{whole}"
    return name
