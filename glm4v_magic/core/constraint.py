"""Constraint on the text of an answer, as plain data; `engines.grammars` enforces it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Constraint"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole text of an answer must be; exactly one attribute is given.

    Attributes:
        schema: JSON Schema that it follows, as JSON.
        choices: texts, one of which it must be.
        regex: regular expression that matches all of it.
    """

    schema: str = ""
    choices: tuple[str, ...] = ()
    regex: str = ""
