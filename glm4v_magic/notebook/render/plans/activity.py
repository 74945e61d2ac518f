"""The running parts of a model, for the views of its device map and of memory.

It changes four times a second while an answer is written. So it is a line of its own, which screen
readers do not read out, and a style rule that marks pieces of the bars, which stay as they are and
keep the keyboard's focus.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from glm4v_magic.notebook.render import joined
from glm4v_magic.notebook.render.bars import lit, mark
from glm4v_magic.notebook.render.plans.device_map import part_place
from glm4v_magic.notebook.render.templates import fill

if TYPE_CHECKING:
    from glm4v_magic.dispatch.activity import Activity
    from glm4v_magic.planning.occupancy import Occupancy

__all__ = ["activity_html", "activity_line"]

_FULL_NAMES = {"vision": "vision tower", "head": "norm and head"}


def activity_line(activity: Activity, utilization: Mapping[str, float | None] | None = None) -> str:
    """Return ``working: layers 0-19 on cuda:1, 62%``; empty if no part runs.

    Args:
        activity: activity to show.
        utilization: recent utilization of each GPU, if the driver tells; shown where the host only
            queues work for the GPUs.
    """
    if not activity.parts:
        return ""
    parts = "; ".join(
        f"{_FULL_NAMES.get(part.name, part.name)} on {part.device}, {part.share:.0%}"
        for part in activity.parts
    )
    if not activity.is_queued:
        return f"working: {parts}"
    gpus = ", ".join(
        f"{device} {share:.0%}"
        for device, share in (utilization or {}).items()
        if share is not None
    )
    return f"the host is at: {parts}" + (f"; GPUs busy: {gpus}" if gpus else "")


def activity_html(
    view: Occupancy,
    activity: Activity,
    scope: str,
    utilization: Mapping[str, float | None] | None = None,
) -> str:
    """Return the line as HTML, with the rule that marks its parts in the bars of `view`.

    Args:
        view: view that is on the page.
        activity: parts that are running.
        scope: selector of what holds the view's HTML; other views stay as they are.
        utilization: as for `activity_line`.
    """
    active = {(part.device, part.name) for part in activity.parts}
    devices = {part.device for part in activity.parts}
    stages = [lit(scope, row) for row, gpu in enumerate(view.gpus) if gpu.device in devices]
    pieces = [
        mark(scope, part_place(row, column))
        for row, gpu in enumerate(view.gpus)
        for column, part in enumerate(gpu.parts)
        if (gpu.device, part.name) in active
    ]
    return fill(
        "activity", rules=joined([*stages, *pieces]), line=activity_line(activity, utilization)
    )
