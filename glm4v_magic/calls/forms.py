"""Answers in a given format: JSON, with or without a schema, and code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from glm4v_magic.core.errors import FormatError, OptionError
from glm4v_magic.core.options import FORMATS, Format, check

__all__ = [
    "Form",
    "check_schema",
    "correction",
    "find_code",
    "find_json",
    "form_of",
    "violation",
]

# A fence of at least three marks, its language, the code, and the same fence or the end.
_FENCED = re.compile(
    r"^[ ]{0,3}(?P<fence>`{3,}|~{3,})[ ]*(?P<language>[^\s`]*)[^\n`]*\n"
    r"(?P<code>.*?)(?:^[ ]{0,3}(?P=fence)[`~]*[ ]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)

_OPENING = re.compile(r"[{\[]")
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Form:
    """The format that an answer must follow.

    Attributes:
        format: as in `AnswerForm`.
        schema: JSON Schema that the JSON has to follow.
    """

    format: Format = "markdown"
    schema: Mapping[str, Any] | bool | None = None

    def read(self, text: str) -> Any:
        """Return the parsed value of an answer; ``None`` for prose.

        Raises:
            FormatError: if it does not follow this format.
        """
        if self.format == "code":
            return find_code(text)[0]
        if self.format != "json":
            return None
        value = find_json(text)
        wrong = None if self.schema is None else violation(value, self.schema)
        if wrong is not None:
            raise FormatError(f"The answer's JSON does not follow the schema: {wrong}.")
        return value


def form_of(format: str | None = None, schema: object = None) -> Form:  # noqa: A002  the option
    """Return the form for these options; a schema alone means ``json``.

    Raises:
        OptionError: for an unknown format, an invalid schema, or a schema with another format.
    """
    name = format or (FORMATS[0] if schema is None else "json")
    check("format", name)
    known = cast("Format", name)
    if schema is None:
        return Form(known)
    if known != "json":
        raise OptionError(f"A schema is for the format json, not {known}.")
    return Form(known, check_schema(schema))


def find_json(text: str) -> Any:
    """Return the JSON in an answer: all of it, a fenced block, or an object or list in its prose.

    Raises:
        FormatError: if there is none.
    """
    for candidate in (text, *(match["code"] for match in _FENCED.finditer(text))):
        try:
            return _decoder.decode(candidate.strip())
        except (ValueError, RecursionError):
            continue
    found = _embedded(text)
    if found is not _NOTHING:
        return found
    raise FormatError("The answer holds no JSON.", "Say in the question which JSON you want.")


def _embedded(text: str) -> Any:
    """Return the first object or list in prose, or `_NOTHING`."""
    position = 0
    while opening := _OPENING.search(text, position):
        try:
            return _decoder.raw_decode(text, opening.start())[0]
        except json.JSONDecodeError as error:
            # Not within what was parsed so far: a list in a truncated object is no answer.
            position = max(error.pos, opening.end())
        except ValueError:
            position = opening.end()
        except RecursionError:
            break
    return _NOTHING


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def check_schema(schema: object) -> Mapping[str, Any] | bool:
    """Return `schema` if it is a JSON Schema.

    Raises:
        OptionError: if it is not.
    """
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    if not isinstance(schema, Mapping | bool):
        raise OptionError(
            f"A JSON Schema is an object, not {type(schema).__name__}.",
            'For example: {"type": "object", "required": ["colour"]}.',
        )
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise OptionError(f"The schema is not a JSON Schema: {_located(error)}.") from None
    return schema


def violation(value: object, schema: Mapping[str, Any] | bool) -> str | None:
    """Return the first violation of `schema` by `value`, and where; ``None`` if it is valid."""
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # With a registry of its own, a reference to elsewhere is refused instead of fetched.
    validator = validator_for(schema)(schema, registry=Registry())
    try:
        error = best_match(validator.iter_errors(value))
    except Unresolvable as unresolved:
        raise OptionError(
            f"The schema refers to {unresolved.ref!r}, which is not in it.",
            "Put it under $defs.",
        ) from None
    return None if error is None else _located(error)


def _located(error: Any) -> str:
    place = error.json_path.removeprefix("$").lstrip(".")
    message = " ".join(str(error.message).split())
    if len(message) > 200:
        message = f"{message[:200]}..."
    return f"at {place}: {message}" if place else message


def correction(what: str) -> str:
    """Return the message that asks a model to correct its answer."""
    return f"That is not right: {what}. Answer again, with JSON only."


def find_code(text: str) -> tuple[str, str]:
    """Return the code in an answer, its blocks joined, and the first block's language.

    Raises:
        FormatError: if there is no code block.
    """
    blocks = list(_FENCED.finditer(text))
    if not blocks:
        raise FormatError("The answer holds no code block.", "Ask for code in a fenced block.")
    code = "\n\n".join(block["code"].strip("\n") for block in blocks)
    return code, blocks[0]["language"].lower()
