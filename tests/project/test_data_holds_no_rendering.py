"""Data classes below `notebook` hold no rendering; their `__str__` is one `return`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "glm4v_magic"
RENDERING = re.compile(r"_repr_|_ipython_|__html__|html|bundle|render|draw|markdown|svg|table")
TEXTS = ("__str__", "__repr__", "__format__")
PIXELS = ("draw",)
"""Methods that users call for an image; one `return` with what a room below makes of the data."""
FRAMES = ("table",)
"""Methods that users call for a DataFrame; likewise."""


def classes(sources):
    """All classes, by name; several can have one name."""
    trees = map(ast.parse, sources)
    return [each for tree in trees for each in ast.walk(tree) if isinstance(each, ast.ClassDef)]


def data(known):
    """Names of the data classes among classes, and of those that descend from one."""
    found = {each.name for each in known if any(map(is_dataclass, each.decorator_list))}
    bases = {(each.name, base_of(base)) for each in known for base in each.bases}
    while True:
        more = {name for name, base in bases if base in found}
        if more <= found:
            return found
        found |= more


def base_of(base):
    return ast.unparse(base).partition("[")[0].rpartition(".")[2]


def rendering(known):
    """Names of the methods of data classes, among classes, that render."""
    names = data(known)
    for node in known:
        if node.name in names:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and renders(method):
                    yield f"{node.name}.{method.name}"


def is_dataclass(decorator):
    return "dataclass" in ast.unparse(decorator)


def renders(method):
    is_documented = isinstance(method.body[0], ast.Expr)
    if method.name in (*TEXTS, *PIXELS, *FRAMES):
        body = method.body[is_documented:]
        return len(body) > 1 or not isinstance(body[0], ast.Return)
    return bool(RENDERING.search(method.name))


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("def __str__(self): return text(self)", []),
        ("def __str__(self):\n        x = 1\n        return str(x)", ["A.__str__"]),
        ("def _repr_html_(self): return html(self)", ["A._repr_html_"]),
        ("def as_table(self): return html(self)", ["A.as_table"]),
        ("def table(self): return frame(self)", []),
        ("def table(self):\n        x = 1\n        return frame(x)", ["A.table"]),
        ("def total(self): return 1", []),
        ("def draw(self):\n        'Draw.'\n        return drawn(self)", []),
        ("def draw(self):\n        x = 1\n        return drawn(self)", ["A.draw"]),
    ],
)
def test_rendering_is_found(method, found):
    source = f"@dataclass(frozen=True)\nclass A:\n    {method}"
    assert list(rendering(classes([source]))) == found


def test_classes_that_descend_from_data_are_found():
    known = classes(["@dataclass\nclass A: ...", "class B(core.A[int]): ..."])
    assert data(known) == {"A", "B"}
    source = "class C(B):\n    def as_html(self): return 1\nclass D(X):\n    def html(self): ..."
    assert list(rendering(known + classes([source]))) == ["C.as_html"]


def test_no_data_class_renders():
    files = [file for file in PACKAGE.rglob("*.py") if "notebook" not in file.parts]
    known = classes(file.read_text(encoding="utf-8") for file in files)
    assert {"Answer", "ImageAnswer", "Plan"} <= data(known)
    assert list(rendering(known)) == []
