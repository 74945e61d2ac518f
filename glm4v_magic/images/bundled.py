"""C libraries that Pillow reads with, for what it does not ask of them.

Its wheels for Linux and macOS bring them as files, whose names end in a number of the build; other
builds of Pillow use those of the system. Its wheels for Windows have them within a module, where
they cannot be reached.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import PIL

__all__ = ["library"]


def library(
    name: str, functions: Mapping[str, tuple[Any, ...]], is_ours: Callable[[Any], bool]
) -> Any:
    """Return a library with the types of some functions set; ``None`` if it is not found.

    Args:
        name: such as ``"openjp2"``.
        functions: name -> what it returns, then what it takes.
        is_ours: tells whether a library is the one that Pillow reads with, not just of its name.
    """
    package = Path(PIL.__file__).parent
    places = [package.parent / "pillow.libs", package / ".dylibs"]
    bundled = [path for place in places for path in place.glob(f"lib{name}[-.]*")]
    for each in [*map(str, sorted(bundled)), find_library(name)]:
        if each is None:
            continue
        try:
            found = ctypes.CDLL(each)
            for function, (returned, *taken) in functions.items():
                getattr(found, function).restype = returned
                getattr(found, function).argtypes = taken
        except (AttributeError, OSError):
            continue
        if is_ours(found):
            return found
    return None
