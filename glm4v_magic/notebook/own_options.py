"""Options of the notebook alone, in the form of the table of `core.options`.

They are about variables, cells and files of a notebook, so that neither Python nor a server has
them. The parser, the help, completion and the reference page are made from them as from the table.
"""

from __future__ import annotations

from typing import Literal, get_args

from glm4v_magic.core.option import Option, Who, option
from glm4v_magic.core.options import of_group

__all__ = ["ENGINES", "OWN", "PRINT", "own_of_command"]

Engine = Literal["vllm", "sglang", "own"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
"""Engines that can be started as a server."""

PRINT = ""
"""Value of ``--json`` without a file."""

_ASK = ("cell", "ask", "preview")
_SHOWN = Who((*_ASK, "retry", "continue"))


class AnswerKept:
    """Where a question comes from, and where its answer goes."""

    out: str | None = option(
        None,
        "Variable that receives the answer.",
        _SHOWN,
        "the name of a variable",
        metavar="NAME",
        short="o",
        example="answer",
    )
    file: str | None = option(
        None,
        "Text file to read the question from.",
        Who(_ASK),
        "the name of a text file",
        metavar="FILE",
        short="f",
        example="question.txt",
    )
    quiet: bool = option(
        False, "Show nothing; the answer is in NAME and _.", _SHOWN, "True or False", short="q"
    )
    preview: bool = option(
        False, "Show what would be sent, and do not send it.", Who(_ASK), "True or False"
    )


class ChatsMeant:
    """Which chats a command is about."""

    all: bool = option(False, "Forget all chats.", Who(("reset",)), "True or False")
    against: str | None = option(
        None,
        "Chat whose latest answer is shown beside it, with what differs.",
        Who(("inspect",)),
        "the name of a chat",
        metavar="NAME",
        example="dogs",
    )


class Reports:
    """What is looked at, and in which form it is reported."""

    machines: bool = option(
        False,
        "On which common machines the model fits, in which form, and how fast at most.",
        Who(("plan",)),
        "True or False",
    )
    json: str | None = option(
        None,
        "Show the plan or report as JSON, or write it to a file.",
        Who(("plan", "check")),
        "the name of a file that ends in .json",
        metavar="FILE.json",
        alone=PRINT,
        example="report.json",
    )
    hub: bool = option(
        False,
        "Also check for up to 3 s whether the hub can be reached.",
        Who(("doctor",)),
        "True or False",
    )
    as_json: bool = option(
        False, "Show the findings as JSON.", Who(("doctor",)), "True or False", spelled="json"
    )


class Started:
    """Which server is started, and whether it is."""

    engine: Engine = option(
        "own",
        "vLLM or SGLang, if it is installed, or our own server.",
        Who(("serve",)),
        choices=ENGINES,
    )
    print: bool = option(False, "Only show the command.", Who(("serve",)), "True or False")


OWN: dict[str, Option] = {
    each.name: each
    for group in (AnswerKept, ChatsMeant, Reports, Started)
    for each in of_group(group)
}
"""The whole table, by name."""


def own_of_command(command: str) -> tuple[Option, ...]:
    """Return the notebook's own options of a command; see `Who`."""
    return tuple(each for each in OWN.values() if command in each.who.commands)
