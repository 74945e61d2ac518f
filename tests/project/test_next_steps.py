"""Errors, notes and findings: every code has words in every front end, and speaks its language."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import NamedTuple

import pytest

import glm4v_magic
from glm4v_magic.core import errors
from glm4v_magic.core.errors import Glm4vError, ImageError, OptionError
from glm4v_magic.core.options import OPTIONS
from glm4v_magic.core.remarks import COMMON, PYTHON, Remark, remark, worded
from glm4v_magic.doctor import gather
from glm4v_magic.notebook.command_line import options_of
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.magics import Glm4vMagics
from glm4v_magic.notebook.next_steps import CELL, in_cell
from glm4v_magic.planning.plan import plan
from glm4v_magic.server.__main__ import main as serve
from glm4v_magic.server.next_steps import HTTP, in_http
from glm4v_magic.session.session import Session

PACKAGE = Path(glm4v_magic.__file__).parent
FRONT_ENDS = {"cell": CELL, "Python": PYTHON, "HTTP": HTTP}
TEMPLATES = [
    (front, code) for front, words in FRONT_ENDS.items() for code in sorted({**COMMON, **words})
]
CLASSES = [
    each
    for name in errors.__all__
    if isinstance(each := getattr(errors, name), type) and issubclass(each, Glm4vError)
]


class Raised(NamedTuple):
    """A place where something is told to the user by a code."""

    where: str
    code: str
    values: frozenset[str]


def told() -> Iterator[Raised]:
    """Every ``remark("code", value=...)`` and ``code="code", value=...`` of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            given = {each.arg: each.value for each in node.keywords if each.arg}
            is_remark = isinstance(node.func, ast.Name) and node.func.id == "remark"
            code = node.args[0] if is_remark else given.pop("code", None)
            if isinstance(code, ast.Constant) and isinstance(code.value, str):
                where = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                yield Raised(where, code.value, frozenset(given) - {"what", "hint"})


TOLD = list(told())
VALUES = {each.code: each.values for each in TOLD}


def template(front: str, code: str) -> str:
    words = FRONT_ENDS[front]
    return words[code] if code in words else COMMON[code]


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


class Sample:
    """A value that may be formatted as a number, as a text or as several."""

    def __format__(self, spec: str) -> str:
        return "VALUE"

    def __repr__(self) -> str:
        return "'VALUE'"


def said(front: str, code: str) -> str:
    return worded(Remark(code, dict.fromkeys(VALUES[code], Sample())), FRONT_ENDS[front])


def test_many_places_tell_something():
    """The search above finds what it is for."""
    assert len(TOLD) > 40
    assert {"ways_out", "gpus_not_here", "chat_not_begun"} <= VALUES.keys()


@pytest.mark.parametrize("each", TOLD, ids=lambda each: each.where)
def test_what_is_told_has_words_in_every_front_end(each):
    for front, words in FRONT_ENDS.items():
        assert each.code in words or each.code in COMMON, f"{front} has no words for {each}"
    assert each.values == VALUES[each.code], "one code, and other values elsewhere"


def test_no_front_end_has_words_for_what_nobody_tells():
    assert {code for _, code in TEMPLATES} <= VALUES.keys()


@pytest.mark.parametrize(("front", "code"), TEMPLATES)
def test_templates_are_filled_in_by_what_is_given(front, code):
    assert fields(template(front, code)) <= VALUES[code]
    assert said(front, code).strip()


@pytest.mark.parametrize("code", sorted(VALUES))
def test_every_value_is_told_somewhere(code):
    assert VALUES[code] == set().union(*(fields(template(front, code)) for front in FRONT_ENDS))


@pytest.mark.parametrize("code", sorted(VALUES))
def test_python_names_what_python_has(code):
    text = said("Python", code)
    assert not re.search(r"%|(?<!\w)--\w", text)
    for name in re.findall(r"session\.(\w+)", text):
        assert callable(getattr(Session, name)), name
    known = set(OPTIONS)
    for function in (Session.load, Session.ask, Session.map, plan, gather):
        known |= inspect.signature(function).parameters.keys()
    assert set(re.findall(r"\b(\w+)=", text)) <= known


@pytest.mark.parametrize("code", sorted(VALUES))
def test_a_cell_names_what_a_cell_has(code):
    text = said("cell", code)
    assert not re.search(r"\bsession\.|\b\w+=\w|gather\(|plan\(", text)
    for name in re.findall(r"%glm4v (\w+)", text):
        assert name in COMMANDS
    assert set(re.findall(r"%\w+", text)) <= {"%glm4v", "%config"}
    known = {
        flag for command in (Glm4vMagics.glm4v, *COMMANDS.values()) for flag in options_of(command)
    }
    assert set(re.findall(r"--[a-z][\w-]*", text)) <= known


def test_http_names_what_the_server_has(capsys):
    with pytest.raises(SystemExit):
        serve(["--help"])
    flags = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    assert "--offload" in flags
    for code in sorted(VALUES):
        text = said("HTTP", code)
        assert not re.search(r"%|\bsession\.|\b\w+=\w|gather\(|plan\(", text), text
        assert set(re.findall(r"--[a-z][\w-]*", text)) <= flags, text


@pytest.mark.parametrize("kind", CLASSES, ids=lambda each: each.__name__)
def test_every_error_has_a_code_of_its_own_that_needs_no_words(kind):
    assert sum(other.code == kind.code for other in CLASSES) == 1
    error = kind("It broke.", "Mend it.")
    assert (error.code, error.values) == (kind.code, {})
    for words in FRONT_ENDS.values():
        assert kind.code not in words
        assert worded(error.text, words) == "It broke. Mend it."
    assert kind("It broke.", code="ask_the_hub").code == "ask_the_hub"


def test_an_error_is_worded_by_who_shows_it():
    error = ImageError("photos is a folder.", code="folder_of_images", kinds="It holds *.png (3).")
    assert str(error) == "photos is a folder. It holds *.png (3). session.map asks about each."
    assert in_cell(error) == (
        "photos is a folder. It holds *.png (3). The option --over asks about each."
    )
    assert in_http(error) == (
        "photos is a folder. It holds *.png (3). Send each in a request of its own."
    )


def test_advice_is_taken_over_with_its_values():
    error, other = OptionError("Wrong."), ImageError("Bad.", "Try.", code="ask_the_hub", a=1)
    error.advise_like(other)
    assert (error.what, error.hint, error.code, error.values) == (
        "Wrong.", "Try.", "ask_the_hub", {"a": 1},
    )  # fmt: skip
    error.advise_like(ImageError("Bad.", "Look."))
    assert (error.hint, error.code, error.values) == ("Look.", OptionError.code, {})
    error.advise_like(remark("more_gpus"))
    assert str(error) == "Wrong. use more GPUs"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "Nothing is loaded now; use more GPUs."),
        (2, "Nothing is loaded now; use more GPUs or use more GPUs."),
        (3, "Nothing is loaded now; use more GPUs, use more GPUs or use more GPUs."),
    ],
)
def test_several_ways_are_joined(count, text):
    ways = (remark("more_gpus"),) * count
    assert worded(remark("loading_ran_out", ways=ways), PYTHON) == text


def test_what_is_in_a_value_is_no_template():
    error = ImageError("x.", code="folder_of_images", kinds="{0.__class__} {other}")
    assert "{0.__class__} {other}" in in_cell(error)
