"""What `mkdocs build` generates from the code: commands, settings, the tree of errors.

mkdocs calls `on_files` and `on_post_build`. The pages' text comes from the help that the notebook
shows, so a new option is in the reference as soon as it is in the code.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from glm4v_magic.core import errors
from glm4v_magic.core.option import Option
from glm4v_magic.core.options import OPTIONS, of_requests
from glm4v_magic.core.typed_options import flags_of
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.magics import Glm4vMagics
from glm4v_magic.notebook.own_options import OWN
from glm4v_magic.notebook.settings import PREFIX, Glm4v
from glm4v_magic.server.command import parser as server_parser
from glm4v_magic.server.protocol import ChatRequest, Only

ROOT = Path(__file__).parent.parent

ANATOMY = (
    "![The parts of a cell: images, options and the question; below it the images, the answer and "
    "its usage](images/anatomy.svg)"
)
ERROR_DRAWN = (
    "![An error is one line: what happened, where, and what to do next](../images/error.svg)"
)

IMAGE = "shapes.png"
QUESTION = "What colour is the circle?"

LINES = {
    "ask": f'{IMAGE} "{QUESTION}"',
    "preview": f'{IMAGE} "{QUESTION}"',
    "plan": "GLM-4V-9B --gpus 4x16GiB",
    "check": "GLM-4V-9B --gpus 4x16GiB",
    "load": "~/models/glm-4v-9b",
    "doctor": "--gpus 4x16GiB",
    "patch": "~/models/glm-4v-9b",
    "config": "temperature",
    "export": "talk.json",
    "import": "talk.json",
    "help": "plan",
}
"""Arguments of each command in examples; a command that is not here needs none."""

SERVER = "http://localhost:8000/v1"
_OF_SCORES = {
    "--evaluate": "",
    "--by": " --evaluate label",
    "--bins": " --evaluate label --choices yes,no",
}
OTHER_LINES = {
    ("load", "--revision"): "zai-org/glm-4v-9b",
    ("load", "--served-model"): SERVER,
    ("load", "--timeout"): SERVER,
    ("", "--over"): "",
    **dict.fromkeys((("ask", "--over"), ("preview", "--over")), f'"{QUESTION}"'),
    **{("", option): "--over photos" for option in ("--batch-size", "--fresh")},
    **{
        (name, option): f'"{QUESTION}" --over photos'
        for name in ("ask", "preview")
        for option in ("--batch-size", "--fresh")
    },
    **{
        (name, option): f"{question}--over df.image{line}"
        for name, question in (("", ""), ("ask", f'"{QUESTION}" '), ("preview", f'"{QUESTION}" '))
        for option, line in _OF_SCORES.items()
    },
}
"""Arguments in the examples of options that need others than the rest."""

TABLE = {**OPTIONS, **OWN}
VALUES = {"--schema": "schema.json --format json"}
"""Values in examples that the tables of options do not have; see `sample`."""

_NUMBERS = {"int": "2", "float": "0.5"}
OF_A_KIND = {
    "FILE": "file.txt",
    "FILE.json": "report.json",
    "FOLDER": "~/models/glm-4v-9b",
    "GIB": "10",
    "NAME": "answer",
    "SPEC": "4x16GiB",
    "TEXT": '"some text"',
    "UNIT=GPU": "vision=0",
    "URL": SERVER,
}

REMOTE = re.compile(
    r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""", re.IGNORECASE
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages; called by mkdocs."""
    for path, text in (
        ("commands.md", commands_page()),
        ("options.md", options_page()),
        ("settings.md", settings_page()),
        ("errors/index.md", errors_page()),
        ("changelog.md", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")),
    ):
        files.append(File.generated(config, path, content=text))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Fail if a page of the site would load anything from another host; called by mkdocs."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        found = REMOTE.search(page.read_text(encoding="utf-8"))
        if found:
            raise PluginError(f"{page} loads from elsewhere: {found[0]}...")


def commands_page() -> str:
    """Return the page of all commands and options."""
    cell: Any = Glm4vMagics.glm4v
    parts = [
        "# Commands and options",
        ANATOMY,
        f"`{IMAGE}` in the examples is in the folder `notebooks/`; other files and folders stand "
        "for yours. `%glm4v help`, and `--help` behind a command, show the same in a notebook; Tab "
        "completes commands, options, models and files.",
        "| line | meaning |\n| --- | --- |\n| [`%%glm4v`](#cell) | a question in a cell |\n"
        + "\n".join(
            f"| [`%glm4v {name}`](#{name}) | {summary(command)} |"
            for name, command in COMMANDS.items()
        ),
        "## `%%glm4v` { #cell }",
        described(cell.parser.description),
        *option_entries("", cell),
    ]
    for name, command in COMMANDS.items():
        parts += [
            f"## `%glm4v {name}` {{ #{name} }}",
            described(parser_of(command).description),
            *option_entries(name, command),
        ]
    return "\n\n".join([*parts, server_section()]) + "\n"


def server_section() -> str:
    """Return the help of our own server, a program of its own."""
    with mock.patch.dict(os.environ, COLUMNS="92"):  # argparse wraps to the terminal's width
        text = server_parser().format_help()
    fields = "\n".join(request_fields())
    return (
        f"## `python -m glm4v_magic.server` {{ #server }}\n\n```text\n{text}```\n\n"
        "A request to `/v1/chat/completions` may have these fields, of which null counts as left "
        f"out; any other is refused by name.\n\n| field | |\n| --- | --- |\n{fields}"
    )


def request_fields() -> Iterator[str]:
    """Yield a row for each field of a request to our server."""
    meanings = dict.fromkeys((each.name for each in of_requests()), "a sampling option")
    for name, field in ChatRequest.model_fields.items():
        only = [each for each in field.metadata if isinstance(each, Only)]
        if only:
            values = " or ".join(f"`{json.dumps(value)}`" for value in only[0].values)
            meanings[name] = f"taken if it is {values}"
        else:
            meanings[name] = "taken, and ignored" if "ignored" in field.metadata else "taken"
    for name, meaning in sorted(meanings.items()):
        yield f"| `{name}` | {meaning} |"


def parser_of(command: Callable[..., Any]) -> Any:
    """Return the parser of a command's line."""
    return inspect.getattr_static(command, "parser")


