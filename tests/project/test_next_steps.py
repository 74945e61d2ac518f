"""Errors, notes and findings: every code has words in every front end, and speaks its language."""

from __future__ import annotations

import ast
import inspect
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import NamedTuple

import pandas as pd
import pytest
from traitlets import TraitError

import glm4v_magic
from glm4v_magic.calls.compared import Column, ComparedAnswers
from glm4v_magic.core import errors
from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.core.errors import (
    ComparisonInterrupted,
    GenerationInterrupted,
    Glm4vError,
    ImageError,
    LoadInterrupted,
    MapInterrupted,
    OptionError,
)
from glm4v_magic.core.options import OPTIONS
from glm4v_magic.core.remarks import COMMON, PYTHON, Remark, remark, worded
from glm4v_magic.core.rows import AnsweredRow, Progress
from glm4v_magic.core.typed_options import argument_of, flags_of
from glm4v_magic.doctor import gather
from glm4v_magic.mapping.items import items_of
from glm4v_magic.mapping.results import result_of
from glm4v_magic.notebook import settings
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import ANSWER_OPTIONS, options_in
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.next_steps import CELL, in_cell
from glm4v_magic.planning.plan import plan
from glm4v_magic.server.command import main as serve
from glm4v_magic.server.next_steps import HTTP, in_http
from glm4v_magic.session.session import Session

PACKAGE = Path(glm4v_magic.__file__).parent
FRONT_ENDS = {"cell": CELL, "Python": PYTHON, "HTTP": HTTP}
TEMPLATES = [
    (front, code)
    for front, words in FRONT_ENDS.items()
    for code in sorted({**COMMON, **words.templates})
]
CLASSES = [
    each
    for name in errors.__all__
    if isinstance(each := getattr(errors, name), type) and issubclass(each, Glm4vError)
]


ROW = AnsweredRow(0, "row 0", "item", "?", Answer("yes", "?", "tiny", Usage(1, 1, 1), "stop"))


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
    return FRONT_ENDS[front].templates.get(code) or COMMON[code]


def fields(text: str) -> set[str]:
    found = set()
    for _, name, spec, _ in Formatter().parse(text):
        found |= {name} if name not in (None, "option", "both", "named", "process") else set()
        found |= fields(spec) if spec else set()
    return found


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
        known = {*words.templates, *COMMON}
        assert each.code in known, f"{front} has no words for {each}"
    assert each.values == VALUES[each.code], "one code, and other values elsewhere"


def test_no_front_end_has_words_for_what_nobody_tells():
    assert {code for _, code in TEMPLATES} <= VALUES.keys()


@pytest.mark.parametrize(("front", "code"), TEMPLATES)
def test_templates_are_filled_in_by_what_is_given(front, code):
    assert fields(template(front, code)) <= VALUES[code]
    assert said(front, code).strip()


def test_no_sentence_is_written_twice():
    tables = [COMMON, *(words.templates for words in FRONT_ENDS.values())]
    sentences = [sentence for table in tables for sentence in table.values()]
    assert sorted(sentences) == sorted(set(sentences))


def test_an_option_is_spelled_as_one_gives_it():
    fits = remark("shorter_context_fits", context=2048, fullness="90%")
    for words, option in ((PYTHON, "context=2048"), (CELL, "--context 2048")):
        assert worded(fits, words) == f"a context of 2,048 fits ({option}; fullest GPU 90%)"
    for words, option in ((PYTHON, 'quantize="4bit"'), (HTTP, "--quantize 4bit")):
        assert f"({option})" in worded(remark("four_bit"), words)
    both = remark(
        "four_bit_and_offloading_fit",
        **dict.fromkeys(("size", "before"), 1),
        away=1,
        fullness=1,
        at="",
    )
    for words, options in (
        (PYTHON, 'quantize="4bit", offload=True'),
        (CELL, "--quantize 4bit --offload"),
        (HTTP, "--quantize 4bit --offload"),
    ):
        assert f"({options}; fullest GPU" in worded(both, words)
    assert "(offload=True)" in said("Python", "offloading_fits")
    assert "(--offload)" in said("cell", "offloading_fits")


@pytest.mark.parametrize("code", sorted(VALUES))
def test_every_value_is_told_somewhere(code):
    assert VALUES[code] == set().union(*(fields(template(front, code)) for front in FRONT_ENDS))


@pytest.mark.parametrize("code", sorted(VALUES))
def test_only_a_cell_has_a_kernel(code):
    """Nobody else has cells, a notebook, or a kernel to restart."""
    for front in FRONT_ENDS.keys() - {"cell"}:
        assert not re.search(r"\b(kernel|cell|notebook)\b", said(front, code)), front


def test_what_is_restarted_is_named_by_who_says_it():
    again = Remark("install", {"command": "pip install torch"})
    assert [worded(again, words) for words in FRONT_ENDS.values()] == [
        "Run pip install torch, then restart the kernel.",
        "Run pip install torch, then restart Python.",
        "Run pip install torch, then restart the server.",
    ]


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("max_tokens", ["--max-tokens", "max_tokens", "max_tokens"]),
        ("device_map", ["--map", "device_map", "--map"]),
        ("max_memory", ["--max-memory", "max_memory", "--max-memory"]),
    ],
)
def test_an_option_is_named_as_it_is_given(name, spelled):
    """The server's own options are those of its command line, the others fields of a request."""
    error = OptionError(f"{name} is 0, but must be more.", "Ask.", option=name)
    said = [worded(error.text, words) for words in FRONT_ENDS.values()]
    assert said == [f"{each} is 0, but must be more. Ask." for each in spelled]
    assert str(error) == error.what + " Ask."
    error.what = "The plan says 0."
    assert in_cell(error) == "The plan says 0. Ask."


