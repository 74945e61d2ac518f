"""Data classes below `notebook` hold no rendering; their `__str__` is one `return`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "glm4v_magic"
RENDERING = re.compile(r"_repr_|_ipython_|__html__|html|bundle|render|draw|markdown|svg|table")


def rendering(source):
    """Names of the methods of data classes that render."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and any(map(is_dataclass, node.decorator_list)):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and renders(method):
                    yield f"{node.name}.{method.name}"


def is_dataclass(decorator):
    return "dataclass" in ast.unparse(decorator)


def renders(method):
    if method.name in ("__str__", "__repr__", "__format__"):
        return len(method.body) > 1 or not isinstance(method.body[0], ast.Return)
    return bool(RENDERING.search(method.name))


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("def __str__(self): return text(self)", []),
        ("def __str__(self):\n        x = 1\n        return str(x)", ["A.__str__"]),
        ("def _repr_html_(self): return html(self)", ["A._repr_html_"]),
        ("def as_table(self): return html(self)", ["A.as_table"]),
        ("def total(self): return 1", []),
    ],
)
def test_rendering_is_found(method, found):
    assert list(rendering(f"@dataclass(frozen=True)\nclass A:\n    {method}")) == found


def test_no_data_class_renders():
    files = [file for file in PACKAGE.rglob("*.py") if "notebook" not in file.parts]
    found = {
        f"{file.relative_to(PACKAGE)}: {name}"
        for file in files
        for name in rendering(file.read_text(encoding="utf-8"))
    }
    assert found == set()
