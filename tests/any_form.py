"""Random JSON Schemas and regular expressions, each with short answers; the same for each seed."""

from __future__ import annotations

import random
from typing import Any

WORDS = ("red", "blue", "a b", "naïve", "圆", "<b>", '"', "\\", "7", "")


def schema(seed: int) -> dict[str, Any]:
    """Return a schema that a short text can follow."""
    return _schema(random.Random(seed), 2)


def _schema(draw: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_enum, _const, _integer, _string, _pattern, _simple, _number]
    if depth:
        kinds += [_array, _object, _either, _tuple] * 2
    return draw.choice(kinds)(draw, depth)


def _enum(draw: random.Random, _: int) -> dict[str, Any]:
    return {"enum": draw.sample([*WORDS, 1, 2.5, None, True, [1], {"a": 1}], draw.randint(1, 5))}


def _const(draw: random.Random, _: int) -> dict[str, Any]:
    return {"const": draw.choice([*WORDS, 0, -3, False])}


def _integer(draw: random.Random, _: int) -> dict[str, Any]:
    low = draw.randint(-1000, 1000)
    return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 500)}


def _number(draw: random.Random, _: int) -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "exclusiveMaximum": 1}


def _string(draw: random.Random, _: int) -> dict[str, Any]:
    low = draw.randint(0, 2)
    return {"type": "string", "minLength": low, "maxLength": low + draw.randint(0, 4)}


def _pattern(draw: random.Random, _: int) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{_regex(draw, 1)}$"}


def _simple(draw: random.Random, _: int) -> dict[str, Any]:
    return {"type": draw.choice(["boolean", "null", ["boolean", "null"]])}


def _array(draw: random.Random, depth: int) -> dict[str, Any]:
    low = draw.randint(0, 2)
    items = _schema(draw, depth - 1)
    return {"type": "array", "items": items, "minItems": low, "maxItems": low + 1}


def _tuple(draw: random.Random, depth: int) -> dict[str, Any]:
    items = [_schema(draw, depth - 1) for _ in range(2)]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": 2}


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample([name for name in WORDS if name], draw.randint(0, 3))
    return {
        "type": "object",
        "properties": {name: _schema(draw, depth - 1) for name in names},
        "required": [name for name in names if draw.random() < 0.6],
        "additionalProperties": False,
    }


def _either(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_schema(draw, depth - 1) for _ in range(2)]}


def regex(seed: int) -> str:
    """Return a regular expression with short matches, the same to Python and to Rust."""
    return _regex(random.Random(seed), 3)


def _regex(draw: random.Random, depth: int) -> str:
    if not depth:
        return draw.choice(
            ["a", "[a-f]", "[0-9]", "[^a-z\\s\\x1c-\\x1f]", "é", "圆", "\\.", "(?:yes|no)", "x"]
        )
    one, other = _regex(draw, depth - 1), _regex(draw, depth - 1)
    low = draw.randint(0, 2)
    return draw.choice(
        [
            f"{one}{other}",
            f"(?:{one}|{other})",
            f"(?:{one}){{{low},{low + 2}}}",
            f"(?:{one})?{other}",
        ]
    )
