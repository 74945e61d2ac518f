"""The contracts of pyproject.toml name every room, and every library that is imported anywhere."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CHECKS_FILES = {"pydantic", "pydantic_core"}


def libraries(sources):
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"glm4v_magic"}


CONTRACTS = SETTINGS["tool"]["importlinter"]["contracts"]


def denied(room):
    (names,) = (
        contract["forbidden_modules"]
        for contract in CONTRACTS
        if contract.get("source_modules") == [f"glm4v_magic.{room}"]
    )
    return {name for name in names if not name.startswith("glm4v_magic.")}


def sources_of(contract):
    return contract.get("source_modules", [])


def test_libraries_are_found_wherever_they_are_imported():
    source = "import os, a.b\ndef f():\n    from c.d import e\nfrom . import x\nimport glm4v_magic"
    assert libraries([source]) == {"a", "c"}


@pytest.mark.parametrize(("room", "allowed"), [("core", set()), ("planning", CHECKS_FILES)])
def test_light_rooms_are_denied_every_library(room, allowed):
    files = (ROOT / "glm4v_magic").rglob("*.py")
    used = libraries(file.read_text(encoding="utf-8") for file in files)
    assert {"torch", "libcst", "starlette"} < used
    assert denied(room) == used - allowed


def test_making_and_drawing_a_plan_are_denied_every_library():
    (contract,) = (each for each in CONTRACTS if "glm4v_magic.notebook.draft" in sources_of(each))
    assert {*contract["forbidden_modules"]} == denied("core")
    assert "glm4v_magic.planning" in sources_of(contract)


def test_only_the_notebook_may_know_ipython():
    (layers,) = (contract["layers"] for contract in CONTRACTS if contract["type"] == "layers")
    (sources,) = (
        contract["source_modules"]
        for contract in CONTRACTS
        if contract["name"] == "Only the notebook knows IPython"
    )
    rooms = {room for layer in layers for room in layer.split(" | ")}
    assert {*sources} == {f"glm4v_magic.{room}" for room in rooms - {"notebook"}}


def engine_streams(source):
    """Lines that begin to read the stream of an engine."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            holder = ast.unparse(node.func.value)
            if node.func.attr == "stream" and holder.rpartition(".")[2].strip("_") == "engine":
                yield node.lineno


def test_one_loop_reads_what_an_engine_says():
    package = ROOT / "glm4v_magic"
    readers = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if any(engine_streams(file.read_text(encoding="utf-8")))
    }
    # A replica hands on the events of the engine in its process.
    assert readers == {"calls/asking.py", "engines/replicas/worker.py"}
    assert [*engine_streams("session.stream(1)\nself._engine.stream(1)")] == [2]
