"""The table of options is the only one: parser, settings, Python and server are made from it."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from shells import TINY
from traitlets.config import Config

import glm4v_magic
from glm4v_magic.calls.forms import form_of
from glm4v_magic.core import options
from glm4v_magic.core.errors import Glm4vError, OptionError
from glm4v_magic.core.model import DEMO
from glm4v_magic.core.options import OPTIONS, Sampling, check, of_command, of_python, taken
from glm4v_magic.core.placement import CPU_DTYPE, PlacementOptions
from glm4v_magic.core.python_options import accepts
from glm4v_magic.core.server_address import ServerAddress
from glm4v_magic.core.typed_options import argument_of, flags_of, read_text, typed
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.images import DEFAULT_LIMITS
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import ANSWER_OPTIONS, options_in, parse
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.magics import Glm4vMagics
from glm4v_magic.notebook.own_options import OWN
from glm4v_magic.notebook.settings import PREFIX, Glm4v, read
from glm4v_magic.planning.plan import DEFAULT_RESERVE
from glm4v_magic.server.command import parser as server_parser
from glm4v_magic.server.questions import read_question
from glm4v_magic.session.session import Session

FULL_WIDTH = str.maketrans("0123456789", "０１２３４５６７８９")

PACKAGE = Path(glm4v_magic.__file__).parent
PROGRAM = "python -m glm4v_magic.server"
LINES = {"cell": Glm4vMagics.glm4v, **COMMANDS}
TABLE = {**OPTIONS, **OWN}
VALUES = (
    -1, 0, 1, 2, 178, 179, 2**63 - 1, 2**63, 10**400, -0.5, 0.0, 0.5, 1.0, 1.5, 178.5,
    float("nan"), float("inf"), True, False, None, "", "x", "json", "fewest", "4bit", "float16",
    b"x", [], [1], (1, 2), (0,), {"vision": 0},
)  # fmt: skip

every_option = pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
every_option_of_both = pytest.mark.parametrize("option", TABLE.values(), ids=TABLE)


def serve_parser():
    return {flag: action for action in server_parser()._actions for flag in action.option_strings}


def parsers():
    """What reads each line: its options by every name they have."""
    lines = {"cell": ANSWER_OPTIONS, **ARGUMENTS}
    return {**{name: options_in(taken) for name, taken in lines.items()}, PROGRAM: serve_parser()}


def complaint(refuse, *arguments):
    """What is said of an input; ``None`` if it is taken."""
    try:
        refuse(*arguments)
    except Glm4vError as error:
        return str(error)
    return None


@every_option_of_both
def test_an_option_is_explained_and_somebody_has_it(option):
    assert option.help.endswith(".")
    assert option.demand or option.choices or option.type == "object"
    assert option.who.commands or option.who.python or option.who.setting
    assert complaint(option.check, option.default) is None
    if option.example and option.type != "object":
        parser = argparse.ArgumentParser()
        parser.add_argument(*flags_of(option), **argument_of(option))
        given = parser.parse_args([flags_of(option)[-1], option.example.strip('"')])
        option.check(typed(given, [option])[option.name])


@every_option_of_both
def test_the_lines_that_take_an_option_are_those_of_the_table(option):
    known = parsers()
    assert set(option.who.commands) <= {*known, "every"}
    for name, flags in known.items():
        if name == PROGRAM:
            has_it = option.name in OPTIONS and "serve" in option.who.commands
        else:
            has_it = not {name, "every"}.isdisjoint(option.who.commands)
        for flag in flags_of(option):
            is_there = flag in flags and flags[flag].dest == option.name
            assert is_there == has_it, (name, flag)
            if has_it:
                assert flags[flag].help
                assert name == "check" or flags[flag].help.startswith(
                    option.help.replace("%", "%%")
                )
                assert name == "check" or flags[flag].default in (None, False)


@pytest.mark.parametrize("name", parsers())
def test_a_line_takes_nothing_beside_the_tables(name):
    in_table = {flag for option in TABLE.values() for flag in flags_of(option)}
    assert set(parsers()[name]) - in_table <= {"-h", "--help"}


@every_option
@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value!r:.20}")
def test_settings_and_server_refuse_what_python_refuses(option, value, tmp_path, caplog):
    given = complaint(option.normal, value)
    said = given or complaint(check, option.name, option.normal(value))
    assert said is None or "\n" not in said
    if option.who.setting:
        settings = read({}, {}, tmp_path)
        settings.update_config(Config({"Glm4v": {option.name: value}}))
        assert caplog.messages == ([] if said is None else [said])
        if said is None:
            kept = float(value) if option.type == "float" and value is not None else value
            assert getattr(settings, option.name) == kept
    if option.who.request:
        body = {"messages": [{"role": "user", "content": "What?"}], option.name: value}
        asked = complaint(read_question, body, "m")
        # vLLM and its clients turn top_k off so; OpenAI's seeds begin below 0, and top_p at 0.
        theirs = {"top_k": (-1, 0), "seed": (-1,), "top_p": (0,)}.get(option.name, ())
        is_off = (type(value) is int or option.name == "top_p") and value in theirs
        is_off = is_off and not isinstance(value, bool)
        if option.name == "seed" and said is not None:
            said = said.replace("from 0 to", "from -2**63 to")
        assert asked == (None if value is None or is_off else said)
        if asked is None and not is_off:
            sampling = read_question(body, "m").requests[0].sampling
            expected = option.default if value is None else value
            assert getattr(sampling, option.name) == expected
    if option.name in PlacementOptions.__dataclass_fields__ and said is not None:
        assert complaint(lambda: PlacementOptions(**{option.name: value})) == said


@pytest.mark.parametrize(
    ("line", "option"),
    [
        pytest.param(line, option, id=f"{line} {option.name}")
        for option in OPTIONS.values()
        if option.type in ("int", "float") and option.read is None
        for line in option.who.commands
        if line != "serve"
    ],
)
def test_a_line_reads_a_number_as_what_python_takes(line, option):
    for text, kinds in (("3", "int float"), ("0.5", "float"), ("x", "")):
        if option.type in kinds.split():
            given = parse(LINES[line], [flags_of(option)[-1], text])
            assert typed(given, [option]) == {option.name: float(text)}
        else:
            with pytest.raises(
                OptionError, match=f"is {text!r}, but must be {re.escape(option.demand)}"
            ):
                parse(LINES[line], [flags_of(option)[-1], text])


@pytest.mark.parametrize(
    ("text", "seconds"), [("80", 80), ("1:20", 80), ("1:20.5", 80.5), ("1:00:02", 3602)]
)
def test_a_time_is_typed_as_clocks_show_it(text, seconds):
    assert parse(LINES["cell"], ["--from", text]).start == seconds


@pytest.mark.parametrize("text", ["x", "1:x", "1:2:3:4", "-1:20", "1.5:20", "", "1:-3", "nan"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(OptionError, match="is not a time, such as 80 or 1:20"):
        parse(LINES["cell"], [f"--from={text}"])


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {}),
        (["--thinking", "on"], {"thinking": True}),
        (["--thinking", "off"], {"thinking": False}),
        (["--fresh", "-c"], {"fresh": True, "follow_up": True}),
        (["--temperature", "0", "--format", "json"], {"temperature": 0.0, "format": "json"}),
    ],
)
def test_only_what_was_typed_is_passed_on(words, values):
    assert typed(parse(LINES["cell"], words), of_command("cell")) == values


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--max-memory", "20"], {"max_memory": 20.0}),
        (["--max-memory", "20,10.5"], {"max_memory": (20.0, 10.5)}),
        (["--pin", "head=cuda:1, layer.7=0"], {"pin": (("head", 1), ("layer.7", 0))}),
        (["--map", "map.json", "--offload"], {"device_map": "map.json", "offload": True}),
    ],
)
def test_a_load_is_passed_on_in_the_terms_of_python(words, values):
    assert typed(parse(LINES["load"], words), of_command("load")) == values


@every_option
def test_the_default_is_the_same_wherever_it_is_not_given(option, tmp_path):
    if option.who.setting:
        assert getattr(read({}, {}, tmp_path), option.name) == option.default
    if option.who.request:
        body = {"messages": [{"role": "user", "content": "What?"}]}
        assert getattr(read_question(body, "m").requests[0].sampling, option.name) == (
            option.default
        )
    for method in option.who.python:
        function = dry_run if method == "dry_run" else getattr(Session, method)
        parameters = inspect.signature(function).parameters
        assert option.name in parameters or "options" in parameters
        if option.name in parameters and option.default != ():
            assert parameters[option.name].default == option.default


def test_settings_are_those_of_the_table():
    assert set(Glm4v.names()) == {name for name, each in OPTIONS.items() if each.who.setting}
    for name in Glm4v.names():
        assert getattr(Glm4v, name).help == OPTIONS[name].help


def test_a_request_takes_the_fields_of_the_table():
    for name, option in OPTIONS.items():
        said = complaint(read_question, {name: "?", "messages": 3}, "m")
        # OpenAI's protocol has two of them in forms of its own.
        is_known = option.who.request or name in ("model", "logprobs")
        assert (f"does not know '{name}'" in said) is not is_known


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("context", "8192"),
        ("port", "8000"),
        ("temperature", "0.5"),
        ("max_memory", "20,10"),
        ("start", "1:20"),
        ("pin", "layer.7=1"),
        ("replicas", "2"),
    ],
)
def test_numbers_are_typed_in_plain_digits(name, text):
    option = OPTIONS[name]
    option.check(option.normal(read_text(option, text)))
    if name == "max_memory":  # a list, as of a Chinese keyboard: its commas and digits are taken
        assert read_text(option, text.translate(FULL_WIDTH)) == read_text(option, text)
        return
    for odd in (text.translate(FULL_WIDTH), re.sub(r"(\d)\b", r"0_\1", text)):
        with pytest.raises(OptionError):
            option.check(option.normal(read_text(option, odd)))


def test_no_option_is_declared_outside_of_the_tables(tmp_path):
    (tmp_path / "written_out.py").write_text('argument("-q", "--quiet")', "utf-8")
    assert declared_flags(tmp_path) == {"-q", "--quiet"}
    assert {each for each in declared_flags(PACKAGE) if each.startswith("-")} == set()


def test_no_name_is_in_both_tables():
    assert not OPTIONS.keys() & OWN.keys()


def declared_flags(folder):
    """The flags that are written out in calls of ``argument`` and ``add_argument``."""
    return {
        word.value
        for file in folder.rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(call, ast.Call)
        and getattr(call.func, "attr", getattr(call.func, "id", "")) in ("argument", "add_argument")
        for word in call.args
        if isinstance(word, ast.Constant)
    }


def test_defaults_that_are_decided_elsewhere_are_told_as_they_are():
    assert OPTIONS["reserve"].unset.startswith(f"{float(DEFAULT_RESERVE):.0%}".replace("%", " %"))
    assert OPTIONS["timeout"].unset == f"{ServerAddress('http://a/v1').timeout:g}"
    assert CPU_DTYPE in OPTIONS["dtype"].unset
    assert OPTIONS["model"].unset == DEMO
    rows = Session().load(TINY).engine.batch_size
    assert OPTIONS["batch_size"].unset.startswith(f"{rows}, but 1 of a large")
    assert OPTIONS["format"].unset == form_of().format
    assert (DEFAULT_LIMITS.megapixels, DEFAULT_LIMITS.download_seconds) == (
        OPTIONS["megapixels"].default,
        OPTIONS["download_seconds"].default,
    )


# One entry is all that a new option needs.

ENTRY = """\
    typical_p: float | None = option(
        None,
        "Keep the tokens that are the most typical.",
        _SAMPLED,
        "a number above 0 and at most 1",
        lambda value: 0 < value <= 1,
        metavar="P",
        unset=_OWN,
    )
