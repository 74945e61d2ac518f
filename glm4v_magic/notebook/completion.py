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

from IPython.core.magic_arguments import ArgDecorator

from glm4v_magic.checkpoints.names import PUBLISHED
from glm4v_magic.core.gpu_models import GPU_MODELS
from glm4v_magic.core.model import DEMOS
from glm4v_magic.core.options import OPTIONS, of_python
from glm4v_magic.images.formats import CLIPS, SUFFIXES
from glm4v_magic.images.recognised import may_be_images
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import (
    Quoted,
    begun,
    is_room_for_word,
    options_in,
)
from glm4v_magic.notebook.our_line import our_line
from glm4v_magic.notebook.own_options import OWN
from glm4v_magic.notebook.settings import Glm4v

__all__ = ["Completed", "Match", "complete"]

_MOST = 200  # entries of one folder, columns of one table

_EXPRESSION = re.compile(r"(?P<path>(?:[^\W\d]\w*\.)*)(?P<start>\w*)\Z")

_ROW_KEY = re.compile(r"(?<![\w.])row\[(?P<quote>[\"']?)(?P<start>[^\"'\]]*)\Z")

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

_EXPORTS = (".json", ".md")

_UNITS = ("vision", "embedding", "layer", "head")

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
    line = our_line(text)
    if line is None:
        return None
    if line.body is not None:
        words, _ = begun(f"{line.rest} ") or ([], "")
        context = replace(context, words=words)
        found = _expression(line.body, context, "--over" in line.rest) or Completed("", ())
    else:
        after = _after_cell_magic if line.is_cell else _after_line_magic
        found = _words(line.rest, context, after)
    # A word that goes on behind a backslash at the end of a line is not as it stands there.
    return found if text.endswith(found.fragment) else Completed("", ())


def _words(
    rest: str,
    context: Surroundings,
    offered: Callable[[list[str], str, Surroundings], Iterable[Match]],
) -> Completed:
    typed = begun(rest)
    words, current = typed or ([], "")
    here = replace(context, words=words)
    found = _expression(rest, here, "--over" in rest, outside=_quote(current))
    if found is not None or typed is None:
        return found or Completed("", ())
    option, equals, value = current.partition("=")
    if option.startswith("--") and equals:  # --format=json
        words, current = [*words, option], value
    matches = [
        replace(each, text=_within(_quote(current), each.text))
        for each in offered(words, current, replace(context, words=words))
    ]
    return Completed(current, tuple(each for each in matches if _goes_on(current, each.text)))


def _quote(typed: str) -> str:
    """Return the quote that a word begins with, if any."""
    return typed[:1] if typed[:1] in "\"'" else ""


def _within(quote: str, text: str) -> str:
    """Return a value in the quotes that are typed; empty if it has some of these in it."""
    if not quote or _quote(text):
        return text
    return "" if quote in text else f"{quote}{text}{quote}"


def _goes_on(typed: str, text: str) -> bool:
    """Tell whether a text begins with what is typed. Names that need quotes come with them."""
    bare, inside = typed.lstrip("\"'"), text[len(_quote(text)) :]
    is_quoted = inside != text and inside.startswith((bare, f"./{bare}"))
    return bool(text) and (text.startswith(typed) or is_quoted)


def _expression(
    text: str, context: Surroundings, many: bool, outside: str = ""
) -> Completed | None:
    """Complete a ``{{expression}}`` that is not closed; ``None`` outside of one.

    Args:
        text: what ends at the cursor.
        context: of the words before it.
        many: whether the question is asked of several items.
        outside: quote that the expression is in, which its own texts cannot have.
    """
    begin = text.rfind("{{")
    if begin < 0 or "}}" in text[begin:]:
        return None
    table = _table(context) if many else None
    if table is not None and (key := _ROW_KEY.search(text, begin + 2)):
        keys = [_key(each, key["quote"], outside) for each in _names_of(table)]
        return Completed(
            f"{key['quote']}{key['start']}",
            tuple(
                Match(f"{each}]", "column")
                for each in keys
                if each and each.startswith(f"{key['quote']}{key['start']}")
            ),
        )
    found = _EXPRESSION.search(text, begin + 2)
    if found is None:
        return Completed("", ())
    names: Mapping[str, Any] = context.names
    if not found["path"]:
        own = [Match(name, "variable") for name in ("item", "row") if many and name not in names]
        offered = [*own, *(Match(name, _kind(names[name])) for name in _shown(names))]
    else:
        first, *path = found["path"].split(".")[:-1]
        if first == "row" and not path and table is not None:
            columns = [each for each in _names_of(table) if str(each).isidentifier()]
            return Completed(
                found["start"],
                tuple(
                    Match(str(each), "column")
                    for each in columns
                    if str(each).startswith(found["start"])
                ),
            )
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
    return _arguments(ARGUMENTS["ask"], words, current, _images, context)


