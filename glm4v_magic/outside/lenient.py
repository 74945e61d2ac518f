"""Types of data that many programs write, each a little differently, for pydantic models.

A value of the wrong type counts as missing, so that one odd entry does not hide the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

__all__ = ["OR_EMPTY", "OR_NONE", "OR_NO_ENTRIES", "Count", "Flag", "Number", "Words"]


def _or(missing: Callable[[], Any]) -> WrapValidator:
    def read(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            return missing()

    return WrapValidator(read)


OR_NONE = _or(lambda: None)
"""A value of the wrong type becomes ``None``."""
OR_EMPTY = _or(list)
"""A value of the wrong type becomes an empty list."""
OR_NO_ENTRIES = _or(dict)
"""A value of the wrong type becomes an empty dictionary."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[Annotated[int, Field(strict=True, ge=0, lt=2**53)] | None, OR_NONE]
"""Numbers that JSON carries without loss: beyond them a count is none, and no table holds it."""
Words = Annotated[Annotated[str, StringConstraints(strict=True)] | None, OR_NONE]
Flag = Annotated[Annotated[bool, Field(strict=True)] | None, OR_NONE]
