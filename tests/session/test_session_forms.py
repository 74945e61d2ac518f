"""Answers of a given form from a session: choices, regular expressions, schemas."""

from __future__ import annotations

import contextlib
import json
import re

import golden
import jsonschema
import pandas as pd
import pytest
from following import read
from standins.speaker import Speaker

from glm4v_magic.core.errors import FormatError, OptionError
from glm4v_magic.core.events import Correcting
from glm4v_magic.session.session import Session

CHOICES = ["yes", "no", "yes please"]
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def loaded():
    session = Session().load(golden.CHECKPOINT)
    yield session
    session.unload()


@pytest.fixture
def session(loaded):
    loaded.forget_answers()
    return loaded


def test_choices_have_their_probabilities(session):
    answer = session.ask("Is it?", choices=CHOICES, **GREEDY)
    assert list(answer.choices) == CHOICES
    assert sum(answer.choices.values()) == pytest.approx(1)
    assert answer.text == max(answer.choices, key=answer.choices.get)
    assert (answer.format, answer.finish_reason) == ("markdown", "stop")
    assert session.conversation().messages[-1].complete


def test_a_regex_and_a_schema_are_followed(session):
    year = session.ask("When?", regex="(19|20)[0-9]{2}", **GREEDY)
    assert re.fullmatch("(19|20)[0-9]{2}", year.text)
    assert year.format == "text"
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"enum": [1, 2]}},
              "additionalProperties": False}  # fmt: skip
    answer = session.ask("What?", schema=schema, **GREEDY)
    jsonschema.validate(answer.value, schema)
    assert not answer.corrected


def test_other_forms_are_asked_again_and_the_same_is_not(session):
    items = ["a", "b"]
    first = session.map("{{item}}?", items, choices=CHOICES, **GREEDY)
    again = session.map("{{item}}?", items, choices=CHOICES, **GREEDY)
    assert [row.reused for row in again] == [True, True]
    assert [row.answer.choices for row in again] == [row.answer.choices for row in first]
    other = session.map("{{item}}?", items, regex="[ab]", **GREEDY)
    assert [row.reused for row in other] == [False, False]
    assert {row.text for row in other} <= {"a", "b"}


def test_a_map_has_a_column_of_probabilities(session):
    table = pd.Series(["a", "b", "c"], name="letter")
    frame = session.map("{{item}}?", table, choices=CHOICES, batch_size=2, **GREEDY)
    for letter, answer, share in zip(frame.letter, frame.answer, frame.probability, strict=True):
        alone = session.ask(f"{letter}?", choices=CHOICES, **GREEDY)
        assert answer == alone.text
        assert share == pytest.approx(alone.choices[answer], rel=1e-3)
    assert "probability" not in session.map("{{item}}?", table, max_tokens=2, **GREEDY)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"choices": []}, "at least two different texts"),
        ({"choices": ["yes"]}, "at least two different texts"),
        ({"choices": ["yes", ""]}, "none of them empty"),
        ({"choices": ["yes", "yes"]}, "different texts"),
        ({"choices": ["yes", " no"]}, "whitespace around"),
        ({"choices": ["yes", 1]}, "at least two different texts"),
        ({"choices": ["yes", "\ud800"]}, "at least two different texts"),
        ({"choices": "yes,no"}, "a list of"),
        ({"regex": ""}, "a regular expression"),
        ({"regex": "("}, "unclosed group"),
        ({"regex": "<b>("}, "unclosed group"),
        ({"choices": CHOICES, "regex": "a"}, "either choices or a regex"),
        ({"choices": CHOICES, "schema": {}}, "either choices or a schema"),
        ({"regex": "a", "format": "json"}, "With regex the format is text, not json"),
        ({"choices": CHOICES, "format": "code"}, "With choices the format is text, not code"),
        ({"schema": {"enum": [{1, 2}]}}, "is not JSON"),
    ],
)
def test_bad_forms_are_one_line_before_anything_is_loaded(options, said):
    session = Session()
    with pytest.raises(OptionError, match=re.escape(said)) as caught:
        session.ask("What?", **options)
    assert "\n" not in str(caught.value)
    assert session.engine is None


@pytest.mark.parametrize("schema", [False, {"$ref": "#"}, {"type": "string", "pattern": "(?=a)"}])
def test_a_schema_that_cannot_be_followed_is_refused_before_anything_is_loaded(schema):
    session = Session()
    with pytest.raises(OptionError, match="schema"):
        session.stream("What?", schema=schema, model=str(golden.CHECKPOINT)).follow()
    assert session.engine is None