def _after_line_magic(words: list[str], current: str, context: Surroundings) -> Iterable[Match]:
    if not words:
        return [Match(name, "command") for name in ARGUMENTS]
    name, *words = words
    if name not in ARGUMENTS:
        return ()
    return _arguments(ARGUMENTS[name], words, current, _OFFERED.get(name, _none), context)


def _arguments(
    arguments: Sequence[ArgDecorator],
    words: list[str],
    current: str,
    offered: Offer,
    context: Surroundings,
) -> Iterator[Match]:
    options = options_in(arguments)
    waiting = options.get(words[-1]) if words and not isinstance(words[-1], Quoted) else None
    takes_one = waiting is not None and waiting.nargs in (None, "?")
    if waiting is not None and takes_one and not current.startswith("-"):
        yield from _values(waiting, current, context)
        if waiting.nargs is None:
            return
    if current.startswith("-"):
        for name in sorted(options):
            yield Match(name, "option")
    elif is_room_for_word(arguments, words):
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
    """Yield what goes before an export's file, and files that it may be."""
    before = _plain(context)
    if not before:
        yield from _chats(current, context)
    if not before or not before[0].lower().endswith(_EXPORTS):
        yield from _files(current, _EXPORTS)


def _imported(current: str, context: Surroundings) -> Iterator[Match]:
    """Yield files; behind one is a name that nobody has given yet."""
    if not _plain(context):
        yield from _files(current, (".json",))


def _plain(context: Surroundings) -> list[str]:
    """Return the words behind a command that are no options."""
    return [word for word in context.words[1:] if not word.startswith("-")]


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
    before = re.match(r"(?:.*\+)?(?:[0-9]*x)?", current[len(_quote(current)) :])
    assert before is not None  # it may be empty
    for model in GPU_MODELS:
        yield Match(before[0] + model.name.replace(" ", "-"), "GPU")


def _pins(current: str, context: Surroundings) -> Iterator[Match]:
    """Yield units, after the pins that are typed already."""
    before = re.match(r".*,|", current[len(_quote(current)) :])
    assert before is not None  # it may be empty
    for unit in _UNITS:  # the quote stays open at a unit, whose GPU comes next
        yield Match(f"{_quote(current)}{before[0]}{unit}=", "unit")


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
    outside = _quote(current)
    start, after, inside = re.match(  # type: ignore[union-attr]
        r"(\w*)([.\[]?)([\"']?)", current[len(outside) :]
    ).groups()
    if after and start in names:
        library, columns = _columns(names[start])
        for column in columns:
            if after == "[" and (key := _key(column, inside, outside)):
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
    for column in _names_of(table):
        if _is_a(column, str) and (name := _in_quotes(str(column), current)):
            yield Match(name, "column")


def _names_of(table: object) -> list[object]:
    return _columns(table)[1] or _keys(table)


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


def _key(column: object, quote: str = "", outside: str = "") -> str:
    """Return the name of a column as Python, in double quotes if possible; empty if in none.

    On the line, text with quotes of both kinds would end at the first of them.

    Args:
        column: the name.
        quote: quote that is typed before it, if any.
        outside: quote that the whole is in, if any.
    """
    if not isinstance(column, str):
        return repr(column) if isinstance(column, int) and not quote else ""
    for each in quote or "\"'":
        if each != outside and each not in column and not (outside and outside in column):
            return f"{each}{repr(column)[1:-1]}{each}"
    return ""


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
        if not entry.name.isprintable():  # a line end in it would end the line
            continue
        is_folder = entry.is_dir()
        if is_folder or (suffixes and entry.name.lower().endswith(suffixes)):
            path = f"{stem}{entry.name}{'/' * is_folder}"
            path = f"./{path}" if path.startswith("-") else path  # it is no option
            yield Match(_quoted(path, current), _of(entry, is_folder))


def _of(entry: os.DirEntry[str], is_folder: bool) -> str:
    if is_folder:
        return "folder"
    return "image" if entry.name.lower().endswith(SUFFIXES) else "file"


def _quoted(path: str, current: str) -> str:
    """Return a path in the quotes that are typed or that it needs; empty if in none."""
    quote = _quote(current) or '"' * bool(re.search(r"[\s\"']", path))
    if quote and quote in path:
        quote = "'" if quote == '"' else '"'
    if quote and quote in path:
        return ""
    # The quote stays open at a folder, whose files come next.
    return f"{quote}{path}{'' if path.endswith('/') else quote}"


_OFFERED: Mapping[str, Offer] = {
    **dict.fromkeys(("check", "devices", "doctor", "load", "plan", "serve"), _models),
    **dict.fromkeys(("ask", "preview"), _images),
    **dict.fromkeys(("continue", "history", "inspect", "reset", "retry"), _chats),
    "config": _settings,
    "export": _chats_and_files,
    "help": _commands,
    "import": _imported,
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
    "pin": _pins,
    "save": _any_file,
    "schema": _schemas,
}
"""Option -> completions of its value."""
