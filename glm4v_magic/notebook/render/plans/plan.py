"""Table and modules of a plan, shown by ``%glm4v plan`` below the view of the device map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm4v_magic.core import plan_text
from glm4v_magic.core.remarks import worded
from glm4v_magic.core.room import room_note
from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.next_steps import CELL
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.bars import safe, table

if TYPE_CHECKING:
    from glm4v_magic.core.plan import Plan
    from glm4v_magic.core.stage import Stage

__all__ = ["plan_bundle", "plan_html"]

_NUMBERS = 7  # columns of `plan_text.gpu_rows`


def plan_bundle(plan: Plan) -> MimeBundle:
    """Return a plan as a table; as text, the same table with the plan's notes."""
    text = plan_text.text(plan.model, plan.workload, plan.stages, plan.notes, CELL, plan.speed)
    return {"text/plain": printable(text), "text/html": plan_html(plan)}


def plan_html(plan: Plan) -> str:
    """Return a plan as HTML: one row for each GPU, and the names of all modules.

    A column has the memory that is left for the prefix cache. Bars and notes are in the view of
    `notebook.render.plans.device_map`.
    """
    head, *rows = plan_text.gpu_rows(plan.stages)
    room = room_note(plan.stages)
    left = "" if room is None else f"<div>{safe(worded(room, CELL))}</div>"
    speed = "".join(
        f"<div>{safe(worded(note, CELL))}</div>"
        for note in plan_text.speed_notes(plan.speed, plan.workload)
    )
    modules = "".join(_modules(stage) for stage in plan.stages if stage.modules)
    return (
        f'<div class="glm4v-plan"><div>{safe(_title(plan))}, sizes in GiB</div>'
        f"{table(head, rows, _NUMBERS)}{speed}{left}"
        f"<details><summary>modules</summary><dl>{modules}</dl></details></div>"
    )


def _title(plan: Plan) -> str:
    work = plan.workload
    quantized = f" in {work.form}" if work.form else ""
    return (
        f"{plan.model}, {work.dtype}{quantized}: {work.context or 0:,} tokens of context, "
        f"{plan_text.images(work)}, batch of {work.batch}"
    )


def _modules(stage: Stage) -> str:
    names = "".join(
        f"<dd><code>{safe(name)}</code>"
        f"{' (in host memory)' if name in stage.offloaded else ''}</dd>"
        for name in stage.modules
    )
    return f"<dt>{safe(stage.device)}</dt>{names}"
