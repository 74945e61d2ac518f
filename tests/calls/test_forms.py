"""JSON and code out of what a model says."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from glm4v_magic.calls.forms import (
    check_schema,
    correction,
    find_code,
    find_json,
    form_of,
    violation,
)
from glm4v_magic.core.errors import FormatError, OptionError
from glm4v_magic.engines import grammars

COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer"}},
    "required": ["colour"],
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ("  [1, 2]\n", [1, 2]),
        ("true", True),
        ('"red"', "red"),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('Here it is:\n~~~\n[{"a": 1}]\n~~~\nDone.', [{"a": 1}]),
        ('```json\n{"a": "```"}\n', {"a": "```"}),
        ('Of course! {"a": {"b": [1]}} as you asked.', {"a": {"b": [1]}}),
        ("See {this}: [3]", [3]),
        ('{"a": NaN} and {"a": 1}', {"a": 1}),
        ('{"颜色": "红"}', {"颜色": "红"}),
    ],
)
def test_json_is_found_wherever_models_put_it(text: str, value: object):
    assert find_json(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The circle is red.",
        "{a: 1}",
        "[" * 100_000,
        "NaN",
        "1e999",
        '{"a": [-1e999]}',  # Infinity, once it is read
        '{"a": [1], "b":',
        "[[], [" + "1, " * 100_000,
    ],
)
def test_no_json_is_said(text: str):
    with pytest.raises(FormatError, match="holds no JSON"):
        find_json(text)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"colour": "red"}, None),
        ({"colour": "red", "count": 2, "more": None}, None),
        ({}, "'colour' is a required property"),
        ({"colour": "green"}, "at colour: 'green' is not one of"),
        ({"colour": "red", "count": "2"}, "at count: '2' is not of type 'integer'"),
        ([], r"\[\] is not of type 'object'"),
    ],
)
def test_what_departs_from_a_schema_is_said_with_its_place(value: object, said: str | None):
    found = violation(value, COLOUR)
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(said, found)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("colour", "is an object, not str"),
        (dict, "is an object, not type"),
        (None, "is an object, not NoneType"),
        ({"type": "colour"}, "is not a JSON Schema: at type: 'colour' is not valid"),
        ({"required": "colour"}, "is not a JSON Schema: at required"),
    ],
)
def test_a_schema_that_is_none_is_refused(schema: object, said: str):
    with pytest.raises(OptionError, match=said):
        check_schema(schema)


def test_a_pydantic_model_is_its_schema():
    class Colour(BaseModel):
        colour: str

    assert check_schema(Colour) == Colour.model_json_schema()


def test_a_schema_never_reaches_the_network():
    with pytest.raises(
        OptionError, match=r"refers to .https://example\.org/s\.json., which is not"
    ):
        violation({}, check_schema({"$ref": "https://example.org/s.json"}))


def test_a_reference_that_leads_nowhere_is_quoted_as_written():
    with pytest.raises(OptionError, match="refers to '#/x', which is not"):
        violation({}, {"$ref": "#/x"})


def test_long_values_do_not_fill_the_page():
    assert len(violation({"colour": "x" * 10_000}, COLOUR) or "") < 250


def test_the_correction_names_the_fault():
    assert "at count: too many" in correction("at count: too many")


@pytest.mark.parametrize(
    ("text", "code", "language"),
    [
        ("```python\nx = 1\n```", "x = 1", "python"),
        ("Try:\n```\na\n```\nthen\n~~~Python\nb\n~~~", "a\n\nb", ""),
        ("```py\nx = '''\n~~~\n'''\n```", "x = '''\n~~~\n'''", "py"),
        ("```python\nnever ends", "never ends", "python"),
        ("````\n```\ninner\n```\n````", "```\ninner\n```", ""),
    ],
)
def test_code_is_what_stands_in_fences(text: str, code: str, language: str):
    assert find_code(text) == (code, language)


def test_no_code_is_said():
    with pytest.raises(FormatError, match="no code block"):
        find_code("x = 1")


NEXT = {"type": "object", "properties": {"next": {"$ref": "#/$defs/m"}}, "required": ["next"]}
NODE = {"$defs": {"n": NEXT, "m": {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 2}}}
OLDER = {"$schema": "http://json-schema.org/draft-07/schema#"}
SELF = {"$ref": "#"}
ENDLESS = [
    SELF,
    {"type": "array", "items": SELF, "minItems": 1},
    {**OLDER, "type": "array", "items": [{"type": "null"}, SELF], "minItems": 2},
    {"type": "array", "prefixItems": [SELF], "minItems": 1},
    {"type": "array", "prefixItems": [{}], "items": SELF, "minItems": 2},
    {"type": "object", "properties": {"a": SELF}, "required": ["a"]},
    {"type": "object", "additionalProperties": SELF, "required": ["a"]},
    {**NODE, "$ref": "#/$defs/n"},
    {**NODE, "type": "array", "minItems": 1, "items": {"$ref": "#/%24defs/n"}},
    {"anyOf": [{"type": "array", "items": SELF, "minItems": 1}, SELF]},
    {"allOf": [{"type": "array"}, {"type": "array", "items": SELF, "minItems": 1}]},
    {"$defs": {"a/b": {"$ref": "#/$defs/a~1b"}}, "$ref": "#/$defs/a~1b"},
    {"type": ["array", "object"], "items": SELF, "minItems": 1, "required": ["a"],
     "additionalProperties": SELF},
]  # fmt: skip
ENDING = [
    True,
    {"type": "array", "items": SELF},
    {**OLDER, "type": "array", "items": [{}, SELF], "minItems": 1},
    {"type": "array", "prefixItems": [{}, SELF], "minItems": 1},
    {"type": "object", "properties": {"a": SELF}},
    {"type": "object", "properties": {"a": SELF, "b": {}}, "required": ["b"]},
    {"type": "object", "patternProperties": {"a": {}}, "additionalProperties": SELF,
     "required": ["a"]},
    {"anyOf": [{"type": "null"}, {"type": "array", "items": SELF, "minItems": 1}]},
    {"type": ["array", "null"], "items": SELF, "minItems": 1},
    {"items": SELF, "minItems": 1},
    {"const": [], "type": "array", "items": SELF, "minItems": 1},
    {**NODE, "type": "string"},
    {"properties": {"$ref": {"type": "string"}}, "required": ["$ref"], "type": "object"},
    {"$ref": "#/nowhere"},
    {"type": "array", "minItems": 1e300},
    {"type": "array", "minItems": 10**9, "items": {"type": "null"}},
    {"$ref": "http://example.org/#"},
    {"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 1, "$defs": {"x": {}}},
]  # fmt: skip


@pytest.mark.parametrize("schema", ENDLESS, ids=str)
def test_a_schema_that_no_finite_json_follows_is_one_clear_line(schema):
    with pytest.raises(OptionError, match="JSON that follows the schema never ends") as caught:
        check_schema(schema)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schema", ENDING, ids=str)
def test_recursive_schemas_that_can_end_are_taken(schema):
    assert check_schema(schema) == schema


def test_a_regex_that_is_no_text_is_one_clear_line():
    with pytest.raises(OptionError, match="must be a regular expression"):
        form_of(regex="\ud800")


def test_many_references_are_followed_together():
    count = 300
    ring = {str(n): {"type": "array", "minItems": 1,
                     "items": {"anyOf": [{"$ref": f"#/$defs/{(n + step) % count}"}
                                         for step in (1, 7, 50)]}}
            for n in range(count)}  # fmt: skip
    with pytest.raises(OptionError, match="never ends"):
        check_schema({"$defs": ring, "$ref": "#/$defs/0"})
    ring["299"] = {"type": "null"}
    assert check_schema({"$defs": ring, "$ref": "#/$defs/0"})


def test_a_schema_that_is_nested_too_deeply_is_one_clear_line():
    deep = {"type": "array"}
    for _ in range(100):
        deep = {"type": "array", "minItems": 1, "items": deep}
    assert check_schema(deep)
    for _ in range(400):
        deep = {"type": "array", "minItems": 1, "items": deep}
    with pytest.raises(OptionError, match="nested too deeply"):
        check_schema(deep)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"regex": "a{100000}"}, "The regex cannot be followed: it is too large."),
        ({"regex": "a$b"}, "The regex cannot be followed: it uses look-around, "),
        ({"regex": r"\bword"}, "The regex cannot be followed: it uses look-around, "),
        ({"schema": {"pattern": "(?=a)b"}}, "The schema cannot be followed: it uses look-around, "),
        ({"schema": False}, "No answer follows the schema: it allows no value."),
        ({"schema": {"enum": []}}, "No answer follows the schema: it allows no value."),
        ({"schema": {"type": "string", "minLength": 5, "maxLength": 2}}, "No answer follows the "),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_followed_is_refused_in_our_words(form, said):
    pytest.importorskip("llguidance")
    with pytest.raises(OptionError) as caught:
        grammars.require(form_of(**form).constraint)
    assert str(caught.value).startswith(said)