def test_without_the_package_a_regex_is_refused_before_anything_is_loaded(without_llguidance):
    session = Session()
    with pytest.raises(OptionError, match="pip install llguidance"):
        session.ask("What?", regex="a", model=str(golden.CHECKPOINT))
    assert session.engine is None


@pytest.mark.parametrize(
    ("options", "wrong", "right", "asked"),
    [
        (
            {"choices": CHOICES},
            "Perhaps.",
            "no",
            "with one of these and nothing else: yes, no, yes",
        ),
        ({"regex": "[0-9]+"}, "Seven", "7", r"with nothing but a match of \[0-9\]\+"),
    ],
)
def test_what_an_engine_does_not_follow_is_corrected_once(options, wrong, right, asked):
    engine = Speaker((wrong, "stop"), (right, "stop"))
    told = []
    answer = read(Session(engine).stream("What?", **options), told.append)
    assert (answer.text, bool(answer.corrected), answer.choices) == (right, True, {})
    assert any(isinstance(event, Correcting) for event in told)
    assert re.search(asked, engine.requests[1].conversation.question)
    assert engine.requests[0].constraint == engine.requests[1].constraint
    engine = Speaker((wrong, "stop"), (wrong, "stop"))
    with pytest.raises(FormatError, match="answer"):
        Session(engine).ask("What?", **options)


OPEN = {"type": "object", "required": ["n"], "properties": {"n": {"pattern": "^[xy]{40}$"}}}


@pytest.mark.parametrize("form", [{"regex": "[xy]{40}"}, {"schema": OPEN}])
def test_what_followed_its_form_until_it_was_cut_off_is_not_asked_again(session, form):
    told = []
    with pytest.raises(FormatError, match=r"breaks off after 9 tokens\. It was cut") as caught:
        read(session.stream("What?", max_tokens=9, **form, **GREEDY), told.append)
    assert caught.value.answer.finish_reason == "length"
    assert not any(isinstance(event, Correcting) for event in told)
    for _ in range(2):  # asked, and from the store
        (row,) = session.map("{{item}}", ["What?"], max_tokens=9, **form, **GREEDY)
        assert row.error.startswith("The answer breaks off after 9 tokens. It was cut off")
        assert (row.answer.usage.new_tokens, row.answer.corrected) == (9, "")


def test_json_alone_is_an_object_or_a_list(session):
    engine = Speaker(("[1]", "stop"))
    assert Session(engine).ask("What?", format="json").value == [1]
    assert json.loads(engine.requests[0].constraint.schema) == {"type": ["object", "array"]}


NAMED = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("form", "begun", "rest", "format", "value"),
    [
        ({"schema": NAMED}, '{"a":', " 1}", "json", {"a": 1}),
        ({"format": "json"}, '{"a":', " 1}", "json", {"a": 1}),
        ({"regex": "[0-9]+ [a-z]+"}, "12", " ab", "text", None),
        ({"choices": ["yes", "no"]}, "", "no", "markdown", None),
        ({"format": "code"}, "```py\nx =", " 1\n```", "code", "x = 1"),
        ({}, "A", " cat.", "markdown", None),
    ],
)
def test_an_answer_is_carried_on_in_its_form(form, begun, rest, format, value, tmp_path):  # noqa: A002
    speaker = Speaker((begun, "length"), (rest, "stop"))
    session = Session(speaker)
    with contextlib.suppress(FormatError):
        session.ask("What?", chat="cats", **form)
    session.export_chat(tmp_path / "cats.json")
    assert session.import_chat(tmp_path / "cats.json") == "cats"
    session.reset()
    session.import_chat(tmp_path / "cats.json")
    whole = session.carry_on()
    assert speaker.requests[-1].constraint == speaker.requests[0].constraint
    assert (whole.text, whole.format, whole.value) == (begun + rest, format, value)
    assert session.conversation().partial is None
    assert not session.conversation().messages[-1].form


def test_another_form_counts_when_an_answer_is_carried_on():
    speaker = Speaker(('{"a":', "length"), (" 1} is it.", "stop"))
    session = Session(speaker)
    with pytest.raises(FormatError, match="carry it on"):
        session.ask("What?", format="json")
    whole = session.carry_on(format="text")
    assert (whole.format, whole.value) == ("text", None)
    assert speaker.requests[-1].constraint is None
