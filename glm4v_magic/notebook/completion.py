"""Tab completion for ``%glm4v`` and ``%%glm4v``.

Commands, options with their values, models, chats, variables, and files that are images. Reads
folders, loads nothing: neither PyTorch nor the commands themselves.
"""

from __future__ import annotations

import os
import re
from argparse import Action
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, TypeAlias

from glm4v_magic.checkpoints.names import PUBLISHED
from glm4v_magic.core.gpu_models import GPU_MODELS
from glm4v_magic.core.model import DEMOS
from glm4v_magic.core.options import OPTIONS, of_python
from glm4v_magic.images.formats import CLIPS, SUFFIXES
from glm4v_magic.images.recognised import may_be_images
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import ANSWER_OPTIONS, begun, options_in
from glm4v_magic.notebook.own_options import OWN
from glm4v_magic.notebook.settings import Glm4v

__all__ = ["Completed", "Match", "complete"]

_MOST = 200  # entries of one folder, columns of one table

_OUR_LINE = re.compile(r"\s*(?:[\w\s,.*\[\]'\"()]+=\s*)?%glm4v(?=\s)(?P<rest>.*)", re.DOTALL)
_OUR_CELL = re.compile(r"%%glm4v(?=\s)(?P<rest>.*)", re.DOTALL)

_EXPRESSION = re.compile(r"(?P<path>(?:[^\W\d]\w*\.)*)(?P<start>\w*)\Z")

_ITEM_TYPES = frozenset(
    {
        "Array", "ChunkedArray", "DataFrame", "Dataset", "FileUpload", "IterableDataset",
        "LazyFrame", "RecordBatch", "Series", "Table", "list", "ndarray", "tuple",
    }
)  # fmt: skip

_COLUMNS = {
    ("datasets", "Dataset"): "column_names",
    ("pandas", "DataFrame"): "columns",
    ("polars", "DataFrame"): "columns",
    ("pyarrow", "RecordBatch"): "column_names",
    ("pyarrow", "Table"): "column_names",
}
"""Library and class of a table -> attribute that lists the names of its columns."""

_OF_THE_TABLE = ("by", "evaluate")
"""Options whose value is a column of what is asked over."""

_CODE = (FunctionType, BuiltinFunctionType, ModuleType, type)


@dataclass(frozen=True, slots=True)
class Match:
    """What Tab may insert, and what it is: a command, an option, an image, a variable."""

    text: str
    type: str


@dataclass(frozen=True, slots=True)
class Completed:
    """What Tab offers.

    Attributes:
        fragment: the text before the cursor that a match replaces.
        matches: what to put there.
    """

    fragment: str
    matches: tuple[Match, ...]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The user's variables, the names of the chats, and the words before the cursor."""

    names: Mapping[str, Any]
    chats: Sequence[str]
    words: Sequence[str] = ()


Offer: TypeAlias = Callable[[str, Surroundings], Iterable[Match]]


def complete(text: str, names: Mapping[str, Any], chats: Iterable[str] = ()) -> Completed | None:
    """Return the completions at the cursor; ``None`` where the line is not one of ours.

    Args:
        text: the cell up to the cursor.
        names: the user's variables.
        chats: names of the chats.
    """
    context = Surroundings(names, [name for name in chats if name and len(name.split()) == 1])
    first, below, _ = text.lstrip("\n").partition("\n")
    if (cell := _OUR_CELL.match(first)) is not None:
        if below:
            return _expression(text, context, "--over" in first) or Completed("", ())
        return _words(cell["rest"], context, _after_cell_magic)
    if (line := _OUR_LINE.fullmatch(text.rpartition("\n")[2])) is not None:
        return _words(line["rest"], context, _after_line_magic)
    return None


def _words(
    rest: str,
    context: Surroundings,
    offered: Callable[[list[str], str, Surroundings], Iterable[Match]],
) -> Completed:
    found = _expression(rest, context, "--over" in rest)
    typed = begun(rest)
    if found is not None or typed is None:
        return found or Completed("", ())
    words, current = typed
    option, equals, value = current.partition("=")
    if option.startswith("--") and equals:  # --format=json
        words, current = [*words, option], value
    matches = offered(words, current, replace(context, words=words))
    return Completed(current, tuple(each for each in matches if _goes_on(current, each.text)))