def summary(command: Callable[..., Any]) -> str:
    """Return the first sentence of a command's help."""
    first = inspect.cleandoc(parser_of(command).description).partition("\n")[0]
    return first.rstrip(".:").replace("|", "\\|")


def described(text: str) -> str:
    """Return a docstring as Markdown: an indented block after ``::`` is code."""
    parts: list[str] = []
    code: list[str] = []
    for block in inspect.cleandoc(text).split("\n\n"):
        if code and block.startswith(" "):
            code.append(block)
            continue
        parts += fenced(code)
        code = []
        for character in ("<", "{"):
            block = block.replace(character, "\\" + character)
        if block.endswith("::"):
            parts.append(block.removesuffix(":"))
            code = [""]
        else:
            parts.append(block)
    return "\n\n".join(parts + fenced(code))


def fenced(blocks: list[str]) -> list[str]:
    """Return indented blocks as one fenced one, if there are any."""
    text = textwrap.dedent("\n\n".join(block for block in blocks if block))
    return [f"```text\n{text}\n```"] if text else []


def options(command: Callable[..., Any]) -> Iterator[Action]:
    """Yield the arguments and options of a command, except its help."""
    for action in parser_of(command)._actions:
        if action.help is not SUPPRESS and "--help" not in action.option_strings:
            yield action


def option_entries(name: str, command: Callable[..., Any]) -> Iterator[str]:
    """Yield an entry for each word and option of a command, with an example."""
    for action in options(command):
        meaning = (action.help or "").replace("%%", "%")
        for character in ("<", "{", "*"):
            meaning = meaning.replace(character, "\\" + character)
        entry = f"{heading(action)}\n:   {meaning}"
        if action.option_strings:
            example = textwrap.indent(f"```text\n{option_example(name, action)}\n```", "    ")
            entry += f"\n\n{example}"
        yield entry


