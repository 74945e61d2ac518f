"""Every keyword of JSON Schema 2020-12 is enforced, or named as one that is not."""

from __future__ import annotations

import json
import logging

import golden
import pytest
from jsonschema import Draft202012Validator
from jsonschema_specifications import REGISTRY

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Request
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import grammars, local

pytest.importorskip("llguidance")

WHOLE = {"type": "integer"}
FORMATS = {
    "date": "2020-01-02", "date-time": "2020-01-02T03:04:05Z", "time": "03:04:05Z",
    "duration": "P1D", "email": "a@b.cd", "idn-email": "a@b.cd", "hostname": "a.b",
    "idn-hostname": "a.b", "ipv4": "1.2.3.4", "ipv6": "::1", "uri": "http://a.b",
    "uuid": "123e4567-e89b-12d3-a456-426614174000", "uri-reference": "a", "iri": "http://a.b",
    "iri-reference": "a", "uri-template": "a", "json-pointer": "/a", "relative-json-pointer": "0",
    "regex": "a",
}  # fmt: skip
"""Those of JSON Schema 2020-12, each with a text that follows it; ``\\`` follows none."""

# Keyword, schema, a value that follows it, and one that does not.
CASES = [
    ("type", WHOLE, 1, "a"),
    ("enum", {"enum": [1, "a"]}, "a", 2),
    ("const", {"const": 1}, 1, 2),
    ("multipleOf", {"type": "integer", "multipleOf": 3}, 3, 4),
    ("maximum", {"type": "integer", "maximum": 5}, 5, 6),
    ("exclusiveMaximum", {"type": "integer", "exclusiveMaximum": 5}, 4, 5),
    ("minimum", {"minimum": 5}, 5, 4),
    ("exclusiveMinimum", {"type": "integer", "exclusiveMinimum": 5}, 6, 5),
    ("maxLength", {"type": "string", "maxLength": 2}, "ab", "abc"),
    ("minLength", {"type": "string", "minLength": 2}, "ab", "a"),
    ("pattern", {"pattern": "^a+$"}, "aa", "b"),
    ("maxItems", {"type": "array", "maxItems": 1}, [1], [1, 2]),
    ("minItems", {"type": "array", "minItems": 1}, [1], []),
    ("uniqueItems", {"type": "array", "uniqueItems": True}, [1, 2], [1, 1]),
    ("contains", {"type": "array", "contains": {"const": 1}}, [1], [2]),
    ("maxContains", {"contains": {"const": 1}, "maxContains": 1}, [1, 2], [1, 1]),
    ("minContains", {"contains": {"const": 1}, "minContains": 2}, [1, 1], [1, 2]),
    ("maxProperties", {"type": "object", "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 2}),
    ("minProperties", {"type": "object", "minProperties": 1}, {"a": 1}, {}),
    ("required", {"type": "object", "required": ["a"]}, {"a": 1}, {"b": 1}),
    ("dependentRequired", {"dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 1}, {"a": 1}),
    ("dependentSchemas", {"dependentSchemas": {"a": {"required": ["b"]}}}, {"b": 1}, {"a": 1}),
    ("dependencies", {"dependentRequired": {"a": ["b"]}, "dependencies": {}}, {"b": 1}, {"a": 1}),
    ("prefixItems", {"type": "array", "prefixItems": [WHOLE]}, [1], ["a"]),
    ("items", {"items": WHOLE}, [1], ["a"]),
    ("properties", {"properties": {"a": WHOLE}}, {"a": 1}, {"a": "b"}),
    ("patternProperties", {"patternProperties": {"^a": WHOLE}}, {"ab": 1}, {"ab": "b"}),
    ("additionalProperties", {"additionalProperties": WHOLE}, {"a": 1}, {"a": "b"}),
    ("propertyNames", {"propertyNames": {"pattern": "^a"}}, {"a": 1}, {"b": 1}),
    ("unevaluatedItems", {"prefixItems": [{}], "unevaluatedItems": False}, [1], [1, 2]),
    (
        "unevaluatedProperties",
        {"properties": {"a": {}}, "unevaluatedProperties": False},
        {"a": 1},
        {"b": 1},
    ),
    ("allOf", {"allOf": [WHOLE, {"minimum": 3}]}, 3, 2),
    ("anyOf", {"anyOf": [WHOLE, {"type": "null"}]}, 3, "a"),
    ("oneOf", {"oneOf": [WHOLE, {"type": "null"}]}, 3, "a"),
    ("oneOf", {"oneOf": [WHOLE, {"type": "number"}]}, 3.5, 3),
    ("not", {"not": WHOLE}, "a", 1),
    ("if", {"if": WHOLE, "then": {"minimum": 3}}, 3, 2),
    ("then", {"if": WHOLE, "then": {"minimum": 3}}, 3, 2),
    ("else", {"if": WHOLE, "else": {"type": "null"}}, 3, "a"),
    ("$ref", {"$ref": "#/$defs/x", "$defs": {"x": WHOLE}}, 1, "a"),
    ("$defs", {"$ref": "#/$defs/x", "$defs": {"x": WHOLE}}, 1, "a"),
    ("definitions", {"$ref": "#/definitions/x", "definitions": {"x": WHOLE}}, 1, "a"),
    ("$anchor", {"$ref": "#x", "$defs": {"x": {"$anchor": "x", **WHOLE}}}, 1, "a"),
    ("$dynamicRef", {"$dynamicRef": "#x", "$defs": {"x": {"$dynamicAnchor": "x", **WHOLE}}}, 1, ""),
    *((f"format: {name}", {"type": "string", "format": name}, text, "\\")
      for name, text in FORMATS.items()),
]  # fmt: skip
SILENT = {
    "$id": "https://a.example/s", "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$comment": "x", "$vocabulary": {}, "$dynamicAnchor": "a", "title": "x", "description": "x",
    "default": 1, "deprecated": True, "readOnly": True, "writeOnly": True, "examples": [1],
    "contentEncoding": "base64", "contentMediaType": "text/plain", "contentSchema": {},
    "format": "unknown",
}  # fmt: skip
"""Keywords that demand nothing of a value; of formats only those with a name do."""


def takes(schema, value):
    """Whether the value can be written while the schema is followed."""
    return takes_text(schema, json.dumps(value))


def takes_text(schema, text):
    guide = grammars.Grammars(ByBytes(), 257, [256]).guide(Constraint(schema=json.dumps(schema)))
    for byte in text.encode():
        if not guide.allowed()[byte]:
            return False
        guide.take(byte)
    return bool(guide.allowed()[256])


class ByBytes:
    """Stands in for a tokenizer that has a token for each byte."""


@pytest.fixture(autouse=True)
def by_bytes(monkeypatch):
    from llguidance import LLTokenizer

    monkeypatch.setattr(
        "llguidance.hf.from_tokenizer", lambda *_, **__: LLTokenizer("byte", n_vocab=257)
    )


def left_out(schema):
    return grammars.left_out(Constraint(schema=json.dumps(schema)))


@pytest.mark.parametrize(
    "layout",
    [{"separators": (",", ":")}, {}, {"indent": 2}, {"indent": 4}, {"indent": "\t"}],
    ids=["compact", "Python's", "two spaces", "four spaces", "tabs"],
)
def test_json_is_laid_out_as_a_model_has_learnt_it(layout):
    schema = {"type": "array", "items": {"type": "object"}}
    for value in (
        [{"bbox_2d": [90, 110], "label": "a, b: c"}, {}],
        [{"a": [[], [1, {"b": None}]]}],
    ):
        assert takes_text(schema, json.dumps(value, **layout))


@pytest.mark.parametrize("blank", ["  ", "\n\n", "\n" + 33 * " ", "\r", "\x0b"])
def test_no_whitespace_goes_on_for_ever(blank):
    for text in (f"[{blank}1]", f"[1,{blank}2]", f"[1{blank}]", f'[{{"a":{blank}1}}]'):
        assert not takes_text({"type": "array"}, text)


def test_all_keywords_are_looked_at():
    known = {
        keyword
        for resource in REGISTRY
        if "2020-12/meta/" in resource
        for keyword in REGISTRY.contents(resource)["properties"]
    } | set(REGISTRY.contents("https://json-schema.org/draft/2020-12/schema")["properties"])
    assert len(known) > 50
    looked_at = {keyword for keyword, *_ in CASES} | SILENT.keys()
    assert known - looked_at <= {"$recursiveAnchor", "$recursiveRef"}  # of 2019-09


@pytest.mark.parametrize(("keyword", "schema", "right", "wrong"), CASES)
def test_a_keyword_is_followed_or_named(keyword, schema, right, wrong):
    if not keyword.startswith("format"):
        validator = Draft202012Validator(schema)
        assert validator.is_valid(right)
        assert not validator.is_valid(wrong)
    assert takes(schema, right)
    assert takes(schema, wrong) == (keyword in left_out(schema))


@pytest.mark.parametrize(("keyword", "value"), SILENT.items())
def test_keywords_that_demand_nothing_are_not_named(keyword, value):
    schema = {keyword: value, "type": "integer"}
    assert left_out(schema) == ()
    assert takes(schema, 1)
    assert not takes(schema, "a")


def test_all_that_is_not_followed_is_named_wherever_it_stands():
    schema = {
        "type": "object",
        "properties": {
            "not": {"type": "string", "format": "iri"},  # a name here, not the keyword
            "contains": WHOLE,
            "a": {"oneOf": [WHOLE, {"type": "number"}]},
            "b": {"type": "array", "uniqueItems": True, "items": {"not": {"const": 1}}},
            "c": {"uniqueItems": False, "enum": [{"if": True}]},
        },
    }
    assert left_out(schema) == ("not", "oneOf", "uniqueItems", "format: iri")
    del schema["properties"]["b"]["items"]
    assert left_out(schema) == ("oneOf", "uniqueItems", "format: iri")


def test_a_keyword_where_no_schema_should_be_is_named_once():
    assert left_out({"$ref": "#/enum/0", "enum": [{"not": True}]}) in ((), ("not",))
    assert left_out(True) == left_out({"enum": [1]}) == ()


def test_it_is_said_once_when_it_is_asked(caplog, monkeypatch):
    monkeypatch.undo()
    engine = local.load(resolve(golden.CHECKPOINT), keep=0)
    items = {"type": "string", "format": "iri"}
    schema = json.dumps({"type": "array", "uniqueItems": True, "maxItems": 2, "items": items})
    asked = Request(golden.conversation("text_only"), Sampling(4), Constraint(schema=schema))
    with caplog.at_level(logging.WARNING, logger="glm4v_magic"):
        list(engine.stream([asked, asked]))
        list(engine.stream([asked]))
    assert [record.getMessage() for record in caplog.records] == [
        "The model does not keep to uniqueItems of the schema while it writes; a session checks "
        "the complete answer for that.",
        "The model does not keep to format: iri of the schema, and nobody checks it.",
    ]
