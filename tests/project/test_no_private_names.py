"""Tests and benchmarks use the package by its public names alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
OUTSIDE = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def is_private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and not name.startswith("__")


def stored(tree: ast.AST) -> Iterator[str]:
    """Private names that a module defines or assigns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr if isinstance(node.value, ast.Name) else ""
        else:
            continue
        if is_private(name):
            yield name


def patched(call: ast.Call) -> str:
    """The name that ``setattr(thing, name, ...)`` and the like are given as text."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in {"setattr", "getattr", "delattr", "hasattr"}:
        return ""
    texts = [each.value for each in call.args[:2] if isinstance(each, ast.Constant)]
    texts = [text for text in texts if isinstance(text, str)]
    return texts[-1].rpartition(".")[2] if texts else ""


def used(source: str, ours: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of each use of a private name of `ours` that is not an object's own."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            names = [] if own else [node.attr]
        elif isinstance(node, ast.ImportFrom):
            from_us = (node.module or "").partition(".")[0] == "glm4v_magic"
            names = [*(node.module or "").split("."), *(each.name for each in node.names)]
            names = names if from_us else []
        elif isinstance(node, ast.Call):
            names = [patched(node)]
        yield from ((node.lineno, name) for name in names if is_private(name) and name in ours)


@pytest.fixture(scope="module")
def ours():
    modules = (ROOT / "glm4v_magic").rglob("*.py")
    found = {name for path in modules for name in stored(ast.parse(path.read_text("utf-8")))}
    assert len(found) > 500
    # Of torch and transformers, too, by whose names we and the tests reach into them.
    return found - {"_attn_implementation", "_modules", "_no_split_modules"}


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_private_name_of_ours_is_used(ours, name):
    assert list(used((ROOT / name).read_text("utf-8"), ours)) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("session._engine.close()", ["_engine"]),
        ("from glm4v_magic.planning.decision import _usable", ["_usable"]),
        ("monkeypatch.setattr(decision, '_usable', None)", ["_usable"]),
        ("monkeypatch.setattr('glm4v_magic.planning.decision._usable', None)", ["_usable"]),
        ("box._view_count = 1; self._engine = 1; from other import _usable", []),
    ],
)
def test_a_use_is_found(source, found):
    assert [name for _, name in used(source, {"_engine", "_usable"})] == found
