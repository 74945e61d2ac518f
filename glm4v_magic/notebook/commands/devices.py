"""Which module is on which GPU: ``%glm4v devices``."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import BusyError, Glm4vError, PlacementError
from glm4v_magic.core.events import Loading, Starting
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.model import Architecture
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.hardware.cpu import cpu_here
from glm4v_magic.hardware.usable import gpus_here
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import takes
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.commands.plan import as_options, placement_options
from glm4v_magic.notebook.draft import draw, load_line
from glm4v_magic.notebook.live.output import show
from glm4v_magic.notebook.next_steps import in_cell
from glm4v_magic.notebook.render import MimeBundle
from glm4v_magic.notebook.render.pace import Pace
from glm4v_magic.notebook.render.plans.device_map import device_map_bundle
from glm4v_magic.notebook.render.plans.dry_run import dry_run_bundle
from glm4v_magic.notebook.render.progress import (
    line_bundle,
    loaded_line,
    progress_bundle,
    starting_line,
)
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.occupancy import Occupancy, occupancy

if TYPE_CHECKING:
    from glm4v_magic.notebook.widgets.tool import DeviceTool
    from glm4v_magic.session.session import Status

__all__ = ["Drawing", "devices", "draw_loaded", "make_tool", "refuse_server"]


@takes("glm4v devices", *ARGUMENTS["devices"])
def devices(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Show which module is on which GPU, to scale.

    For the loaded model, as it is; while it answers, what is at work is marked. With MODEL or an
    option, or before a model is loaded, a plan that can be changed in the notebook, checked in a
    dry run, loaded, or copied as a line::

        %glm4v devices
        %glm4v devices GLM-4V-9B --gpus 4x16GiB --context 4096
    """
    typed = placement_options(arguments)
    status = context.session.status()
    if status.info is not None and arguments.model is None and not typed:
        refuse_server(status)
        _show_loaded(context, status)
        return
    name = context.named(arguments.model)
    model, options = architecture(name), as_options(typed)
    if not context.has_widgets:
        show(device_map_bundle(_draw(model, options)[0]))
        return
    context.open(make_tool(context, name, model, options))


def make_tool(
    context: Context, name: str, model: Architecture, options: PlacementOptions
) -> DeviceTool:
    """Make the widget in which a plan can be changed.

    Args:
        context: shell and session.
        name: name of the model, as the user would type it.
        model: its architecture.
        options: initial options.
    """
    from glm4v_magic.notebook.widgets.tool import DeviceTool, Draft

    draft = Draft(
        name,
        model.shape(),
        model.max_images,
        draw=lambda chosen: _draw(model, chosen),
        line=lambda chosen: load_line(name, chosen),
        check=lambda chosen: _check(context, model, chosen),
        load=lambda chosen: _load(context, name, chosen),
    )
    return DeviceTool(context.shell, draft, options)


def draw_loaded(model: Architecture, status: Status) -> Occupancy:
    """Divide the plan of a loaded model into parts for the view.

    Raises:
        PlacementError: if it does not follow a plan.
    """
    info, options = status.info, status.choice.options
    plan = None if info is None else info.plan
    if info is not None and plan is None and info.devices == ("cpu",):
        plan = make_plan(model, replace(options, gpus="cpu", dtype=info.dtype))
    if plan is None:
        raise PlacementError(
            "The model follows a map that was given, not a plan: what it takes is not known.",
            "%glm4v status shows the map, %glm4v memory what is on the GPUs.",
        )
    usage = None
    # The latest answer may be of a model that was there before.
    if info is not None and status.last is not None and status.last.model == info.model:
        usage = status.last.usage
    counts = () if usage is None else (usage.text_tokens, usage.visual_tokens, usage.new_tokens)
    return occupancy(
        plan,
        model.shape(),
        _gpus(options),
        cached_tokens=sum(count or 0 for count in counts),
        loaded=info is not None,
    )


def _draw(model: Architecture, options: PlacementOptions) -> tuple[Occupancy, str]:
    return draw(model, options, _gpus(options), cpu_here())


def _gpus(options: PlacementOptions) -> tuple[GPU, ...]:
    return gpus_here() if options.gpus is None else parse_gpus(options.gpus)


def _show_loaded(context: Context, status: Status) -> None:
    choice = status.choice
    model = architecture(context.model, **choice.made_of)
    if not context.has_widgets:
        show(device_map_bundle(draw_loaded(model, status)))
        return
    from glm4v_magic.notebook.widgets.loaded import LoadedWidget

    context.open(LoadedWidget(context.monitor, Drawing(model, status), status))


def refuse_server(status: Status) -> None:
    """Raise PlacementError if the model in use is on a server."""
    if status.info is not None and status.info.server is not None:
        raise PlacementError(
            f"{status.info.model} is on {status.info.server}, which does not tell its GPUs.",
            "Name a model to plan it here: %glm4v devices GLM-4V-9B.",
        )


class Drawing:
    """Draws the model in use, anew whenever it has changed."""

    def __init__(self, model: Architecture, status: Status) -> None:
        self._model = model
        self._seen: Status | None = None
        self._name = status.choice.name
        self._view: Occupancy | None = None

    def __call__(self, status: Status) -> Occupancy:
        """Return a view of the model as it is now, or of the problem if it cannot be drawn."""
        if self._view is None or self._is_new(status):
            self._view = self._draw(status)
        self._seen = status
        return self._view

    def _is_new(self, status: Status) -> bool:
        seen = self._seen
        return seen is None or seen.info is not status.info or seen.last is not status.last

    def _draw(self, status: Status) -> Occupancy:
        if status.info is None and self._view is not None:
            return replace(self._view, loaded=False, problem="No model is loaded now.", gpus=())
        try:
            refuse_server(status)
            if status.choice.name != self._name:
                choice = status.choice
                self._model = architecture(choice.name, **choice.made_of)
                self._name = status.choice.name
            return draw_loaded(self._model, status)
        except Glm4vError as error:
            return Occupancy(status.choice.name, "loaded", (), problem=in_cell(error))


def _check(context: Context, model: Architecture, options: PlacementOptions) -> MimeBundle:
    if context.session.status().busy:
        raise BusyError("The model is at work.", "Check when it has finished.")
    from glm4v_magic.dry_run.run import dry_run

    gpus = _gpus(options)
    plan = make_plan(model, options, gpus, cpu=cpu_here())
    return dry_run_bundle(dry_run(model, gpus, plan))


def _load(
    context: Context,
    name: str,
    options: PlacementOptions,
) -> Generator[MimeBundle, None, None]:
    """Load a model; yields what to show of it, the outcome last."""
    pace, since = Pace(), time.monotonic()
    chosen = {field: getattr(options, field) for field in PlacementOptions.__dataclass_fields__}
    with context.session.stream_load(name, **chosen) as events:
        for event in events:
            if isinstance(event, Starting):
                yield line_bundle(starting_line(event.library))
            elif isinstance(event, Loading) and pace.due():
                yield progress_bundle(name, event.progress)
    info = context.session.status().info
    yield line_bundle("" if info is None else loaded_line(info, time.monotonic() - since))
