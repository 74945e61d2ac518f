"""Texts that the code gives as advice, found by reading it: whatever may stand where a hint does.

A hint may be written where an error is made, or be a constant, a variable, an entry of a table or
what a function returns, here or in another module. Parts that are known at run time only are
``{}``. What a front end words itself has a code, and is not searched for here.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import glm4v_magic
from glm4v_magic.core import errors

PACKAGE = Path(glm4v_magic.__file__).parent
OPEN = "{}"
"""What stands for a part that is known at run time only."""

_PLACES = {
    "BrokenError": 1, "Finding": 4, "StatusError": 2, "checked": 4, "json_object": 3, "text_of": 3,
}  # fmt: skip
"""Which argument a hint is, of what is no error of the package by its name."""

Way = tuple[int | None, ...]
"""Which part of an expression is meant, from the outside in: its n-th, or ``None`` for any."""

_ERRORS = {name for name in errors.__all__ if name.endswith("Error")}

_OTHERS = {"remark", "worded", "replace"}
"""Functions that return no fixed text: codes are words of front ends."""

_OF_VALUES = {"format", "get", "items", "strip", "values"}
"""Methods of texts and dicts whose results are read."""


@dataclass(frozen=True, eq=False)
class Module:
    """A module, with what can be looked up in it by name."""

    path: Path
    tree: ast.Module
    functions: dict[str, list[ast.FunctionDef]] = field(default_factory=dict)
    values: dict[str, list[tuple[ast.expr, Way]]] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)


@cache
def module(path: Path) -> Module:
    found = Module(path, ast.parse(path.read_text(encoding="utf-8")))
    for node in ast.walk(found.tree):
        if isinstance(node, ast.FunctionDef):
            found.functions.setdefault(node.name, []).append(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("glm4v_magic"):
            for each in node.names:
                found.imported[each.asname or each.name] = (node.module or "", each.name)
    found.values.update(assigned(found.tree))
    return found


@cache
def assigned(block: ast.Module | ast.FunctionDef) -> dict[str, list[tuple[ast.expr, Way]]]:
    """Return what is assigned to each name, but not in functions within."""
    found: dict[str, list[tuple[ast.expr, Way]]] = {}
    for node in inner_nodes(block):
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        way: Way = () if hasattr(node, "value") else (None,)
        value = getattr(node, "iter" if way else "value", None)
        if isinstance(value, ast.expr):
            for target in targets:
                for name, inner in named_in(target):
                    found.setdefault(name, []).append((value, way + inner))
    return found


def named_in(target: ast.expr | None) -> Iterator[tuple[str, Way]]:
    """Yield each name of a target, and which part of what is assigned it is given."""
    if isinstance(target, ast.Name):
        yield target.id, ()
    if isinstance(target, ast.Tuple):
        for place, each in enumerate(target.elts):
            for name, way in named_in(each):
                yield name, (place, *way)


@cache
def inner_nodes(block: ast.Module | ast.FunctionDef) -> list[ast.AST]:
    return [node for statement in block.body for node in within(statement)]


def within(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and those in it, but none of a function within."""
    yield node
    if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
        return
    for each in ast.iter_child_nodes(node):
        yield from within(each)


def choices(node: ast.expr) -> Iterator[ast.expr]:
    """Yield what an expression may be: each side of ``x or y`` and of ``a if b else c``."""
    if isinstance(node, ast.BoolOp):
        for each in node.values:
            yield from choices(each)
    elif isinstance(node, ast.IfExp):
        yield from choices(node.body)
        yield from choices(node.orelse)
    else:
        yield node


