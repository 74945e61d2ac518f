"""Every option and command is explained where users look."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import ANSWER_OPTIONS, options_in
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.magics import Glm4vMagics

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = Glm4vMagics.glm4v.__doc__

FUNCTIONS = {"": Glm4vMagics.glm4v, **COMMANDS}
OPTIONS = [
    pytest.param(name, action, id=f"{name} {action.option_strings[-1]}".strip())
    for name, taken in {"": ANSWER_OPTIONS, **ARGUMENTS}.items()
    for action in {id(action): action for action in options_in(taken).values()}.values()
]


def mentions(text, option):
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


def test_there_are_options():
    assert len(OPTIONS) > 50


@pytest.mark.parametrize(("name", "action"), OPTIONS)
def test_an_option_is_in_the_help_of_its_command(name, action):
    assert action.help
    for option in action.option_strings:
        assert mentions(FUNCTIONS[name].__doc__, option), f"{option} is not in %glm4v help {name}"


@pytest.mark.parametrize(("name", "action"), OPTIONS)
def test_an_option_is_in_a_table_of_the_readme(name, action):
    tables = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    for option in action.option_strings:
        assert mentions(tables, option), f"no table of README.md has {option} of %glm4v {name}"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("help", "status")])
def test_a_command_is_on_the_page_and_in_the_readme(name):
    assert mentions(PAGE, f"%glm4v {name}")
    assert f"| `%glm4v {name}" in README


def test_these_tests_would_notice():
    assert not mentions("--top-kk and a--top-k", "--top-k")
    assert mentions("a `--top-k K` b", "--top-k")
