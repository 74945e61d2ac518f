"""Table and modules of a plan, shown by ``%glm4v plan`` below the view of the device map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm4v_magic.core import plan_text
from glm4v_magic.core.remarks import worded
from glm4v_magic.core.room import room_note
from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.next_steps import CELL
from glm4v_magic.notebook.render import Html, MimeBundle, breaking, joined
from glm4v_magic.notebook.render.bars import table

if TYPE_CHECKING:
    from glm4v_magic.core.plan import Plan
    from glm4v_magic.core.stage import Stage

__all__ = ["plan_bundle", "plan_html"]

_NUMBERS = 7  # columns of `plan_text.gpu_rows`

_VIEW = Html(
    '<div class="glm4v-plan" style="margin-top:0.6em"><div>{}, sizes in GiB</div>{}{}{}'
    "<details><summary>modules</summary><dl>{}</dl></details></div>"
)
_LINE = Html("<div>{}</div>")
_STAGE = Html("<dt>{}</dt>{}")
_MODULE = Html("<dd><code>{}</code>{}</dd>")


def plan_bundle(plan: Plan) -> MimeBundle:
    """Return a plan as a table; as text, the same table with the plan's notes."""
    text = plan_text.text(plan.model, plan.workload, plan.stages, plan.notes, CELL, plan.speed)
    return {"text/plain": printable(text), "text/html": plan_html(plan)}


def plan_html(plan: Plan) -> Html:
    """Return a plan as HTML: one row for each GPU, and the names of all modules.

    A column has the memory that is left for the prefix cache. Bars and notes are in the view of
    `notebook.render.plans.device_map`.
    """
    head, *rows = plan_text.gpu_rows(plan.stages)
    room = room_note(plan.stages)
    left = "" if room is None else _LINE.fill(worded(room, CELL))
    speed = joined(
        _LINE.fill(worded(note, CELL))
        for note in plan_text.speed_notes(plan.speed, plan.workload, plan.stages)
    )
    modules = joined(_modules(stage) for stage in plan.stages if stage.modules)
    return _VIEW.fill(_title(plan), table(head, rows, _NUMBERS, label="GPUs"), speed, left, modules)


def _title(plan: Plan) -> str:
    work = plan.workload
    quantized = f" in {work.form}" if work.form else ""
    return (
        f"{plan.model}, {work.dtype}{quantized}: {work.context or 0:,} tokens of context, "
        f"{plan_text.images(work)}, batch of {work.batch}"
    )


def _modules(stage: Stage) -> Html:
    away = " (in host memory)"
    names = joined(
        _MODULE.fill(breaking(name), away if name in stage.offloaded else "")
        for name in stage.modules
    )
    return _STAGE.fill(stage.device, names)
