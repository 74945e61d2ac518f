"""Schemas that no finite JSON follows, such as a list that must hold at least one such list.

A model that is held to such a schema writes until its token limit. Only keywords that demand more
JSON are followed. All others, and references to other documents, are assumed to let it end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

__all__ = ["endless"]

_TYPES = ("array", "object", "null")  # the last stands for all that hold nothing


def endless(schema: Mapping[str, Any] | bool) -> str | None:
    """Return a reference that never ends; ``None`` if finite JSON can follow the schema.

    Args:
        schema: a JSON Schema.
    """
    try:
        return _Schema(schema).endless()
    except RecursionError:  # nested more deeply than any that people write
        return None


class _Schema:
    """A schema, and those targets of its references that finite JSON is known to follow.

    The shallowest JSON that follows a target holds no other that follows the same target. So the
    targets that end are found level by level, until none is added.
    """

    def __init__(self, root: Mapping[str, Any] | bool) -> None:
        self._root = root
        self._targets = {reference: self._at(reference) for reference in _references(root)}
        self._ending: set[str] = set()

    def endless(self) -> str | None:
        """Return a reference that never ends; ``None`` if finite JSON can follow the root."""
        added = True
        while added:
            found = {name for name, target in self._targets.items() if self._ends(target)}
            added = found != self._ending
            self._ending = found
        if self._ends(self._root):
            return None
        never = sorted(self._targets.keys() - self._ending)
        self._ending = set(self._targets)
        # If the root fails even where all references end, no JSON follows it at all: not endless.
        return next(iter(never), None) if self._ends(self._root) else None

    def _at(self, reference: str) -> Any:
        """Return the target of a reference; ``True``, which ends, for one that is not found."""
        found: Any = self._root
        for part in unquote(reference).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                return True
        return found

    def _ends(self, schema: Any) -> bool:
        """Tell whether finite JSON may follow a schema, given the targets that end."""
        if not isinstance(schema, Mapping):
            return schema is not False
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference in self._targets.keys() - self._ending:
            return False
        if not all(map(self._ends, _listed(schema, "allOf"))):
            return False
        for name in ("anyOf", "oneOf"):
            ways = _listed(schema, name)
            if ways and not any(map(self._ends, ways)):
                return False
        return "const" in schema or "enum" in schema or self._ends_of_a_type(schema)

    def _ends_of_a_type(self, schema: Mapping[str, Any]) -> bool:
        named = schema.get("type", _TYPES)
        types = [named] if isinstance(named, str) else list(named)
        held = {"array": _items, "object": _properties}
        return any(each not in held or all(map(self._ends, held[each](schema))) for each in types)


def _listed(schema: Mapping[str, Any], name: str) -> list[Any]:
    found = schema.get(name)
    return found if isinstance(found, list) else []


def _items(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the schemas of the items that a list must have."""
    items, least = schema.get("items", True), schema.get("minItems", 0)
    first = items if isinstance(items, list) else _listed(schema, "prefixItems")
    rest = schema.get("additionalItems", True) if isinstance(items, list) else items
    yield from (each for number, each in enumerate(first) if number < least)
    if least > len(first):
        yield rest


def _properties(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the schemas of the properties that an object must have."""
    known = schema.get("properties", {})
    rest = True if "patternProperties" in schema else schema.get("additionalProperties", True)
    for name in _listed(schema, "required"):
        yield known.get(name, rest) if isinstance(known, Mapping) else rest


def _references(schema: Any) -> Iterator[str]:
    """Yield all references to places in the schema itself."""
    if isinstance(schema, Mapping):
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference[:2] in ("#", "#/"):
            yield reference
        schema = schema.values()
    elif not isinstance(schema, list):
        return
    for each in schema:
        yield from _references(each)