@pytest.mark.parametrize("code", sorted(VALUES))
def test_python_names_what_python_has(code):
    text = said("Python", code)
    assert not re.search(r"%|(?<!\w)--\w", text)
    for name in re.findall(r"session\.(\w+)", text):
        assert callable(getattr(Session, name)), name
    known = {name for name, option in OPTIONS.items() if option.who.python}
    for function in (Session.load, Session.ask, Session.map, plan, gather):
        known |= inspect.signature(function).parameters.keys()
    named = set(re.findall(r"\b(\w+)=", text)) | set(re.findall(r"(?<= )\((\w+)\)", text))
    assert named <= known | {"VALUE"}


@pytest.mark.parametrize("code", sorted(VALUES))
def test_a_cell_names_what_a_cell_has(code):
    text = said("cell", code)
    assert not re.search(r"\bsession\.|\b\w+=\w|gather\(|plan\(", text)
    for name in re.findall(r"%glm4v (\w+)", text):
        assert name in COMMANDS
    assert set(re.findall(r"%\w+", text)) <= {"%glm4v", "%config"}
    known = {flag for taken in (ANSWER_OPTIONS, *ARGUMENTS.values()) for flag in options_in(taken)}
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
        assert kind.code not in words.templates
        assert worded(error.text, words) == "It broke. Mend it."
    assert kind("It broke.", code="ask_the_hub").code == "ask_the_hub"


@pytest.mark.parametrize(
    ("interrupt", "code", "said"),
    [
        (
            GenerationInterrupted({}),
            "answer_interrupted",
            "what was said until then is in _; %glm4v continue carries it on.",
        ),
        (
            MapInterrupted(Progress((ROW,), 2, 1.0, 1, list)),
            "rows_interrupted",
            "1 of 2 rows are answered; they are in _. Run the cell again to go on.",
        ),
        (
            MapInterrupted(Progress((ROW,) * 1234, 2000, 1.0, 1, list)),
            "rows_interrupted",
            "1,234 of 2,000 rows are answered; they are in _. Run the cell again to go on.",
        ),
        (
            MapInterrupted(Progress((ROW,) * 1234, 1234, 1.0, 1, list)),
            "all_rows_interrupted",
            "all 1,234 rows are answered; they are in _.",
        ),
        (
            MapInterrupted(Progress((ROW,), 2, 1.0, 1, list, fresh=True)),
            "fresh_rows_interrupted",
            "1 of 2 rows are answered; they are in _. Run the cell without --fresh to go on.",
        ),
        (
            MapInterrupted(Progress((), 2, 1.0, 1, list)),
            "no_row_answered",
            "no row is answered. Run the cell again to go on.",
        ),
        (
            LoadInterrupted("demo"),
            "load_interrupted",
            "the load did not finish. demo was released to make room; the next question loads it "
            "again.",
        ),
        (
            ComparisonInterrupted(ComparedAnswers("What?", (Column("a"), Column("b")))),
            "comparison_interrupted",
            "0 of 2 models or settings have answered; what they said is in _.",
        ),
        (
            ComparisonInterrupted(ComparedAnswers("What?", (Column("a"), Column("b"))), "demo"),
            "comparison_interrupted_without_room",
            "0 of 2 models or settings have answered; what they said is in _. demo was released to "
            "make room; the next question loads it again.",
        ),
    ],
)
def test_interrupts_carry_a_code_and_values_too(interrupt, code, said):
    assert (interrupt.code, interrupt.text) == (code, Remark(code, interrupt.values))
    assert worded(interrupt.text, CELL) == said
    assert str(interrupt) == worded(interrupt.text, PYTHON)
    assert "%" not in str(interrupt)


def test_an_invalid_setting_is_worded_for_a_cell(monkeypatch):
    def refuse(name, value, label):
        raise OptionError("Refused.", code="ask_the_hub")

    mine = settings.Glm4v()
    monkeypatch.setattr(settings, "check", refuse)
    with pytest.raises(TraitError, match=r"Refused\. Ask with %glm4v doctor --hub\."):
        mine.temperature = 0.5


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ("cell", "--max-memory: Refused. Ask with %glm4v doctor --hub."),
        ("HTTP", "error: --max-memory: Refused. The hub is asked when"),
    ],
)
def test_a_value_that_cannot_be_read_is_worded_by_who_reads_it(front, said, monkeypatch, capsys):
    def refuse(text):
        raise OptionError("Refused.", code="ask_the_hub")

    option = replace(OPTIONS["max_memory"], read=refuse)
    if front == "HTTP":
        monkeypatch.setattr("glm4v_magic.server.command.of_command", lambda name: (option,))
        with pytest.raises(SystemExit):
            serve(["demo", "--max-memory", "1"])
        assert said in capsys.readouterr().err
        return
    parser = ArgumentParser()
    parser.add_argument(*flags_of(option), **argument_of(option))
    with pytest.raises(OptionError) as caught:
        parser.parse_args(["--max-memory", "1"])
    assert in_cell(caught.value).lower() == said.lower()


def test_the_errors_of_a_dataframe_are_worded_by_who_shows_it():
    table = pd.DataFrame({"a": [1]})
    failed = replace(ROW, answer=None, failure=Remark("ask_the_hub"))
    items = items_of(table, "df", column="a")
    for words in FRONT_ENDS.values():
        frame = result_of([ROW], [failed], items, words=words)
        assert list(frame.error) == [worded(Remark("ask_the_hub"), words)]


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
