"""Validation of data from outside, before it is used: JSON in files, replies and requests.

A shape is a frozen dataclass of ours or a pydantic model. Data that does not match becomes one
line of the caller's error class, which names the place in the file as JSON paths do:
``The plan has -3 for 'stages[1].gpu': it should be ...``. pydantic is imported when something is
checked, not before.
"""

from __future__ import annotations

import functools
import json
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.core.wording import json_text

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

__all__ = ["FileKind", "checked", "json_object", "json_value"]

T = TypeVar("T")

_LONGEST = 80  # characters of a value, or of a place, in a message

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_IN_JSON = {"None": "null", "True": "true", "False": "false"}
# pydantic's own messages for these name Python's types, or a class of ours.
_KINDS = {
    "dataclass_exact_type": "an object",
    "dataclass_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "tuple_type": "a list",
}


def json_value(
    text: str | bytes,
    what: str,
    error: type[Glm4vError],
    hint: str = "",
    *,
    unique: bool = False,
) -> Any:
    """Parse JSON.

    Args:
        text: the JSON.
        what: what it is called in messages.
        error: what is raised.
        hint: what to do next.
        unique: whether an object with a repeated key is refused; otherwise its last value counts.

    Raises:
        error: if `text` is not JSON, nested deeper than the parser goes, or repeats a key.
    """

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise error(f"{what} names {_shown(key)} twice.", hint)
            content[key] = value
        return content

    try:
        return json.loads(text, object_pairs_hook=without_repeats if unique else None)
    except RecursionError:
        raise error(f"{what} is not valid JSON: it is nested too deeply.", hint) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as failure:
        raise error(f"{what} is not valid JSON: {failure}.", hint) from None
    except ValueError:  # Python reads no more than some thousand digits
        raise error(f"{what} is not valid JSON: a number has too many digits.", hint) from None


def json_object(
    text: str | bytes,
    what: str,
    error: type[Glm4vError],
    hint: str = "",
    *,
    unique: bool = False,
) -> dict[str, Any]:
    """Parse a JSON object; see `json_value`.

    Raises:
        error: as `json_value`, or if the JSON is not an object.
    """
    content = json_value(text, what, error, hint, unique=unique)
    if not isinstance(content, dict):
        raise error(f"{what} is {_shown(content)}, not a JSON object.", hint)
    return content


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of JSON file that this package writes, marked by two keys of its object.

    Attributes:
        format: value of the key ``format``.
        version: value of the key ``version``; files of other versions are refused.
        noun: what such a file is called in messages: ``a plan``.
        hint: what to do next if a file is of another kind.
        again: what to do next if it is of another version.
    """

    format: str
    version: int
    noun: str
    hint: str = ""
    again: str = ""

    def head(self) -> dict[str, Any]:
        """The two keys that mark a file of this kind."""
        return {"format": self.format, "version": self.version}

    def content(self, text: str | bytes, what: str, error: type[Glm4vError]) -> dict[str, Any]:
        """Parse a file of this kind, and return its object without `head`.

        Raises:
            error: if `text` is of another kind or version.
        """
        found = json_value(text, what, error, self.hint)
        if not isinstance(found, dict) or found.get("format") != self.format:
            raise error(f"{what} is not {self.noun} of glm4v_magic.", self.hint)
        version = found.get("version")
        if type(version) is not int or version != self.version:
            raise error(
                f"{what} has version {_shown(version)}; this one reads {self.version}.", self.again
            )
        return {key: value for key, value in found.items() if key not in self.head()}


def checked(
    shape: type[T], content: object, what: str, error: type[Glm4vError], hint: str = ""
) -> T:
    """Check parsed JSON, and return it as an instance of `shape`.

    Args:
        shape: a frozen dataclass, whose fields are checked strictly and whose unknown keys are
            refused; or a pydantic model, which has rules of its own.
        content: parsed JSON.
        what: what it is called in messages.
        error: what is raised.
        hint: what to do next.

    Raises:
        error: naming the first thing that is missing, unknown or of the wrong kind; also for a
            `Glm4vError` that the shape itself raises.
    """
    from pydantic import ValidationError

    adapter = _adapter(shape)  # type: ignore[arg-type]  # a class can be hashed
    try:
        if is_dataclass(shape):
            # Only in JSON does a strict tuple take a list, and a strict dataclass an object.
            return adapter.validate_json(json_text({"content": content}))["content"]
        return adapter.validate_python(content)
    except ValidationError as failure:
        found = failure.errors(include_url=False)[0]
    except Glm4vError as failure:
        raise error(f"{what} is wrong: {failure.what}", failure.hint or hint) from None
    except RecursionError:
        raise error(f"{what} is nested too deeply.", hint) from None
    if is_dataclass(shape):
        found["loc"] = found["loc"][1:]
    raise error(f"{what} {_fault(found)}.", hint)


@functools.cache
def _adapter(shape: type) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    if not is_dataclass(shape):
        return TypeAdapter(shape)
    # A dataclass of the standard library follows the rules of what is around it.
    return TypeAdapter(dict[str, shape], config=ConfigDict(strict=True, extra="forbid"))  # type: ignore[valid-type]


def _fault(found: ErrorDetails) -> str:
    """Return what is wrong, in one line: ``lacks 'model'``."""
    place = _place(found["loc"])
    kind = found["type"]
    if kind in ("missing", "missing_argument"):
        return f"lacks {place}"
    if kind in _UNKNOWN:
        return f"has an unknown entry {place}"
    if kind in ("value_error", "assertion_error"):
        what = " ".join(str(found["ctx"]["error"]).split())
        return f"is wrong at {place}: {what}" if found["loc"] else f"is wrong: {what}"
    if kind in _KINDS:
        demand = f"it should be {_KINDS[kind]}"
    elif kind == "literal_error":
        demand = f"it should be {_IN_JSON.get(found['ctx']['expected'], found['ctx']['expected'])}"
    else:
        demand = " ".join(found["msg"].split())
        demand = f"it {demand.removeprefix('Input ')}" if demand.startswith("Input ") else demand
    if not found["loc"]:
        return f"is {_shown(found['input'])}: {demand}"
    return f"has {_shown(found['input'])} for {place}: {demand}"


class _Short(reprlib.Repr):
    """Short forms of values on one line, as JSON spells them; a text by itself in single quotes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxlong = self.maxother = 60

    def repr_str(self, value: str, level: int) -> str:
        shown = super().repr_str(value, level)
        is_alone = level == self.maxlevel or len(value) > self.maxstring
        return shown if is_alone else json.dumps(value, ensure_ascii=not value.isprintable())

    def repr_bool(self, value: bool, level: int) -> str:
        return json.dumps(value)

    def repr_NoneType(self, value: None, level: int) -> str:  # noqa: N802  reprlib calls it
        return json.dumps(value)


_short = _Short()


def _shown(value: object) -> str:
    """Return a short form of a value on one line, as in JSON."""
    shown = _short.repr(value)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


def _place(keys: Iterable[str | int]) -> str:
    """Return a place as a JSON path in quotes: ``'stages[1].gpu'``."""
    names = (key for key in keys if key != "[key]")  # what pydantic adds for the key itself
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in names)
    if len(path) > _LONGEST:
        path = f"{path[:_LONGEST]}..."
    return repr(path.removeprefix("."))
