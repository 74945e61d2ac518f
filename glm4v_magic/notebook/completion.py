"""Tab completion for ``%glm4v`` and ``%%glm4v``.

Commands, options, models, chats, variables that may hold images, and files. Reads folders, loads
nothing.
"""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from glm4v_magic.checkpoints.names import PUBLISHED
from glm4v_magic.core.gpu_models import GPU_MODELS
from glm4v_magic.core.model import DEMOS
from glm4v_magic.images.formats import SUFFIXES
from glm4v_magic.notebook.command_line import options_of
from glm4v_magic.notebook.settings import Glm4v

__all__ = ["complete"]

_MOST = 200  # entries of one folder
_IMAGE_TYPES = frozenset(
    {"Axes", "Figure", "Image", "PosixPath", "Tensor", "WindowsPath", "bytes", "list", "ndarray"}
)  # fmt: skip

_ITEM_TYPES = frozenset({"DataFrame", "Series", "list", "ndarray", "tuple"})


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The user's variables, and the names of the chats."""

    names: Mapping[str, Any]
    chats: Sequence[str]


Offer: TypeAlias = Callable[[str, Surroundings], Iterable[str]]


def complete(
    line: str,
    names: Mapping[str, Any],
    commands: Mapping[str, Callable[..., Any]],
    cell: Callable[..., Any],
    chats: Iterable[str] = (),
) -> list[str]:
    """Return the completions at the cursor.

    Args:
        line: line up to the cursor, the magic's name included.
        names: the user's variables.
        commands: commands of the line magic, each with its options.
        cell: the cell magic itself, with its options.
        chats: names of the chats.
    """
    context = Surroundings(names, [name for name in chats if name and len(name.split()) == 1])
    magic, *words = line.split()
    current = "" if line[-1:].isspace() or not words else words.pop()
    if magic.startswith("%%"):
        return _starting(current, _arguments(cell, words, current, _images, context))
    if not words:
        return _starting(current, commands)
    command = commands.get(words[0])
    if command is None:
        return []
    if words[0] == "help":
        return _starting(current, commands)
    if words[0] == "config":
        return _starting(current, Glm4v.names())
    offered = _OFFERED.get(words[0], _none)
    return _starting(current, _arguments(command, words[1:], current, offered, context))


def _starting(prefix: str, candidates: Iterable[str]) -> list[str]:
    return [candidate for candidate in candidates if candidate.startswith(prefix)]


def _arguments(
    command: Callable[..., Any],
    words: list[str],
    current: str,
    offered: Offer,
    context: Surroundings,
) -> Iterable[str]:
    options = options_of(command)
    if current.startswith("-"):
        return [name for name in sorted(options) if name.startswith("--")]
    waiting = options.get(words[-1]) if words else None
    if waiting is not None and waiting.nargs is None:  # the word is the option's value
        return _values(waiting, current, context)
    return offered(current, context)


def _values(option: Action, current: str, context: Surroundings) -> Iterable[str]:
    if option.choices is not None:
        return map(str, option.choices)
    usual = _any_file if option.metavar == "FILE" else _none
    return _VALUES.get(option.dest, usual)(current, context)


def _none(current: str, context: Surroundings) -> Iterable[str]:
    return ()


def _chats(current: str, context: Surroundings) -> Iterable[str]:
    return context.chats


def _chats_and_files(current: str, context: Surroundings) -> Iterator[str]:
    yield from context.chats
    yield from _any_file(current, context)


def _schemas(current: str, context: Surroundings) -> Iterator[str]:
    for name, value in sorted(context.names.items()):
        if not name.startswith("_") and isinstance(value, dict):
            yield name
    yield from _json_files(current, context)


def _models(current: str, context: Surroundings) -> Iterator[str]:
    yield from DEMOS
    yield from PUBLISHED
    yield from _files(current, lambda path: False)


def _gpus(current: str, context: Surroundings) -> Iterator[str]:
    """Yield models of GPUs, behind the number and the groups that are typed already."""
    before = re.match(r"(?:.*\+)?(?:[0-9]*x)?", current)
    assert before is not None  # it may be empty
    for model in GPU_MODELS:
        yield before[0] + model.name.replace(" ", "-")


def _folders(current: str, context: Surroundings) -> Iterator[str]:
    return _files(current, lambda path: False)


def _images(current: str, context: Surroundings) -> Iterator[str]:
    for name in sorted(context.names):
        if not name.startswith("_") and type(context.names[name]).__name__ in _IMAGE_TYPES:
            yield name
    yield from _files(current, lambda path: path.name.lower().endswith(SUFFIXES))


def _any_file(current: str, context: Surroundings) -> Iterator[str]:
    return _files(current, lambda path: True)


def _json_files(current: str, context: Surroundings) -> Iterator[str]:
    return _files(current, lambda path: path.suffix.lower() == ".json")


def _items(current: str, context: Surroundings) -> Iterator[str]:
    """Yield variables that hold several items, columns of a DataFrame, and folders."""
    names = context.names
    start, dot, _ = current.partition(".")
    if dot and type(names.get(start)).__name__ == "DataFrame":
        yield from (f"{start}.{name}" for name in names[start] if str(name).isidentifier())
    for name in sorted(names):
        if not name.startswith("_") and type(names[name]).__name__ in _ITEM_TYPES:
            yield name
    yield from _files(current, lambda path: False)


def _files(current: str, wanted: Callable[[Path], bool]) -> Iterator[str]:
    """Yield folders and `wanted` files whose path begins with `current`."""
    stem = current[: current.rfind("/") + 1]
    try:
        entries = sorted(Path(stem or ".").expanduser().iterdir())[:_MOST]
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") or any(map(str.isspace, entry.name)):
            continue
        if entry.is_dir():
            yield f"{stem}{entry.name}/"
        elif wanted(entry):
            yield f"{stem}{entry.name}"


_OFFERED: Mapping[str, Offer] = {
    **dict.fromkeys(("check", "devices", "doctor", "load", "plan"), _models),
    **dict.fromkeys(("ask", "preview"), _images),
    **dict.fromkeys(("continue", "history", "reset", "retry"), _chats),
    "export": _chats_and_files,
    "import": _json_files,
}
"""Command -> completions of its arguments."""

_VALUES: Mapping[str, Offer] = {
    "base": _models,
    "chat": _chats,
    "gpus": _gpus,
    "lora": _folders,
    "over": _items,
    "schema": _schemas,
}
"""Option -> completions of its value."""