def _goes_on(typed: str, text: str) -> bool:
    """Tell whether a text begins with what is typed. Names that need quotes come with them."""
    return text.startswith(typed) or (
        text[:1] in "\"'" and text[1:].startswith(typed.lstrip("\"'"))
    )


def _expression(text: str, context: Surroundings, many: bool) -> Completed | None:
    """Complete a ``{{expression}}`` that is not closed; ``None`` outside of one."""
    begin = text.rfind("{{")
    if begin < 0 or "}}" in text[begin:]:
        return None
    found = _EXPRESSION.search(text, begin + 2)
    if found is None:
        return Completed("", ())
    names: Mapping[str, Any] = context.names
    if not found["path"]:
        own = [Match(name, "variable") for name in ("item", "row") if many and name not in names]
        offered = [*own, *(Match(name, _kind(names[name])) for name in _shown(names))]
    else:
        first, *path = found["path"].split(".")[:-1]
        value = names.get(first)
        for name in path:  # of the instance alone: a property would run the user's code
            value = getattr(value, "__dict__", {}).get(name)
        offered = [] if value is None else [Match(name, "attribute") for name in _parts(value)]
    start = found["start"]
    return Completed(start, tuple(each for each in offered if each.text.startswith(start)))


def _parts(value: object) -> list[str]:
    try:
        return [name for name in dir(value) if not name.startswith("_")]
    except Exception:  # whatever the user's class does
        return []


def _after_cell_magic(words: list[str], current: str, context: Surroundings) -> Iterable[Match]:
    return _arguments(options_in(ANSWER_OPTIONS), words, current, _images, context)


def _after_line_magic(words: list[str], current: str, context: Surroundings) -> Iterable[Match]:
    if not words:
        return [Match(name, "command") for name in ARGUMENTS]
    name, *words = words
    if name not in ARGUMENTS:
        return ()
    return _arguments(
        options_in(ARGUMENTS[name]), words, current, _OFFERED.get(name, _none), context
    )


def _arguments(
    options: Mapping[str, Action],
    words: list[str],
    current: str,
    offered: Offer,
    context: Surroundings,
) -> Iterator[Match]:
    waiting = options.get(words[-1]) if words else None
    takes_one = waiting is not None and waiting.nargs in (None, "?")
    if waiting is not None and takes_one and not current.startswith("-"):
        yield from _values(waiting, current, context)
        if waiting.nargs is None:
            return
    if current.startswith("-"):
        for name in sorted(options):
            yield Match(name, "option")
    else:
        yield from offered(current, context)


def _values(option: Action, current: str, context: Surroundings) -> Iterable[Match]:
    if option.choices is not None:
        return [Match(str(value), "value") for value in option.choices]
    described = {**OPTIONS, **OWN}[option.dest]
    if described.choices:
        return [Match(value, "value") for value in described.choices]
    words = [Match(word, "value") for word in described.words]
    if option.dest in _OF_THE_TABLE and (table := _table(context)) is not None:
        return _column_names(table, current)
    if option.dest in _VALUES:
        return [*words, *_VALUES[option.dest](current, context)]
    return [*([Match(described.example, "example")] if described.example else ()), *words]


def _none(current: str, context: Surroundings) -> Iterable[Match]:
    return ()


def _commands(current: str, context: Surroundings) -> Iterator[Match]:
    yield from (Match(name, "command") for name in ARGUMENTS)


def _settings(current: str, context: Surroundings) -> Iterator[Match]:
    yield from (Match(name, "setting") for name in Glm4v.names())


def _chats(current: str, context: Surroundings) -> Iterator[Match]:
    yield from (Match(name, "chat") for name in context.chats)


def _chats_and_files(current: str, context: Surroundings) -> Iterator[Match]:
    yield from _chats(current, context)
    yield from _any_file(current, context)


def _variables(current: str, context: Surroundings) -> Iterator[Match]:
    """Yield variables that an answer could replace."""
    for name in _shown(context.names):
        if not _is_a(context.names[name], *_CODE):
            yield Match(name, _kind(context.names[name]))


def _lists(current: str, context: Surroundings) -> Iterator[Match]:
    for name in _shown(context.names):
        if _is_a(context.names[name], list, tuple):
            yield Match(name, "variable")


def _schemas(current: str, context: Surroundings) -> Iterator[Match]:
    yield from _dicts(current, context)
    yield from _json_files(current, context)


