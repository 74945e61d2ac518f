"""The commands of the magics: one module for each group.

Kept apart from `magics` so that loading the extension stays cheap: these modules import the session
and the rendering, and are imported on first use.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glm4v_magic.core.errors import OptionError, PromptError, did_you_mean
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import asks_for_help, filled, parse, takes
from glm4v_magic.notebook.commands.ask import answer, ask, preview
from glm4v_magic.notebook.commands.chat import (
    chats,
    continue_,
    export,
    history,
    import_,
    inspect,
    reset,
    retry,
)
from glm4v_magic.notebook.commands.check import check
from glm4v_magic.notebook.commands.config import config
from glm4v_magic.notebook.commands.context import Command, Context
from glm4v_magic.notebook.commands.devices import devices
from glm4v_magic.notebook.commands.doctor import doctor
from glm4v_magic.notebook.commands.memory import memory
from glm4v_magic.notebook.commands.model import load, status, unload
from glm4v_magic.notebook.commands.patch import patch
from glm4v_magic.notebook.commands.plan import plan
from glm4v_magic.notebook.commands.serve import serve
from glm4v_magic.notebook.live.output import show

if TYPE_CHECKING:
    from glm4v_magic.core.conversation import Answer
    from glm4v_magic.core.plan import Plan
    from glm4v_magic.planning.machines import MachineFit

__all__ = ["COMMANDS", "Context", "ask_cell", "run"]


def ask_cell(
    context: Context, arguments: Namespace, cell: str, names: Mapping[str, Any]
) -> Answer | None:
    """Ask the question in `cell` about the images of the first line."""
    first = arguments.images[0] if arguments.images else ""
    if first in COMMANDS and first not in names:
        raise OptionError(
            f"{first} is a command for one line: %glm4v {first}.",
            f"A cell begins with images; write ./{first} for a file of that name.",
        )
    is_elsewhere = arguments.file is not None or arguments.follow_up or arguments.task
    if not cell.strip() and not is_elsewhere:
        raise PromptError(
            "The prompt is empty.",
            "Write the question below the first line of the cell. On one line, with one "
            'percent sign: %glm4v ask cat.png "What is the cat doing?"',
        )
    return answer(context, arguments, arguments.images, cell, names)


def run(
    context: Context, words: list[str], names: Mapping[str, Any]
) -> Answer | Plan | tuple[MachineFit, ...] | None:
    """Run a line: a command, its arguments and options; no words are ``status``."""
    if not words:
        words = ["status"]
    name, rest = words[0], words[1:]
    if asks_for_help(words[:1]) or name == "?":
        name, rest = "help", []
    elif name in COMMANDS and (asks_for_help(rest) or rest == ["?"]):
        name, rest = "help", [name]
    elif name.rstrip("?") in COMMANDS and name.endswith("?") and not rest:
        name, rest = "help", [name.rstrip("?")]
    command = COMMANDS.get(name)
    if name.startswith("-"):
        raise OptionError(
            "%glm4v needs a command before its options.", f"There are {', '.join(COMMANDS)}."
        )
    if command is None:
        raise OptionError(
            f"%glm4v has no command {name!r}.",
            (name not in names and did_you_mean(name, COMMANDS)) or _how_to_ask(name),
        )
    return command(context, parse(command, filled(command, rest, names)), names)


def _how_to_ask(word: str) -> str:
    if " " in word:
        return f'To ask on one line: %glm4v ask "{word}", with an image before the question.'
    return (
        f'To ask about an image: a cell "%%glm4v {word}" with the question on the next line, '
        f'or %glm4v ask {word} "the question".'
    )


@takes("glm4v help", *ARGUMENTS["help"])
def help_(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Show this help, or that of one command; so does a command with -h or --help."""
    if arguments.command is None:
        show({"text/plain": context.page})
        return
    command = COMMANDS.get(arguments.command)
    if command is None:
        raise OptionError(
            f"%glm4v has no command {arguments.command!r}.",
            did_you_mean(arguments.command, COMMANDS) or f"There are {', '.join(COMMANDS)}.",
        )
    show({"text/plain": command.__doc__ or ""})


COMMANDS: dict[str, Command] = {
    "ask": ask,
    "preview": preview,
    "continue": continue_,
    "retry": retry,
    "chats": chats,
    "history": history,
    "inspect": inspect,
    "reset": reset,
    "export": export,
    "import": import_,
    "plan": plan,
    "devices": devices,
    "memory": memory,
    "check": check,
    "load": load,
    "serve": serve,
    "unload": unload,
    "status": status,
    "doctor": doctor,
    "config": config,
    "patch": patch,
    "help": help_,
}