@dataclass(frozen=True)
class Reader:
    """Reads expressions of a function of a module.

    Attributes:
        way: the part of an expression that is read; by default all of it.
    """

    module: Module
    function: ast.FunctionDef | None
    seen: frozenset[tuple[str, str]] = frozenset()
    way: Way = ()

    def texts(self, node: ast.expr | None) -> set[str]:
        """Return the texts that an expression may be."""
        found: set[str] = set()
        for each in () if node is None else choices(node):
            found |= self._texts(each)
        return found

    def _texts(self, node: ast.expr) -> set[str]:
        match node:
            case ast.Constant() | ast.JoinedStr() | ast.BinOp() if self.way:
                return set()
            case ast.Constant(value=str(text)):
                return {text}
            case ast.JoinedStr(values=parts):
                return self._joined(parts)
            case ast.BinOp(op=ast.Add()):
                left, right = self.texts(node.left), self.texts(node.right)
                return {a + b for a in left or {OPEN} for b in right or {OPEN}} - {OPEN * 2}
            case ast.Name(id=name):
                return self.named(name)
            case ast.Call():
                return self._called(node)
        return self._in_parts(node)

    def _in_parts(self, node: ast.expr) -> set[str]:
        """Return the texts of an expression that holds others, or is an attribute of a module."""
        inner = replace(self, way=self.way[1:])
        match node:
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                if self.way and self.way[0] is not None:
                    return inner.texts(next(iter(parts[self.way[0] :]), None))
                return set().union(
                    *((self if isinstance(p, ast.Starred) else inner).texts(p) for p in parts)
                )
            case ast.Dict(values=parts):
                return set().union(*map(inner.texts, parts))
            case ast.Starred(value=part) | ast.Subscript(value=part, slice=ast.Slice()):
                return self.texts(part)
            case ast.Subscript(value=part, slice=ast.Constant(value=int(place))):
                return replace(self, way=(place, *self.way)).texts(part)
            case ast.Subscript(value=part):
                return replace(self, way=(None, *self.way)).texts(part)
            case ast.GeneratorExp(elt=part) | ast.ListComp(elt=part):
                return inner.texts(part)
            case ast.Attribute(attr=name, value=ast.Name(id=owner)):
                place = self.module.imported.get(owner)
                return set() if place is None else _in_module(place, name, self)
        return set()

    def _joined(self, parts: list[ast.expr]) -> set[str]:
        text = "".join(map(self._part, parts))
        if re.search(r"\w", text.replace(OPEN, "")):
            return {text}
        values = (p.value for p in parts if isinstance(p, ast.FormattedValue))
        return set().union(*map(self.texts, values))

    def _part(self, part: ast.expr) -> str:
        """Return a part of a text: as it is, that of a constant, or `OPEN`."""
        if isinstance(part, ast.Constant):
            return str(part.value)
        name = getattr(getattr(part, "value", None), "id", "")
        found = self.named(name) if name.strip("_").isupper() else set()
        return found.pop() if len(found) == 1 else OPEN

    def named(self, name: str) -> set[str]:
        key = (str(self.module.path), f"{getattr(self.function, 'name', '')}.{name}")
        if key in self.seen:
            return set()
        inner = replace(self, seen=self.seen | {key})
        if self.function is not None:
            local = assigned(self.function).get(name, [])
            parameters = [each.arg for each in _parameters(self.function)]
            found = inner.assigned(local)
            if name in parameters:
                found |= inner.given_by_callers(self.function, name, parameters.index(name))
            if local or name in parameters:
                return found
        if name in self.module.values:
            return replace(inner, function=None).assigned(self.module.values[name])
        if name in self.module.imported:
            return _in_module(self.module.imported[name], "", inner)
        return set()

    def assigned(self, values: list[tuple[ast.expr, Way]]) -> set[str]:
        """Return the texts of what was assigned to a name."""
        return set().union(*(replace(self, way=way + self.way).texts(each) for each, way in values))

    def given_by_callers(self, function: ast.FunctionDef, name: str, place: int) -> set[str]:
        """Return the texts that callers in this module give for a parameter."""
        found: set[str] = set()
        is_method = [each.arg for each in _parameters(function)][:1] in (["self"], ["cls"])
        for caller, call in _calls(self.module):
            called = getattr(call.func, "id", "") or getattr(call.func, "attr", "")
            if called != function.name:
                continue
            given = [each.value for each in call.keywords if each.arg == name]
            at = place - is_method
            given += call.args[at : at + 1] if at >= 0 else []
            for each in given:
                found |= replace(self, function=caller).texts(each)
        return found

    def _called(self, call: ast.Call) -> set[str]:
        name = getattr(call.func, "id", "") or getattr(call.func, "attr", "")
        if name == "did_you_mean":
            return {"Did you mean {}?"}
        if name in _OTHERS:
            return set()
        if name in ("join", "tuple"):
            return self.texts(call.args[-1])
        if isinstance(call.func, ast.Attribute) and name in _OF_VALUES:
            return self._of_value(name, call.func.value, call.args)
        key = (str(self.module.path), f"{name}()")
        if key in self.seen:
            return set()
        inner = replace(self, seen=self.seen | {key})
        if name in self.module.functions:
            functions = self.module.functions[name]
            return set().union(*(replace(inner, function=each).returned() for each in functions))
        if name in self.module.imported:
            return _in_module(self.module.imported[name], "", inner)
        return set()

    def _of_value(self, name: str, value: ast.expr, arguments: list[ast.expr]) -> set[str]:
        """Return the texts that a method of a text or a dict gives."""
        if name == "get":
            entries = replace(self, way=(None, *self.way)).texts(value)
            return entries | self.texts(next(iter(arguments[1:]), None))
        if name == "items":
            is_key = self.way[1:2] == (0,)
            return set() if is_key else replace(self, way=(None, *self.way[2:])).texts(value)
        return self.texts(value)

    def returned(self) -> set[str]:
        """Return the texts that the function returns or yields."""
        assert self.function is not None
        found: set[str] = set()
        for node in inner_nodes(self.function):
            if isinstance(node, ast.Return):
                found |= self.texts(node.value)
            if isinstance(node, ast.Yield):
                found |= replace(self, way=self.way[1:]).texts(node.value)
        return found


