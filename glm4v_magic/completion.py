"""What the Tab key offers behind ``%glm4v`` and ``%%glm4v``.

Commands, options, models, variables that may hold pictures, and files. Reads folders, loads
nothing.
"""

from __future__ import annotations

from argparse import Action
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from glm4v_magic.checkpoints import DEMO
from glm4v_magic.checkpoints.architecture import PUBLISHED
from glm4v_magic.command_line import options_of
from glm4v_magic.images.formats import SUFFIXES
from glm4v_magic.settings import Glm4v

__all__ = ["complete"]

_MOST = 200  # entries of one folder
_MODEL_COMMANDS = frozenset({"check", "doctor", "load", "plan"})
_PICTURE_COMMANDS = frozenset({"ask", "preview"})
_PICTURE_TYPES = frozenset(
    {"Axes", "Figure", "Image", "PosixPath", "Tensor", "WindowsPath", "bytes", "list", "ndarray"}
)  # fmt: skip


def complete(
    line: str,
    names: Mapping[str, Any],
    commands: Mapping[str, Callable[..., Any]],
    cell: Callable[..., Any],
) -> list[str]:
    """Return what may stand where the cursor is.

    Args:
        line: the line until the cursor, the magic's name included.
        names: the user's variables.
        commands: the commands of the line magic, each with its options.
        cell: the cell magic itself, with its options.
    """
    magic, *words = line.split()
    current = "" if line[-1:].isspace() or not words else words.pop()
    if magic.startswith("%%"):
        return _starting(current, _arguments(cell, words, current, _pictures, names))
    if not words:
        return _starting(current, commands)
    command = commands.get(words[0])
    if command is None:
        return []
    if words[0] == "help":
        return _starting(current, commands)
    if words[0] == "config":
        return _starting(current, Glm4v.names())
    offered = (
        _models
        if words[0] in _MODEL_COMMANDS
        else _pictures
        if words[0] in _PICTURE_COMMANDS
        else _none
    )
    return _starting(current, _arguments(command, words[1:], current, offered, names))


def _starting(prefix: str, candidates: Iterable[str]) -> list[str]:
    return [candidate for candidate in candidates if candidate.startswith(prefix)]


def _arguments(
    command: Callable[..., Any],
    words: list[str],
    current: str,
    offered: Callable[[str, Mapping[str, Any]], Iterable[str]],
    names: Mapping[str, Any],
) -> Iterable[str]:
    options = options_of(command)
    if current.startswith("-"):
        return [name for name in sorted(options) if name.startswith("--")]
    waiting = options.get(words[-1]) if words else None
    if waiting is not None and waiting.nargs is None:  # the word is the option's value
        return _values(waiting, current)
    return offered(current, names)


def _values(option: Action, current: str) -> Iterable[str]:
    if option.choices is not None:
        return map(str, option.choices)
    return _files(current, lambda path: True) if option.metavar == "FILE" else ()


def _none(current: str, names: Mapping[str, Any]) -> Iterable[str]:
    return ()


def _models(current: str, names: Mapping[str, Any]) -> Iterator[str]:
    yield DEMO
    yield from PUBLISHED
    yield from _files(current, lambda path: False)


def _pictures(current: str, names: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(names):
        if not name.startswith("_") and type(names[name]).__name__ in _PICTURE_TYPES:
            yield name
    yield from _files(current, lambda path: path.name.lower().endswith(SUFFIXES))


def _files(current: str, wanted: Callable[[Path], bool]) -> Iterator[str]:
    """Entries of the folder that `current` begins to name: folders, and files that are `wanted`."""
    stem = current[: current.rfind("/") + 1]
    try:
        entries = sorted(Path(stem or ".").expanduser().iterdir())[:_MOST]
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") or any(sign.isspace() for sign in entry.name):
            continue
        if entry.is_dir():
            yield f"{stem}{entry.name}/"
        elif wanted(entry):
            yield f"{stem}{entry.name}"