"""
NEXT = "    repetition_penalty: float | None = option("
WITH_A_NEW_ENTRY = f"""\
import importlib.util, sys
spec = importlib.util.find_spec("glm4v_magic.core.options")
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
source = open(spec.origin, encoding="utf-8").read()
assert source.count({NEXT!r}) == 1
exec(compile(source.replace({NEXT!r}, {ENTRY + NEXT!r}), spec.origin, "exec"), vars(module))

from transformers import GenerationConfig

from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.python_options import accepts
from glm4v_magic.engines.sampling import call_config
from glm4v_magic.engines.server.question import body_of
from glm4v_magic.notebook.command_line import parse
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.completion import complete
from glm4v_magic.notebook.magics import Glm4vMagics
from glm4v_magic.notebook.settings import Glm4v, read
from glm4v_magic.server.openapi import document
from glm4v_magic.server.questions import read_question

cell = Glm4vMagics.glm4v
for line in (cell, COMMANDS["ask"], COMMANDS["retry"]):
    assert parse(line, ["--typical-p", "0.25"]).typical_p == 0.25
    assert "--typical-p P" in line.__doc__
assert [each.text for each in complete("%%glm4v cat.png --ty", {{}}).matches] == ["--typical-p"]
assert read({{}}, {{"GLM4V_TYPICAL_P": "0.25"}}).typical_p == 0.25
assert [row.name for row in Glm4v().table("typical_p")] == ["typical_p"]
body = {{"messages": [{{"role": "user", "content": "What?"}}], "typical_p": 0.25}}
assert read_question(body, "m").requests[0].sampling.typical_p == 0.25
request = document()["components"]["schemas"]["ChatRequest"]["properties"]
assert request["typical_p"]["description"].startswith("Keep the tokens that are the most typical.")


