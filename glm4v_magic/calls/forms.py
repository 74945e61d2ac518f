"""Forms of an answer: JSON, with or without a schema, code, choices, a regular expression."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NoReturn, cast

from glm4v_magic.calls.endless import endless
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.errors import FormatError, OptionError, reason
from glm4v_magic.core.options import FORMATS, Format, check
from glm4v_magic.core.wording import printable
from glm4v_magic.imports import import_whole

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
_ANY = {"type": ["object", "array"]}


@dataclass(frozen=True, slots=True)
class Form:
    """The format that an answer must follow.

    Attributes:
        format: as in `AnswerForm`.
        schema: JSON Schema that the JSON has to follow.
        choices: texts, one of which it must be; empty for other answers.
        regex: regular expression that matches all of it; empty for other answers.
    """

    format: Format = "markdown"
    schema: Mapping[str, Any] | bool | None = None
    choices: tuple[str, ...] = ()
    regex: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """The form as options of `AnswerForm`."""
        return {
            "format": self.format,
            "schema": self.schema,
            "choices": self.choices or None,
            "regex": self.regex or None,
        }

    @property
    def kept(self) -> dict[str, Any]:
        """The form as `Message.form`: what carrying on an answer needs to know of it."""
        if self == Form():
            return {}
        options = {name: value for name, value in self.options.items() if value is not None}
        kept: dict[str, Any] = json.loads(json.dumps(options))
        return kept

    @property
    def constraint(self) -> Constraint | None:
        """Constraint on the text; ``None`` for any text.

        Without a schema, JSON must be an object or a list: a model that would rather write prose
        could otherwise write it as a JSON string.
        """
        if self.choices or self.regex:
            return Constraint(choices=self.choices, regex=self.regex)
        if self.format != "json":
            return None
        return Constraint(schema=json.dumps(_ANY if self.schema is None else self.schema))

    def read(self, text: str) -> Any:
        """Return the parsed value of an answer; ``None`` for prose.

        Raises:
            FormatError: if it does not follow this format.
        """
        if self.choices and text not in self.choices:
            raise FormatError("The answer is none of the choices.")
        if self.regex and not matches(self.regex, text):
            raise FormatError("The answer does not match the regex.")
        if self.format == "code":
            return find_code(text)[0]
        if self.format != "json":
            return None
        value = find_json(text)
        wrong = None if self.schema is None else violation(value, self.schema)
        if wrong is not None:
            raise FormatError(f"The answer's JSON does not follow the schema: {wrong}.")
        return value


def form_of(
    format: str | None = None,  # noqa: A002  the option
    schema: object = None,
    choices: Sequence[str] | None = None,
    regex: str | None = None,
) -> Form:
    """Return the form for these options; a schema alone means ``json``.

    Raises:
        OptionError: for an unknown format, an invalid schema, choices or regex, or options that
            exclude each other.
    """
    check("choices", choices)
    check("regex", regex)
    if choices is not None or regex is not None:
        return _form_of_text(format, schema, choices, regex)
    name = format or (FORMATS[0] if schema is None else "json")
    check("format", name)
    known = cast("Format", name)
    if schema is None:
        return Form(known)
    if known != "json":
        raise OptionError(f"A schema is for the format json, not {known}.")
    return Form(known, check_schema(schema))


def _form_of_text(
    format: str | None,  # noqa: A002
    schema: object,
    choices: Sequence[str] | None,
    regex: str | None,
) -> Form:
    """Return the form for choices or a regular expression."""
    what, either = ("choices", "choices") if regex is None else ("regex", "a regex")
    if choices is not None and regex is not None:
        raise OptionError("An answer has either choices or a regex.", "Leave one of them out.")
    if schema is not None:
        raise OptionError(f"An answer has either {either} or a schema.", "Leave one of them out.")
    name = format or ("markdown" if regex is None else "text")
    check("format", name)
    if name in ("json", "code"):
        raise OptionError(f"With {what} the format is text, not {name}.")
    if regex is not None:
        matches(regex, "")  # raises OptionError if it is none
    return Form(cast("Format", name), choices=tuple(choices or ()), regex=regex or "")


def matches(regex: str, text: str) -> bool:
    """Tell whether a regular expression matches all of a text.

    Raises:
        OptionError: if it is not a regular expression.
    """
    from glm4v_magic.engines import grammars

    return grammars.matches(regex, text)


def find_json(text: str) -> Any:
    """Return the JSON in an answer: the whole text, a fenced block, or an object or list in prose.

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
            # Not within what was parsed so far: a list in a truncated object is not the answer.
            position = max(error.pos, opening.end())
        except ValueError:
            position = opening.end()
        except RecursionError:
            break
    return _NOTHING


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if isfinite(number) else _refuse_constant(digits)


_decoder = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)


def check_schema(schema: object) -> Mapping[str, Any] | bool:
    """Return `schema` if it is a JSON Schema, or that of a pydantic model.

    Raises:
        OptionError: if it is not.
    """
    import_whole("jsonschema.validators")
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    if isinstance(schema, type) and callable(made := getattr(schema, "model_json_schema", None)):
        schema = made()
    if not isinstance(schema, Mapping | bool):
        raise OptionError(
            f"A JSON Schema is an object, not {type(schema).__name__}.",
            'For example: {"type": "object", "required": ["colour"]}.',
        )
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise OptionError(f"The schema is not a JSON Schema: {_located(error)}.") from None
    except RecursionError:
        raise OptionError("The schema is nested too deeply to be checked.") from None
    try:
        json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"The schema is not JSON: {reason(error)}.") from None
    reference = endless(schema)
    if reference is not None:
        raise OptionError(
            f"JSON that follows the schema never ends: what {printable(reference)!r} refers to "
            "requires itself.",
            'Let it end, for example with {"type": "null"} beside it, or minItems 0.',
        )
    return schema


def violation(value: object, schema: Mapping[str, Any] | bool) -> str | None:
    """Return the first violation of `schema` by `value`, and where; ``None`` if it is valid."""
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import PointerToNowhere, Unresolvable

    # With a registry of its own, a reference to elsewhere is refused instead of fetched.
    validator = validator_for(schema)(schema, registry=Registry())
    try:
        error = best_match(validator.iter_errors(value))
    except Unresolvable as unresolved:
        from glm4v_magic.engines.grammars import not_in_schema

        # jsonschema wraps what referencing raised.
        is_pointer = isinstance(unresolved.__cause__, PointerToNowhere)
        raise not_in_schema(unresolved.ref, is_pointer=is_pointer) from None
    return None if error is None else _located(error)


def _located(error: Any) -> str:
    place = error.json_path.removeprefix("$").lstrip(".")
    message = " ".join(str(error.message).split())
    if len(message) > 200:
        message = f"{message[:200]}..."
    return f"at {place}: {message}" if place else message


def correction(what: str, form: Form = Form("json")) -> str:
    """Return the message that asks a model to correct its answer."""
    if form.choices:
        wanted = f"with one of these and nothing else: {', '.join(form.choices)}"
    elif form.regex:
        wanted = f"with nothing but a match of {form.regex}"
    else:
        wanted = "with JSON only"
    return f"That is not right: {what}. Answer again, {wanted}."


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
