"""A conversation with the demo model: what it sees stays in sight."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "notebooks" / "shapes.png"

CELLS = {
    "load": "%load_ext glm4v_magic\n%config Glm4v.temperature = 0",
    "first": f'%%glm4v "{IMAGE}" --chat shapes -o first\nHow many shapes are there?',
    "second": "%%glm4v --continue -o second\nWhat colour is the circle?",
    "fresh": "%%glm4v -o fresh\nWhat colour is the circle?",
    "third": "%%glm4v --chat shapes -o third\nIs there a triangle?",
    "cut": "%%glm4v --chat shapes --max-tokens 2 -o cut\nWhat colour is the square?",
    "whole": "whole = %glm4v continue",
    "history": "%glm4v history shapes",
    "shown again": "first",
    "rows": f'%%glm4v "{IMAGE}" --over ["circle"]\nIs there a {{{{item}}}}?',
    "texts": "print(*[a.text for a in (first, second, fresh, third, cut, whole)], sep='\\n')",
    "attribute": "print(second.notice)",
}


@pytest.fixture(scope="module")
def outputs():
    """What each cell shows in a real kernel."""
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return {name: cell.outputs for name, cell in zip(CELLS, notebook.cells, strict=True)}


def test_the_answers_are_about_the_image_of_the_first_cell(outputs):
    first, second, fresh, third, cut, whole = outputs["texts"][0]["text"].splitlines()
    assert first == "There are 3 shapes."
    assert "red" in second
    assert "red" not in fresh  # there is no image in a fresh question without one
    assert third.startswith("Yes")
    assert whole.startswith(cut)
    assert "blue" in whole
    assert "blue" not in cut


def test_an_answer_is_shown_once_with_its_details_folded(outputs):
    strip, answer = outputs["second"]
    assert "shapes.png" in strip["data"]["text/html"]
    assert re.search("<details[^>]*><summary", answer["data"]["text/markdown"])
    assert all("The circle is red" in answer["data"][kind] for kind in answer["data"])


def test_that_the_model_is_a_demo_is_said_once(outputs):
    saying = [name for name, shown in outputs.items() if "demo model" in str(shown)]
    assert saying == ["first", "attribute"]
    assert outputs["rows"]
    assert outputs["shown again"]


def test_history_shows_the_conversation(outputs):
    (history,) = outputs["history"]
    text = history["data"]["text/plain"]
    assert text.count("You:") == text.count("Model:") == 4
    assert "There are 3 shapes." in text
