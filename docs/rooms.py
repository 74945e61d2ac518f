"""The rooms of the house, for the architecture page: from the contracts that `make lint` checks.

mkdocs calls `on_page_markdown`. The order of the rooms is the layers contract of pyproject.toml;
what each is for is the first sentence of its docstring.
"""

from __future__ import annotations

import ast
import html
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "glm4v_magic"

_WIDTH, _HEIGHT, _GAP, _MARGIN = 760, 30, 14, 10


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Put diagram and tables into the architecture page; called by mkdocs."""
    if page.file.src_uri != "architecture.md":
        return markdown
    return (
        markdown.replace("{{ diagram }}", diagram(layers()))
        .replace("{{ rooms }}", table(layers()))
        .replace("{{ contracts }}", contracts())
    )


def layers() -> list[list[str]]:
    """Return the rooms from top to bottom; those in one list do not know each other."""
    (contract,) = (each for each in _contracts() if each["type"] == "layers")
    return [layer.split(" | ") for layer in contract["layers"]]


def purpose(room: str) -> str:
    """Return the first sentence of a room's docstring."""
    folder = PACKAGE / room
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def table(rooms: list[list[str]]) -> str:
    """Return a Markdown table of the rooms and what they are for."""
    rows = [f"| `{room}` | {purpose(room)} |" for layer in rooms for room in layer]
    return "\n".join(["| room | what it is for |", "| --- | --- |", *rows])


def contracts() -> str:
    """Return a Markdown table of the contracts."""
    rows = [f"| {each['name']} | {_described(each)} |" for each in _contracts()]
    return "\n".join(["| contract | what it says |", "| --- | --- |", *rows])


def diagram(rooms: list[list[str]]) -> str:
    """Return the rooms as an SVG, the top floor above."""
    step = _HEIGHT + _GAP
    height = step * len(rooms) - _GAP + 2 * _MARGIN
    names = "; ".join(" and ".join(layer) for layer in rooms)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="Rooms from top to bottom: {html.escape(names)}" '
        'font-family="system-ui, sans-serif" font-size="14">'
    ]
    for number, layer in enumerate(rooms):
        width = (_WIDTH - 2 * _MARGIN - _GAP * (len(layer) - 1)) / len(layer)
        y = _MARGIN + number * step
        for place, room in enumerate(layer):
            x = _MARGIN + place * (width + _GAP)
            parts.append(
                f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{_HEIGHT}" rx="6" '
                'fill="var(--md-code-bg-color, #f5f5f5)" stroke="#00897b"/>'
                f'<text x="{x + width / 2:.0f}" y="{y + 20}" text-anchor="middle" '
                f'fill="var(--md-default-fg-color, #222)">{html.escape(room)}</text>'
            )
        if number:
            parts.append(
                f'<path d="M{_WIDTH // 2} {y - _GAP} v{_GAP - 3} m-4 -4 l4 4 l4 -4" '
                'stroke="#00897b" fill="none"/>'
            )
    return "".join([*parts, "</svg>"])


def _contracts() -> list[dict[str, Any]]:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = document["tool"]["importlinter"]["contracts"]
    return found


def _described(contract: dict[str, Any]) -> str:
    if contract["type"] == "layers":
        return "A room imports only from rooms below it, in annotations too."
    if contract["type"] == "forbidden":
        sources = ", ".join(f"`{each.rpartition('.')[2]}`" for each in contract["source_modules"])
        return f"{sources}: no {', '.join(f'`{each}`' for each in contract['forbidden_modules'])}."
    within = ", ".join(f"`{each.rpartition('.')[2]}`" for each in contract["ancestors"])
    return f"No two modules of a room import each other in a circle: {within}."