def _maps(current: str, context: Surroundings) -> Iterator[Match]:
    for name in _shown(context.names):
        if type(context.names[name]).__name__ in ("Plan", "dict"):
            yield Match(name, "variable")
    yield from _json_files(current, context)


def _dicts(current: str, context: Surroundings) -> Iterator[Match]:
    for name in _shown(context.names):
        if _is_a(context.names[name], dict):
            yield Match(name, "variable")


def _models(current: str, context: Surroundings) -> Iterator[Match]:
    yield from (Match(name, "model") for name in (*DEMOS, *PUBLISHED))
    yield from _folders(current, context)


def _gpus(current: str, context: Surroundings) -> Iterator[Match]:
    """Yield models of GPUs, after the count and the groups that are typed already."""
    before = re.match(r"(?:.*\+)?(?:[0-9]*x)?", current)
    assert before is not None  # it may be empty
    for model in GPU_MODELS:
        yield Match(before[0] + model.name.replace(" ", "-"), "GPU")


def _folders(current: str, context: Surroundings) -> Iterator[Match]:
    return _files(current, ())


def _images(current: str, context: Surroundings) -> Iterator[Match]:
    for name in _shown(context.names):
        if _kind(context.names[name]) == "image":
            yield Match(name, "image")
    yield from _files(current, SUFFIXES + CLIPS)


def _any_file(current: str, context: Surroundings) -> Iterator[Match]:
    return _files(current, ("",))


def _json_files(current: str, context: Surroundings) -> Iterator[Match]:
    return _files(current, (".json",))


def _items(current: str, context: Surroundings) -> Iterator[Match]:
    """Yield variables that hold several items, columns of a table, and folders."""
    names = context.names
    start, after = re.match(r"(\w*)([.\[]?)", current).groups()  # type: ignore[union-attr]
    if after and start in names:
        library, columns = _columns(names[start])
        for column in columns:
            if after == "[" and (key := _key(column)):
                yield Match(f"{start}[{key}]", "column")
            elif after == "." and library == "pandas" and str(column).isidentifier():
                yield Match(f"{start}.{column}", "column")
    for name in _shown(names):
        if _is_one_of(names[name], _ITEM_TYPES):
            yield Match(name, "variable")
    yield from _files(current, ())


def _table(context: Surroundings) -> object:
    """Return the variable that is asked over, ``df`` of ``--over df.image``; ``None`` if none."""
    words = [part for word in context.words for part in word.split("=", 1)]
    over = words[words.index("--over") + 1 :] if "--over" in words else []
    return context.names.get(re.split(r"[.\[]", over[0])[0]) if over else None


def _column_names(table: object, current: str) -> Iterator[Match]:
    for column in _columns(table)[1] or _keys(table):
        if _is_a(column, str) and (name := _in_quotes(str(column), current)):
            yield Match(name, "column")


def _keys(rows: Any) -> list[object]:
    """Return the keys of the first of several dicts; none of anything else."""
    try:
        is_table = _is_a(rows, list, tuple) and _is_a(rows[0], dict)
        return list(rows[0])[:_MOST] if is_table else []
    except Exception:  # whatever the user's class does
        return []


def _in_quotes(name: str, current: str) -> str:
    """Return a name in the quotes that are typed, or in some if it needs them; empty if in none."""
    quote = current[:1] if current[:1] in "\"'" else ""
    if not quote and re.search(r"[\s\"'#{]|^-|^$", name):
        quote = "'" if '"' in name else '"'
    return "" if quote and (quote in name or "\n" in name) else f"{quote}{name}{quote}"


def _compared(current: str, context: Surroundings) -> Iterator[Match]:
    """Yield models behind each comma, and settings behind each model."""
    if not current:
        yield Match(OPTIONS["compare"].example, "example")
    yield from _lists(current, context)
    quote = current[:1] if current[:1] in "\"'" else ""
    before = re.match(r".*,\s*|", current[len(quote) :], re.DOTALL)
    assert before is not None  # it may be empty
    start, last = quote + before[0], current[len(quote) + before.end() :]
    if " " not in last:
        for each in _models(last, context):
            if each.text[:1] not in "\"'":
                yield Match(start + each.text, each.type)
    if quote:
        at = last.rfind(" ") + 1
        yield from _settings_of_one(start + last[:at], last[at:])


