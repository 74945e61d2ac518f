"""Names of the forms that an answer may be asked in.

Apart from `formats`, which does the work, so that loading the extension stays cheap.
"""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["FORMATS", "Format"]

Format = Literal["markdown", "text", "json", "code"]

FORMATS: tuple[Format, ...] = get_args(Format)
"""The usual one first."""
