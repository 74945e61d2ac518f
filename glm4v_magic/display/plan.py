"""What ``%glm4v plan`` shows: which card would run what, and how full that makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm4v_magic.display import MimeBundle
from glm4v_magic.display.card_table import bar, safe, table
from glm4v_magic.display.text import counted, printable

if TYPE_CHECKING:
    from glm4v_magic.placement.stages import Plan, Stage

__all__ = ["plan_bundle", "plan_html"]

_BAR_WIDTH = 16  # em, of the largest card


def plan_bundle(plan: Plan) -> MimeBundle:
    """Return a plan as a table; as text, the same table."""
    return {"text/plain": printable(plan.text()), "text/html": plan_html(plan)}


def plan_html(plan: Plan) -> str:
    """Return a plan as HTML: one row for each card, notes, and the names of all modules."""
    capacities = [max(1, stage.capacity_bytes or stage.total_bytes) for stage in plan.stages]
    bars = [  # all to one scale
        bar(stage, capacity, _BAR_WIDTH * capacity / max(capacities))
        for stage, capacity in zip(plan.stages, capacities, strict=True)
    ]
    head, *rows = plan.card_rows()
    notes = "".join(f"<li>{safe(note)}</li>" for note in plan.notes)
    modules = "".join(_modules(stage) for stage in plan.stages if stage.modules)
    return (
        f'<div class="glm4v-plan"><div>{safe(_title(plan))}</div>'
        + table(head, rows, 1, bars)
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


def _modules(stage: Stage) -> str:
    names = "".join(
        f"<dd><code>{safe(name)}</code>"
        f"{' (in host memory)' if name in stage.offloaded else ''}</dd>"
        for name in stage.modules
    )
    return f"<dt>{safe(stage.device)}</dt>{names}"
