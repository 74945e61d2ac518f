"""The model in use: ``%glm4v load``, ``unload`` and ``status``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from glm4v_magic.calls.prompt import expand
from glm4v_magic.core.model import ModelChoice
from glm4v_magic.core.options import of_command
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.typed_options import typed
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import takes
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.commands.plan import given_map
from glm4v_magic.notebook.live.output import show
from glm4v_magic.notebook.live.screen import screen_for
from glm4v_magic.notebook.live.stop_button import heard_first
from glm4v_magic.notebook.render.answers.chat import chat_name
from glm4v_magic.notebook.render.progress import line_bundle
from glm4v_magic.notebook.render.status import status_bundle, status_rows
from glm4v_magic.session.model_in_use import loaded_all_the_same
from glm4v_magic.session.session import Session

__all__ = ["load", "release", "status", "unload"]


@takes("glm4v load", *ARGUMENTS["load"])
def load(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Load a model in place of the one in use.

    Without MODEL: that of the plan (--map), else the model loaded last, with the revision, base and
    adapter of then, else that of the setting `model` (%glm4v config model), else the embedded demo
    model. With GPUs, a plan decides which GPU runs which layers; see
    %glm4v plan::

        %glm4v load ~/models/glm-4v-9b --context 4096
        %glm4v load ~/models/glm-4v-9b --gpus 2x16GiB --quantize 4bit
        %glm4v load ~/models/glm-4v-9b --map plan.json

    Any server that speaks OpenAI's protocol, such as vLLM or SGLang, can answer instead; then
    nothing is loaded here. If it wants a key, put that into the environment variable
    GLM4V_API_KEY. {{expression}} in MODEL is replaced by its value::

        %glm4v load http://127.0.0.1:8000/v1
        %glm4v load {{address}} --served-model GLM-4.1V-9B-Thinking
    """
    before = context.session.status()
    given = None if arguments.model is None else expand(arguments.model, names)
    options = typed(arguments, of_command("load"))
    if "device_map" in options:
        options["device_map"] = given_map(options["device_map"], names)
    if given is None:
        plan = options.get("device_map")
        given = plan.model if isinstance(plan, Plan) else context.chosen
        made_of = context.made_of(arguments, plan)
        options |= {name: value for name, value in made_of.items() if value is not None}
    screen = screen_for(context.shell, ModelChoice(given).name)
    try:
        with context.session.stream_load(given, **options) as events, heard_first(screen):
            for event in events:
                screen.show(event)
        info = context.session.status().info
        if info is not None:
            screen.loaded(info)
        if info is not None and info is before.info:
            show(line_bundle(f"{info.model} is loaded already."))
        elif info is not None and info.server is not None:
            show(line_bundle(f"Connected to {info.server}: {info.model}."))
        launched = context.launched
        if launched is not None and launched.is_running and ModelChoice(given).name != launched.url:
            show(line_bundle(f"{launched.name} at {launched.url} goes on; %glm4v unload ends it."))
    except KeyboardInterrupt:
        info = context.session.status().info
        if info is None or info is before.info:
            raise
        screen.loaded(info)
        raise loaded_all_the_same(info.model) from None
    finally:
        screen.close()


@takes("glm4v unload", *ARGUMENTS["unload"])
def unload(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Give the model's memory back. The next question loads the model again.

    From a server it only disconnects. One that was started with %glm4v serve is ended, whatever is
    loaded, and the same line starts it again.
    """
    before = context.session.status()
    try:
        said = _unloaded(context.session) or f"{before.choice.name} was not loaded."
        ended = context.end_launched()
        if ended is not None:
            told = f"{ended.name} at {ended.url} was ended."
            here = before.info is not None and before.info.server is None
            said = f"{said} {told}" if here else told
        show(line_bundle(said))
    except KeyboardInterrupt:
        if before.info is None or context.session.status().info is not None:
            raise
        raise KeyboardInterrupt(f"{before.choice.name} was unloaded all the same.") from None


def release(session: Session) -> None:
    """Release a session's model, and say what goes with the session."""
    lines = [_unloaded(session)]
    if chats := session.chats:
        lines.append(f"Forgotten: {', '.join(map(chat_name, chats))}.")
    if any(lines):
        show(line_bundle(" ".join(filter(None, lines))))


def _unloaded(session: Session) -> str:
    """Release a session's model, and say so; empty if there was none."""
    before = session.status()
    if not session.unload():
        return ""
    if before.info is not None and before.info.server is not None:
        return f"Disconnected from {before.info.server}, which goes on."
    return f"{before.choice.name} was unloaded."


@takes("glm4v status", *ARGUMENTS["status"])
def status(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Show the model, where it is, what it takes, and what the last answer cost."""
    now = context.session.status()
    rows = status_rows(context.model, now.info, now.last, busy=now.busy, kept=now.kept)
    launched = context.launched or context.ended
    how = "" if launched is None else launched.ending if context.launched else "was ended"
    if launched is not None and how:
        gone = f"{launched.url}, {how}; the %glm4v serve line starts it again"
        named = (launched.url, f"{launched.url}, not loaded: the next question loads it")
        rows = [(label, gone if value in named else value) for label, value in rows]
    show(status_bundle(rows))