class Asked:
    @accepts("ask")
    def ask(self, text, **options):
        return module.taken(module.Sampling, options)


sampling = Asked().ask("What?", typical_p=0.25)
assert sampling.typical_p == 0.25
assert call_config(GenerationConfig(do_sample=True), sampling, 9).typical_p == 0.25
request = Request(Conversation((Message("user", "What?"),)), sampling)
assert body_of("m", request)["typical_p"] == 0.25
for refuse in (
    lambda: Asked().ask("What?", typical_p=2),
    lambda: read_question({{**body, "typical_p": 2}}, "m"),
):
    try:
        refuse()
    except OptionError as error:
        assert str(error) == "typical_p is 2, but must be a number above 0 and at most 1."
    else:
        raise AssertionError("2 was taken")
"""


def test_a_new_option_is_one_entry():
    done = subprocess.run(
        [sys.executable, "-c", WITH_A_NEW_ENTRY], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# How a method of Python has its options.


class Asked:
    @accepts("ask")
    def ask(self, text: str, images: object = (), *, on_side: int = 0, **options: object) -> object:
        """Ask.

        Args:
            text: the question.
            options: of the table,
                all of them.

        Raises:
            OptionError: if one of them makes no sense.
        """
        return options

    @accepts("load")
    def load(self, model: str | None = None, **options: object) -> object:
        return options


def test_a_method_sees_only_what_was_given():
    assert Asked().ask("What?", top_k=3, on_side=4) == {"top_k": 3}
    assert Asked().ask(text="What?", images="cat.png") == {}
    assert Asked().load(pin={"head": 0}, max_memory=[1, 2], gpus=None) == {
        "pin": (("head", 0),), "max_memory": (1, 2), "gpus": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"topk": 3}, r"^ask has no option 'topk'\. Did you mean top_k"),
        ({"on_sid": 3}, r"^ask has no option 'on_sid'\. Did you mean on_side\?$"),
        ({"gpus": "cpu"}, r"^ask has no option 'gpus'\. It is one of load\.$"),
        ({"zzz": 1}, r"^ask has no option 'zzz'\. There are max_tokens, temperature, "),
        ({"top_k": 0}, r"^top_k is 0, but must be a whole number of at least 1\.$"),
        ({"max_tokens": None}, r"^max_tokens is None, but must be a whole number"),
        ({"chat": 3}, r"^chat is 3, but must be a name\.$"),
        ({"format": "xml"}, r"^Unknown format 'xml'; there are markdown, text, json, code\.$"),
    ],
)
def test_a_method_refuses_what_the_table_does_not_have(given, said):
    with pytest.raises(OptionError, match=said):
        Asked().ask("What?", **given)


def test_the_signature_and_the_docstring_show_every_option():
    parameters = inspect.signature(Asked.ask).parameters
    assert list(parameters)[:4] == ["self", "text", "images", "on_side"]
    assert list(parameters)[4:] == [each.name for each in of_python("ask")]
    assert parameters["max_tokens"].default == Sampling().max_tokens
    assert parameters["min_p"].annotation == "float | None"
    assert parameters["min_p"].kind is inspect.Parameter.KEYWORD_ONLY
    described = inspect.getdoc(Asked.ask)
    assert "\n    max_tokens: Longest answer, in tokens. 512 unless given.\n" in described
    assert "    text: the question.\n    max_tokens:" in described
    assert "all of them" not in described
    assert described.endswith("OptionError: if one of them makes no sense.")
    assert max(map(len, (Asked.ask.__doc__ or "").splitlines())) <= 100


@pytest.mark.parametrize(
    "given", [{"choices": ["yes " * 400] * 2}, {"format": "x" * 999}, {"fps": ["x"] * 999}]
)
def test_a_long_value_that_is_refused_is_shown_in_short(given):
    with pytest.raises(OptionError, match=r"\.\.\.") as caught:
        Asked().ask("What?", **given)
    assert len(str(caught.value)) < 250


def test_a_group_takes_its_own_of_what_was_given():
    assert taken(Sampling, {"top_k": 3, "chat": "cats"}) == Sampling(top_k=3)


def test_nothing_of_the_notebook_is_said_below_it():
    """The words of the table go to Python and to the server, too."""
    source = textwrap.dedent(inspect.getsource(options))
    assert "%glm4v" not in source
    assert not any(f"--{name}" in source for name in ("over", "format", "continue", "chat"))
    assert PREFIX not in source
