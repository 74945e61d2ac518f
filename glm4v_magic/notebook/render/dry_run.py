"""What ``%glm4v check`` shows: would this placement run, and what does it take?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from glm4v_magic.core.wording import gib, printable
from glm4v_magic.dry_run import text
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.bars import MUTED, SHORT, STYLE, Segment, bar, legend, safe, table

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
    return {"text/plain": printable(text.report_text(report)), "text/html": dry_run_html(report)}


def dry_run_html(report: DryRunReport) -> str:
    """Return a report as HTML: the verdict, what stands in the way, GPUs, and copies."""
    findings = "".join(f"<li>{safe(line)}</li>" for line in text.main_findings(report))
    head, *gpus = text.gpu_rows(report)
    parts = [
        f"<div>{safe(text.title(report))}</div>",
        f"<div><strong>{safe(text.verdict(report))}</strong></div>",
        f'<ul style="border-left:3px solid {SHORT}">{findings}</ul>' if findings else "",
        f'<div style="margin:0.4em 0">{"".join(_bars(report.gpus, gpus))}</div>',
        legend((kind, name) for kind, name, _ in _PARTS),
        table(head, gpus, _GPU_NUMBERS),
    ]
    if report.copies:
        rows = text.copy_rows(report)
        parts.append(
            f"<details><summary>copies</summary>{table(rows[0], rows[1:], _COPY_NUMBERS)}</details>"
        )
    if report.offloaded:
        names = "".join(f"<li>{safe(name)}</li>" for name in report.offloaded)
        summary = text.waiting(report)
        parts.append(f"<details><summary>{summary}</summary><ul>{names}</ul></details>")
    return f'<div class="glm4v-dry-run">{STYLE}{"".join(parts)}</div>'


def _bars(gpus: Sequence[GPUUse], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield what fills each GPU, all to one scale; what is beyond its end sticks out."""
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
        yield f'<div style="font-size:0.85em;color:{MUTED}">{safe(label)}</div>'
        yield bar(segments, length, length / widest, label, short=short)