def heading(action: Action) -> str:
    """Return an option as one types it: ``-o NAME, --out NAME``."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest.upper()}`"
    kind = "|".join(action.choices or ()) or action.metavar or action.dest.upper()
    value = "" if action.nargs == 0 else f" {kind}"
    if action.nargs == "?":
        value = f" [{value.strip()}]"
    return ", ".join(f"`{option}{value}`" for option in action.option_strings)


def option_example(name: str, action: Action) -> str:
    """Return a line, or a cell, that uses an option."""
    option = action.option_strings[-1]
    typed = option if action.nargs == 0 else f"{option} {sample(action)}"
    if not name:
        if option == "--continue":  # the image is in the chat already
            return f"%%glm4v {typed}\nAnd the square?"
        body = "" if option == "--file" else f"\n{QUESTION}"
        line = OTHER_LINES.get((name, option), IMAGE)
        return " ".join(part for part in ("%%glm4v", line, typed) if part) + body
    line = OTHER_LINES.get((name, option), LINES.get(name, ""))
    if f"{option} " in line:  # the command's own example has it
        return f"%glm4v {name} {line}"
    if option == "--file":  # is the question
        line = IMAGE
    if option == "--continue":
        line = '"And the square?"'
    return " ".join(part for part in ("%glm4v", name, line, typed) if part)


def sample(action: Action) -> str:
    """Return a value that an option takes."""
    option = action.option_strings[-1]
    if option in VALUES:
        return VALUES[option]
    if TABLE[action.dest].example:
        return TABLE[action.dest].example
    if action.choices:
        return str(next(iter(action.choices)))
    kind = TABLE[action.dest].type
    if kind in _NUMBERS:
        return _NUMBERS[kind]
    return OF_A_KIND.get(str(action.metavar), "value")


def settings_page() -> str:
    """Return the page of all settings."""
    rows = "\n".join(
        f"| `{each.name}` | {each.value} | `{PREFIX}{each.name.upper()}` | {each.meaning} |"
        for each in Glm4v().table()
    )
    return (
        f"# Settings\n\n{ANATOMY}\n\n"
        f"{described(parser_of(COMMANDS['config']).description)}\n\n"
        f"| setting | default | environment | meaning |\n| --- | --- | --- | --- |\n{rows}\n\n"
        'A `model = "./folder"` in `pyproject.toml` is the folder beside that file. An empty '
        "environment variable counts as not set. `%glm4v config` shows where each value comes "
        "from.\n"
    )


def options_page() -> str:
    """Return the page with the whole table of options."""
    return (
        f"# All options\n\n{ANATOMY}\n\n"
        "What can be chosen, and where: in a cell or behind a command, as a setting, as an "
        "argument in Python, as a field of a request to "
        "[our own server](commands.md#server). All of these are made from this table; the last "
        "options, which nothing but a notebook has, from one of the same form.\n\n"
        "| option | in Python | value | unless given | where | meaning |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        + "".join(f"{option_row(each)}\n" for each in TABLE.values())
    )


def option_row(option: Option) -> str:
    """Return a row of the table of options."""
    commands = [each for each in option.who.commands if each != "every"]
    places = [
        *(f"[`{name}`](commands.md#{name})" for name in commands),
        *(["every command"] if "every" in option.who.commands else []),
        *(f"`{name}()`" for name in option.who.python),
        *(["[setting](settings.md)"] if option.who.setting else []),
        *(["request"] if option.who.request else []),
    ]
    usual = option.unset.strip(",") if option.allows_none else str(option.default)
    value = option.demand or ", ".join(option.choices) or option.metavar
    typed = ", ".join(f"`{flag}`" for flag in flags_of(option)) if option.who.commands else ""
    in_python = f"`{option.name}`" if option.name in OPTIONS else ""
    cells = (typed, in_python, value, usual, ", ".join(places), option.help)
    return f"| {' | '.join(escaped(cell) for cell in cells)} |"


def escaped(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return re.sub(r"([<{|*])", r"\\\1", text)


def errors_page() -> str:
    """Return the page with the tree of errors, drawn in `errors.py`, and a link to each."""
    tree = inspect.cleandoc(errors.__doc__ or "").split("\n\n")
    lines = [
        f"| [`{each.__name__}`]({each.__name__}.md) | {first_sentence(each)} |"
        for each in error_classes()
    ]
    return (
        "\n\n".join(
            [
                "# Errors",
                ERROR_DRAWN,
                "In a notebook an error is one line: what happened, where, and what to do next. "
                "The model, the conversation and your variables stay as they are. `--debug` shows "
                "the traceback. In Python all but the two interrupts are a `Glm4vError` with the "
                "attributes `what`, `hint`, `code` and `values`; its text speaks of Python, where "
                "that of a cell speaks of magics.",
                "**You have a message?** [Errors by message](messages.md) lists what can be "
                "said, with what to do next.",
                "\n".join(["| error | when |", "| --- | --- |", *lines]),
                "## The tree",
                *(
                    f"```text\n{textwrap.dedent(block)}\n```"
                    for block in tree
                    if block.startswith("  ")
                ),
            ]
        )
        + "\n"
    )


def error_classes() -> list[type[BaseException]]:
    """Return every public error."""
    found = (getattr(errors, name) for name in errors.__all__)
    return [each for each in found if isinstance(each, type)]


def first_sentence(each: type[BaseException]) -> str:
    """Return what a class says of itself in its first line."""
    return inspect.cleandoc(each.__doc__ or "").partition("\n")[0].replace("``", "`")
