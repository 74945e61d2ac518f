"""What ``%glm4v check`` shows: would this placement run, and what does it take?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from glm4v_magic.core.wording import gib, printable
from glm4v_magic.dry_run import text
from glm4v_magic.notebook.next_steps import CELL
from glm4v_magic.notebook.render import Html, MimeBundle
from glm4v_magic.notebook.render.bars import MUTED, SHORT, STYLE, Segment, bar, legend, table
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.dry_run.report import DryRunReport, GPUUse

__all__ = ["dry_run_bundle", "dry_run_html"]

# Kind of `bars`, name, attribute of `GPUUse`.
_PARTS = (
    ("weights", "weights", "weight_bytes"),
    ("cache", "cache", "kv_bytes"),
    ("activations", "activations", "activation_bytes"),
    ("overhead", "other", "overhead_bytes"),
)
_FULL = 6  # place of a GPU's fullness behind its name in `gpu_rows`
_GPU_NUMBERS, _COPY_NUMBERS = 7, 4  # columns of `gpu_rows` and `copy_rows`


def dry_run_bundle(report: DryRunReport) -> MimeBundle:
    """Return a report as tables; as text, the same tables."""
    return {
        "text/plain": printable(text.report_text(report, CELL)),
        "text/html": dry_run_html(report),
    }


def dry_run_html(report: DryRunReport) -> str:
    """Return a report as HTML: verdict, findings, GPUs and copies."""
    head, *gpus = text.gpu_rows(report)
    copies = text.copy_rows(report) if report.copies else []
    return fill(
        "dry_run",
        style=STYLE,
        muted=MUTED,
        short=SHORT,
        title=text.title(report),
        verdict=text.verdict(report),
        findings=text.main_findings(report),
        notes=text.notes(report, CELL),
        bars=list(_bars(report.gpus, gpus)) if gpus else [],
        legend=legend((kind, name) for kind, name, _ in _PARTS) if gpus else "",
        gpus=table(head, gpus, _GPU_NUMBERS, label="GPUs") if gpus else "",
        copies=table(copies[0], copies[1:], _COPY_NUMBERS, label="copies") if copies else "",
        offloaded=report.offloaded,
        waiting=text.waiting(report) if report.offloaded else "",
    )


def _bars(gpus: Sequence[GPUUse], rows: Sequence[Sequence[str]]) -> Iterator[tuple[str, Html]]:
    """Yield a label and a bar for each GPU, all to one scale; bytes over the capacity stick out."""
    # A GPU that other programs have filled is drawn long enough to be seen.
    drawn = [max(gpu.capacity_bytes, gpu.total_bytes // 4, 1) for gpu in gpus]
    widest = max(max(drawn), *(gpu.total_bytes for gpu in gpus))
    for gpu, (name, *cells), length in zip(gpus, rows, drawn, strict=True):
        segments = [
            Segment(kind, size, part, f"{part}: {gib(size)} GiB")
            for kind, part, attribute in _PARTS
            if (size := getattr(gpu, attribute))
        ]
        label = f"{name}, {cells[_FULL]} full"
        short = gpu.total_bytes > gpu.capacity_bytes
        yield label, bar(segments, length, length / widest, label, short=short)