def _settings_of_one(start: str, current: str) -> Iterator[Match]:
    table = {each.name: each for each in (*of_python("load"), *of_python("compare"))}
    name, equals, _ = current.partition("=")
    if equals and name in table:
        for value in table[name].choices:
            yield Match(f"{start}{name}={value}", "value")
    elif not equals:
        yield from (Match(f"{start}{each}=", "option") for each in table if each != "model")


def _columns(value: object) -> tuple[str, list[object]]:
    """Return the library of a table and the names of its columns; none of anything else."""
    for each in type(value).__mro__:
        library = each.__module__.partition(".")[0]
        if (library, each.__name__) in _COLUMNS:
            try:
                return library, list(getattr(value, _COLUMNS[library, each.__name__]))[:_MOST]
            except Exception:  # whatever a class that is derived from it does
                break
    return "", []


def _key(column: object) -> str:
    """Return the name of a column as Python, in double quotes if possible; empty if it needs both.

    On the line, text with quotes of both kinds would end at the first of them.
    """
    if not isinstance(column, str):
        return repr(column) if isinstance(column, int) else ""
    if '"' in column:
        return "" if "'" in column else repr(column)
    return f'"{repr(column)[1:-1]}"'


def _shown(names: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in names if isinstance(name, str) and not name.startswith("_"))


def _kind(value: object) -> str:
    """Return ``image`` for what may be an image or some, else ``variable``."""
    try:
        return "image" if may_be_images(value) else "variable"
    except Exception:  # whatever the user's class does
        return "variable"


def _is_a(value: object, *classes: type) -> bool:
    """Tell whether `value` is of one of the classes; ``isinstance`` asks the object, too."""
    return issubclass(type(value), classes)


def _is_one_of(value: object, classes: frozenset[str]) -> bool:
    return any(each.__name__ in classes for each in type(value).__mro__)


def _files(current: str, suffixes: tuple[str, ...]) -> Iterator[Match]:
    """Yield folders and files of these suffixes whose path begins with `current`.

    A name with a space is in quotes.
    """
    typed = current.lstrip("\"'")
    stem, name = typed[: typed.rfind("/") + 1], typed[typed.rfind("/") + 1 :]
    try:
        with os.scandir(os.path.expanduser(stem) or ".") as entries:  # noqa: PTH111  "" and "./"
            begun = [each for each in entries if each.name.startswith(name)]
    except (OSError, ValueError):  # a NUL in it
        return
    for entry in sorted(begun, key=lambda each: each.name)[:_MOST]:
        if entry.name.startswith(".") and not name:
            continue
        is_folder = entry.is_dir()
        if is_folder or (suffixes and entry.name.lower().endswith(suffixes)):
            yield Match(
                _quoted(f"{stem}{entry.name}{'/' * is_folder}", current), _of(entry, is_folder)
            )


def _of(entry: os.DirEntry[str], is_folder: bool) -> str:
    if is_folder:
        return "folder"
    return "image" if entry.name.lower().endswith(SUFFIXES) else "file"


def _quoted(path: str, current: str) -> str:
    quote = current[:1] if current[:1] in "\"'" else ""
    if not quote and re.search(r"[\s\"']", path):
        quote = "'" if '"' in path else '"'
    # The quote stays open at a folder, whose files come next.
    return f"{quote}{path}{'' if path.endswith('/') else quote}"


_OFFERED: Mapping[str, Offer] = {
    **dict.fromkeys(("check", "devices", "doctor", "load", "plan", "serve"), _models),
    **dict.fromkeys(("ask", "preview"), _images),
    **dict.fromkeys(("continue", "history", "inspect", "reset", "retry"), _chats),
    "config": _settings,
    "export": _chats_and_files,
    "help": _commands,
    "import": _json_files,
    "patch": _folders,
}
"""Command -> completions of its arguments."""

_VALUES: Mapping[str, Offer] = {
    "against": _chats,
    "base": _models,
    "chat": _chats,
    "choices": _lists,
    "compare": _compared,
    "device_map": _maps,
    "file": _any_file,
    "gpus": _gpus,
    "json": _json_files,
    "lora": _folders,
    "out": _variables,
    "over": _items,
    "save": _any_file,
    "schema": _schemas,
}
"""Option -> completions of its value."""