def _in_module(place: tuple[str, str], attribute: str, reader: Reader) -> set[str]:
    name, inner = place
    base = PACKAGE.joinpath(*name.split(".")[1:])
    if attribute:  # of a module that was imported by name
        base, inner = base / inner, attribute
    path = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
    if not path.exists():
        return set()
    above = replace(reader, module=module(path), function=None)
    if inner in above.module.functions:
        functions = above.module.functions[inner]
        return set().union(*(replace(above, function=each).returned() for each in functions))
    return above.named(inner)


def _parameters(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


@cache
def _calls(found: Module) -> list[tuple[ast.FunctionDef | None, ast.Call]]:
    """Return all calls of a module, each with the function that it is in."""
    calls: list[tuple[ast.FunctionDef | None, ast.Call]] = []

    def visit(node: ast.AST, function: ast.FunctionDef | None) -> None:
        if isinstance(node, ast.Call):
            calls.append((function, node))
        inner = node if isinstance(node, ast.FunctionDef) else function
        for each in ast.iter_child_nodes(node):
            visit(each, inner)

    visit(found.tree, None)
    return calls


@cache
def hints(rooms: tuple[str, ...] = ("",)) -> tuple[tuple[str, str], ...]:
    """Return place and text of every piece of advice in rooms of the package."""
    found = []
    for room in rooms:
        path = PACKAGE / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            known = module(file)
            for function, call in _calls(known):
                for node, way in _places(call):
                    where = f"{file.relative_to(PACKAGE)}:{call.lineno}"
                    found += [
                        (where, text)
                        for text in sorted(Reader(known, function, way=way).texts(node))
                        if re.search(r"[^\W\d_]{2}", text.replace(OPEN, ""))
                    ]
    return tuple(found)


def _places(call: ast.Call) -> Iterator[tuple[ast.expr, Way]]:
    """Yield the expressions that are hints in a call; of what is spread, which part is one."""
    name = getattr(call.func, "id", "") or getattr(call.func, "attr", "")
    place = _PLACES.get(name, 1 if name in _ERRORS else 0 if name == "advise" else None)
    for at, given in enumerate(call.args if place is not None else ()):
        if isinstance(given, ast.Starred):
            yield given.value, (place - at,)
            break
        if at == place:
            yield given, ()
            break
    for each in call.keywords:
        if each.arg in ("hint", "next_step"):
            yield each.value, ()


# Advice that is no hint: in errors of Python's own kinds, warnings, logs, and what is shown.

_LOGS = {"warning", "error", "exception", "info", "critical"}
_OWN_WORDS = (
    "core/options.py",
    "core/remarks.py",
    "next_steps.py",
    "own_options.py",
    "arguments.py",
)
"""Modules whose texts are those of options, or have codes."""

_COMMAND = re.compile(
    r"%[a-z]\w|(?<![-\w(])--[a-z]\w|\bpip install\b|\bulimit\b|\bCtrl-C\b|\bpython -m\b|\bagain\b"
)
_VERBS = {
    "add", "allow", "ask", "check", "choose", "copy", "crop", "define", "describe", "download",
    "empty", "end", "export", "fetch", "free", "give", "go", "hand", "install", "keep", "leave",
    "let", "list", "load", "look", "make", "merge", "move", "name", "open", "pad", "pin", "put",
    "read", "replace", "restart", "run", "save", "say", "scale", "see", "send", "set", "shorten",
    "start", "take", "unpack", "unset", "update", "upload", "use", "wait", "write",
}  # fmt: skip
"""What advice begins with."""


def tells_to_do(text: str) -> bool:
    """Tell whether a part of a text begins as advice does, or names a command."""
    parts = re.split(r"[.;:,!?(]\s+|\(|\b(?:or|and|then)\s+", text)
    first = (re.match(r"[A-Za-z]+(?=\s)", each.strip()) for each in parts)
    return bool(_COMMAND.search(text)) or any(
        found is not None and found[0].lower() in _VERBS for found in first
    )


@cache
def in_errors_of_python() -> frozenset[str]:
    """Return the texts of errors and warnings of Python's own kinds, and of lines of logs."""
    found = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        known = module(file)
        for function, call in _calls(known):
            if _is_of_python(call):
                found |= Reader(known, function).texts(call.args[0])
    return frozenset(each for each in found if " " in each and re.search(r"[^\W\d_]{2}", each))


def _is_of_python(call: ast.Call) -> bool:
    name = getattr(call.func, "id", "") or getattr(call.func, "attr", "")
    owner = getattr(getattr(call.func, "value", None), "id", "")
    is_error = isinstance(getattr(builtins, name, None), type) and name.endswith(
        ("Error", "Warning", "Exception")
    )
    is_logged = owner.endswith("log") and name in _LOGS
    is_other = name in ("UsageError", "warn", "OutOfMemoryError")
    return bool(call.args) and (is_error or is_logged or is_other)


@cache
def in_passing() -> frozenset[str]:
    """Return the other texts that tell to do something, wherever they are written in the package.

    Such as those that are printed or shown, notes on a model, and what errors say has happened.
    """
    found = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        if not str(file).endswith(_OWN_WORDS):
            # a command alone is a value of what has a code
            found |= {
                text
                for text in _written(file)
                if tells_to_do(text) and not text.startswith("pip install ")
            }
    known = {text for _, text in hints()} | in_errors_of_python()
    return frozenset(text for text in found if not any(map(_like(text).search, known)))


def _like(text: str) -> re.Pattern[str]:
    """Return the pattern of texts that hold this one, whatever its open parts are."""
    return re.compile(".*?".join(map(re.escape, text.strip().split(OPEN))), re.DOTALL)


def _written(file: Path) -> Iterator[str]:
    """Yield texts of more than a word that a module writes, without documentation and patterns."""
    tree = module(file).tree
    left_out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            left_out.add(id(node.value))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "compile":
            left_out |= {id(each) for each in ast.walk(node)}
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(each) for each in node.values}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(each.value) if isinstance(each, ast.Constant) else OPEN for each in node.values
            )
            if " " in text.strip():
                yield text


def in_views(folder: Path) -> set[str]:
    """Return the texts that tell to do something in templates and scripts of a folder."""
    found: set[str] = set()
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8") if file.suffix in (".html", ".js") else ""
        if file.suffix == ".html":
            text = re.sub(r"<(style|script)\b.*?</\1>|\{[%#].*?[%#]\}", "", text, flags=re.DOTALL)
            text = re.sub(r"\{\{.*?\}\}", OPEN, text)
            found |= {" ".join(each.split()) for each in re.split(r"<[^>]*>", text)}
            found |= set(re.findall(r'(?:title|aria-label|placeholder)="([^"]*)"', text))
        else:
            lines = (re.sub(r"^//.*|\s//.*", "", line) for line in text.splitlines())
            for line in lines:  # no text of these goes over several
                pairs = re.findall(r'"([^"]* [^"]*)"|`([^`]* [^`]*)`', line)
                found |= {re.sub(r"\$\{[^}]*\}", OPEN, one or other) for one, other in pairs}
    return {each for each in found if tells_to_do(each)}
