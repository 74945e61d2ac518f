"""A plan that is still being changed: its view, and the line that loads it.

The standard library is enough for it, so that a page can do the same in a browser: `web_planner`.
"""

from __future__ import annotations

from collections.abc import Sequence

from glm4v_magic.core.errors import DoesNotFitError
from glm4v_magic.core.gpu_spec import ANY_CPU, CPU, GPU, parse_gpus
from glm4v_magic.core.model import Sized
from glm4v_magic.core.options import PlacementFields, of_group
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.typed_options import flags_of, value_text
from glm4v_magic.notebook.next_steps import in_cell
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.occupancy import Occupancy, occupancy

__all__ = ["draw", "load_line", "option_words"]


def draw(
    model: Sized, options: PlacementOptions, gpus: Sequence[GPU] | None = None, cpu: CPU = ANY_CPU
) -> tuple[Occupancy, str]:
    """Make a plan and divide it into parts for the view.

    Args:
        model: model to plan for.
        options: placement options.
        gpus: GPUs to plan for; by default those that `options` describe.
        cpu: the CPU of the machine.

    Returns:
        The view, and the plan as JSON, which is empty if the model does not fit.
    """
    if gpus is None and options.gpus is not None:
        gpus = parse_gpus(options.gpus)
    try:
        plan = make_plan(model, options, gpus, cpu=cpu)
    except DoesNotFitError as error:
        if error.plan is None:
            raise
        return occupancy(error.plan, model.shape(), gpus or (), problem=in_cell(error)), ""
    return occupancy(plan, model.shape(), gpus or ()), plan.to_json()


def load_line(model: str, options: PlacementOptions) -> str:
    """Return the line that loads `model` with `options`."""
    return " ".join(["%glm4v load", *map(_quoted, [model, *option_words(options)])])


def option_words(options: PlacementOptions) -> list[str]:
    """Return options as they are typed."""
    words = []
    for option in of_group(PlacementFields):
        value = getattr(options, option.name)
        if value == option.default:
            continue
        words.append(flags_of(option)[-1])
        if option.type != "bool" or option.allows_none:
            words.append(value_text(option, value) or "")
    return words


def _quoted(word: str) -> str:
    if not any(c.isspace() or c in "\"'" for c in word):
        return word
    return f"'{word}'" if '"' in word else f'"{word}"'
