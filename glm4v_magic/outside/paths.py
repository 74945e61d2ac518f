"""Paths and names that people write: told apart and read without a failure of Python's own."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from glm4v_magic.core.errors import Glm4vError, reason

__all__ = [
    "SHUT",
    "expanded",
    "is_endless",
    "is_file",
    "is_folder",
    "is_shut",
    "is_there",
    "listed_names",
    "path_text",
    "require_current_folder",
    "text_of",
]

SHUT = "Its owner has to let you read it."
"""Next step, for messages about a path that `is_shut`."""


def require_current_folder(error: type[Glm4vError]) -> None:
    """Raise an error if the current folder has been removed, or is on a disk that is gone.

    Relative paths lead nowhere from it, and the MKL that PyTorch (2.13) uses ends a process whose
    first computation happens there.

    Raises:
        error: if there is no current folder.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise error(
            "The current folder is no longer there.", "Go to one that is (%cd, os.chdir)."
        ) from None


def is_there(path: Path) -> bool:
    """Tell whether a path exists; one that is longer than file names may be does not.

    What is in a folder that this process may not enter counts as existing; see `is_shut`.
    """
    try:
        return path.exists()
    except OSError as failure:
        return failure.errno != errno.ENAMETOOLONG


def is_shut(path: Path) -> bool:
    """Tell whether permission is missing to read a file or folder, or to see whether it exists."""
    try:
        if path.is_dir():
            (path / "x").exists()
            next(path.iterdir(), None)
            return False
        return path.exists() and not os.access(path, os.R_OK)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False


def listed_names(folder: Path, ending: str = "") -> list[str]:
    """Return the names in a folder that have an ending; none if it cannot be read."""
    try:
        return [each.name for each in folder.iterdir() if each.name.endswith(ending)]
    except (OSError, ValueError):
        return []


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return the path with ``~`` expanded; ``~name`` of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path's own fails


def path_text(path: object, what: str, error: type[Glm4vError]) -> str:
    """Return a path, or the name of something, as text.

    Args:
        path: what the user gave.
        what: what it is called in messages, such as ``The model``.
        error: what is raised.

    Raises:
        error: unless it is a string or a path, or if it is empty.
    """
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]  # that is what is checked
    except TypeError:
        kind = type(path).__name__
        raise error(f"{what} is named by a string or a path, not by type {kind}.") from None
    if not text.strip():  # often a variable that was never filled; no default stands in for it
        raise error(f"{what} has an empty name.")
    return text


def is_folder(path: str | Path) -> bool:
    """Tell whether a text names a folder, ``~`` expanded; no text makes this fail."""
    return os.path.isdir(expanded(path))  # noqa: PTH112  Path's own fails


def is_file(path: str | Path) -> bool:
    """Tell whether a text names a file, ``~`` expanded; no text makes this fail."""
    return os.path.isfile(expanded(path))  # noqa: PTH113  as above


def is_endless(path: str | Path) -> bool:
    """Tell whether reading a path may never end: it is a pipe or a device."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def text_of(path: Path, what: str, error: type[Glm4vError], hint: str = "") -> str:
    """Read a text file in UTF-8, without the byte order mark that some editors put first.

    Args:
        path: the file; ``~`` is expanded by the caller.
        what: what it is called in messages, such as ``The device map maps/a.json``.
        error: what is raised.
        hint: what to do next.

    Raises:
        error: if the file cannot be read, or is not UTF-8; if it is a pipe or a device.
    """
    if is_endless(path):
        raise error(f"{what} cannot be read: it is a device or a pipe.", hint)
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as failure:
        raise error(f"{what} cannot be read: {reason(failure)}.", hint) from None
    except UnicodeDecodeError:
        raise error(f"{what} is not a text file in UTF-8.", hint) from None
    except ValueError as failure:  # a name with a null character
        raise error(f"{what} cannot be read: {failure}.", hint) from None
