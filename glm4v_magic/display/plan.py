"""What ``%glm4v plan`` shows: which card would run what, and how full that makes it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from glm4v_magic.display import MimeBundle
from glm4v_magic.display.text import counted, printable
from glm4v_magic.placement.stages import gib, span

if TYPE_CHECKING:
    from glm4v_magic.placement.stages import Plan, Stage

__all__ = ["plan_bundle", "plan_html"]

# Translucent, so that they suit light and dark pages; text keeps the page's own colour.
_PARTS = (
    ("weights", "weight_bytes", "rgba(66, 133, 244, 0.6)"),
    ("cache", "kv_bytes", "rgba(52, 168, 83, 0.6)"),
    ("activations", "activation_bytes", "rgba(251, 188, 4, 0.6)"),
    ("other", "overhead_bytes", "rgba(128, 128, 128, 0.6)"),
)
_OUTLINE = "rgba(128, 128, 128, 0.6)"
_BAR_WIDTH = 16  # em, of the largest card
_COLUMNS = ("", *(name for name, _, _ in _PARTS), "total", "of", "full", "GiB", "units")


def plan_bundle(plan: Plan) -> MimeBundle:
    """Return a plan as a table; as text, the same table."""
    return {"text/plain": printable(plan.text()), "text/html": plan_html(plan)}


def plan_html(plan: Plan) -> str:
    """Return a plan as HTML: one row for each card, notes, and the names of all modules."""
    largest = max(_capacity(stage) for stage in plan.stages)
    titles = "".join(f'<th scope="col" style="text-align:right">{name}</th>' for name in _COLUMNS)
    rows = "".join(_row(stage, largest) for stage in plan.stages)
    notes = "".join(f"<li>{_safe(note)}</li>" for note in plan.notes)
    modules = "".join(_modules(stage) for stage in plan.stages if stage.modules)
    return (
        f'<div class="glm4v-plan"><div>{_safe(_title(plan))}</div>'
        f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"
        + (f"<ul>{notes}</ul>" if notes else "")
        + f"<details><summary>modules</summary><dl>{modules}</dl></details></div>"
    )


def _title(plan: Plan) -> str:
    work = plan.workload
    quantized = f" in {work.quantize}" if work.quantize else ""
    return (
        f"{plan.model}, {work.dtype}{quantized}: {counted(work.context or 0, 'position')}, "
        f"{counted(work.images, 'picture')}, batch of {work.batch}"
    )


def _row(stage: Stage, largest: int) -> str:
    sizes = [gib(getattr(stage, attribute)) for _, attribute, _ in _PARTS]
    checked = stage.capacity_bytes is not None
    cells = [
        *sizes,
        gib(stage.total_bytes),
        gib(_capacity(stage)) if checked else "?",
        f"{stage.fullness:.0%}" if checked else "?",
    ]
    data = "".join(f'<td style="text-align:right">{_safe(cell)}</td>' for cell in cells)
    return (
        f'<tr><th scope="row" style="text-align:left">{_safe(f"{stage.device} {stage.name}")}</th>'
        f'{data}<td style="text-align:left">{_bar(stage, largest)}</td>'
        f'<td style="text-align:left">{_safe(span(stage.units) or "idle")}</td></tr>'
    )


def _bar(stage: Stage, largest: int) -> str:
    """What fills a card; all bars are to one scale."""
    pieces = ""
    for name, attribute, colour in _PARTS:
        size = getattr(stage, attribute)
        if size:
            style = (
                f"display:inline-block;height:0.8em;width:{_BAR_WIDTH * size / largest:.2f}em;"
                f"background:{colour}"
            )
            pieces += f'<span title="{name}: {gib(size)} GiB" style="{style}"></span>'
    width = _BAR_WIDTH * _capacity(stage) / largest
    return (
        f'<span role="img" aria-label="{stage.fullness:.0%} full" style="display:inline-block;'
        f'white-space:nowrap;width:{width:.2f}em;outline:1px solid {_OUTLINE}">{pieces}</span>'
    )


def _modules(stage: Stage) -> str:
    names = "".join(
        f"<dd><code>{_safe(name)}</code>"
        f"{' (in host memory)' if name in stage.offloaded else ''}</dd>"
        for name in stage.modules
    )
    return f"<dt>{_safe(stage.device)}</dt>{names}"


def _capacity(stage: Stage) -> int:
    return max(1, stage.capacity_bytes or stage.total_bytes)


def _safe(text: str) -> str:
    return escape(printable(text))
