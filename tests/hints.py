"""Texts that the code gives as advice, found by reading it: whatever may stand where a hint does.

A hint may be written where an error is made, or be a constant, a variable, an entry of a table or
what a function returns, here or in another module. Parts that are known at run time only are
``{}``. What a front end words itself has a code, and is not searched for here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
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

_ERRORS = {name for name in errors.__all__ if name.endswith("Error")}

_OTHERS = {"remark", "worded", "replace"}
"""Functions that return no fixed text: codes are words of front ends."""


@dataclass(frozen=True, eq=False)
class Module:
    """A module, with what can be looked up in it by name."""

    path: Path
    tree: ast.Module
    functions: dict[str, list[ast.FunctionDef]] = field(default_factory=dict)
    values: dict[str, list[ast.expr]] = field(default_factory=dict)
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
def assigned(block: ast.Module | ast.FunctionDef) -> dict[str, list[ast.expr]]:
    """Return what is assigned to each name, but not in functions within."""
    found: dict[str, list[ast.expr]] = {}
    for node in inner_nodes(block):
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.expr) and not isinstance(node, (ast.keyword, ast.FormattedValue)):
            for target in targets:
                for name, part in taken(target, value):
                    found.setdefault(name, []).append(part)
    return found


def taken(target: ast.expr | None, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield each name of a target with what it is given."""
    if isinstance(target, ast.Name):
        yield target.id, value
    if isinstance(target, ast.Tuple):
        for each in choices(value):
            if isinstance(each, ast.Tuple) and len(each.elts) == len(target.elts):
                for one, part in zip(target.elts, each.elts, strict=True):
                    yield from taken(one, part)


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
    """Reads expressions of a function of a module."""

    module: Module
    function: ast.FunctionDef | None
    seen: frozenset[tuple[str, str]] = frozenset()

    def texts(self, node: ast.expr | None) -> set[str]:
        """Return the texts that an expression may be."""
        found: set[str] = set()
        for each in () if node is None else choices(node):
            found |= self._texts(each)
        return found

    def _texts(self, node: ast.expr) -> set[str]:
        match node:
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
        match node:
            case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Dict(values=parts):
                return set().union(*map(self.texts, parts))
            case ast.Starred(value=part) | ast.Subscript(value=part):
                return self.texts(part)
            case ast.GeneratorExp(elt=part) | ast.ListComp(elt=part):
                return self.texts(part)
            case ast.Attribute(attr=name, value=ast.Name(id=owner)):
                place = self.module.imported.get(owner)
                return set() if place is None else _in_module(place, name, self.seen)
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
        inner = Reader(self.module, self.function, self.seen | {key})
        if self.function is not None:
            local = assigned(self.function).get(name, [])
            parameters = [each.arg for each in _parameters(self.function)]
            found = set().union(*map(inner.texts, local))
            if name in parameters:
                found |= inner.given_by_callers(self.function, name, parameters.index(name))
            if local or name in parameters:
                return found
        if name in self.module.values:
            above = Reader(self.module, None, inner.seen)
            return set().union(*map(above.texts, self.module.values[name]))
        if name in self.module.imported:
            return _in_module(self.module.imported[name], "", inner.seen)
        return set()

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
                found |= Reader(self.module, caller, self.seen).texts(each)
        return found

    def _called(self, call: ast.Call) -> set[str]:
        name = getattr(call.func, "id", "") or getattr(call.func, "attr", "")
        if name == "did_you_mean":
            return {"Did you mean {}?"}
        if name in _OTHERS:
            return set()
        if isinstance(call.func, ast.Attribute) and name in ("strip", "get", "format"):
            default = call.args[-1] if name == "get" else None
            return self.texts(call.func.value) | self.texts(default)
        if name in ("join", "tuple"):
            return self.texts(call.args[-1])
        key = (str(self.module.path), f"{name}()")
        if key in self.seen:
            return set()
        if name in self.module.functions:
            return set().union(
                *(
                    Reader(self.module, each, self.seen | {key}).returned()
                    for each in self.module.functions[name]
                )
            )
        if name in self.module.imported:
            return _in_module(self.module.imported[name], "", self.seen | {key})
        return set()

    def returned(self) -> set[str]:
        """Return the texts that the function returns or yields."""
        assert self.function is not None
        found: set[str] = set()
        for node in inner_nodes(self.function):
            if isinstance(node, (ast.Return, ast.Yield)):
                found |= self.texts(node.value)
        return found


def _in_module(
    place: tuple[str, str], attribute: str, seen: frozenset[tuple[str, str]]
) -> set[str]:
    name, inner = place
    base = PACKAGE.joinpath(*name.split(".")[1:])
    if attribute:  # of a module that was imported by name
        base, inner = base / inner, attribute
    path = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
    if not path.exists():
        return set()
    found = module(path)
    if inner in found.functions:
        return set().union(
            *(Reader(found, each, seen).returned() for each in found.functions[inner])
        )
    return Reader(found, None, seen).named(inner)


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
                for node in _places(call):
                    where = f"{file.relative_to(PACKAGE)}:{call.lineno}"
                    found += [
                        (where, text)
                        for text in sorted(Reader(known, function).texts(node))
                        if re.search(r"[^\W\d_]{2}", text.replace(OPEN, ""))
                    ]
    return tuple(found)


def _places(call: ast.Call) -> Iterator[ast.expr]:
    """Yield the expressions that are hints in a call."""
    name = getattr(call.func, "id", "") or getattr(call.func, "attr", "")
    place = _PLACES.get(name, 1 if name in _ERRORS else None)
    if place is not None:
        yield from call.args[place : place + 1]
    if name == "advise":
        yield from call.args[:1]
    for each in call.keywords:
        if each.arg in ("hint", "next_step"):
            yield each.value
