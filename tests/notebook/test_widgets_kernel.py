"""The views in a real kernel without a browser: what an executed notebook holds."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbconvert
import nbformat
import pytest
from nbclient import NotebookClient
from shells import TINY

ROOT = Path(__file__).parents[2]
WIDGET = "application/vnd.jupyter.widget-view+json"
PATIENT = "from glm4v_magic.notebook import monitor; monitor.CATCH_UP_SECONDS = 60"
THREADS = (
    "import threading; print(sorted(t.name for t in threading.enumerate() if 'glm4v' in t.name))"
)
CELLS = (
    f"%load_ext glm4v_magic\n{PATIENT}",
    "%glm4v memory",
    "%glm4v devices GLM-4V-9B --gpus 4x16GiB",
    f"%glm4v load {TINY}",
    "%glm4v devices",
    "%%glm4v --max-tokens 4\nWhat?",
    THREADS,
    "%reload_ext glm4v_magic",
    THREADS,
    "%glm4v memory",
    "%unload_ext glm4v_magic",
    THREADS,
)


def run_notebook(cells, folder):
    """Run cells in a kernel."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
        patch.setenv("IPYTHONDIR", str(folder / ".ipython"))
        NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
        ).execute()
    return notebook


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    return run_notebook(CELLS, tmp_path_factory.mktemp("notebook"))


def outputs(executed, number):
    return [output["data"] for output in executed.cells[number].outputs if "data" in output]


def test_each_view_is_a_widget_and_what_outlives_it(executed):
    for number in (1, 2, 4, 9):
        widget, twin = outputs(executed, number)
        assert widget["text/plain"] == ""
        assert WIDGET in widget
        assert WIDGET not in twin
        assert "text/html" in twin


def test_the_memory_that_stays_is_of_the_last_cell_while_it_was_open(executed):
    _, twin = outputs(executed, 1)
    assert f"{TINY} is loaded, as of 20" in twin["text/plain"]
    assert "peak of the last answer" in twin["text/plain"]
    assert f"{TINY} is loaded" in outputs(executed, 9)[1]["text/plain"]


def test_the_map_that_stays_knows_the_last_answer(executed):
    assert "cache in use" in outputs(executed, 4)[1]["text/plain"]
    assert re.search(r"\nas of 20\d\d-", outputs(executed, 4)[1]["text/plain"])
    assert "Fits: the fullest GPU is cuda:0" in outputs(executed, 2)[1]["text/plain"]


def test_no_thread_outlives_its_views(executed):
    seen = [executed.cells[number].outputs[0]["text"].strip() for number in (6, 8, 11)]
    assert seen == ["['glm4v-monitor']", "[]", "[]"]


def test_no_cell_complains(executed):
    for cell in executed.cells:
        assert not [
            o for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"
        ]


@pytest.mark.parametrize("state", [True, False])
def test_an_exported_page_shows_the_views(executed, state):
    notebook = nbformat.from_dict(executed)
    if not state:
        notebook.metadata.pop("widgets")
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    assert len(re.findall(r'<div class="glm4v-[0-9a-f]+-twin">', page)) == 4
    assert page.count('class="glm4v-devices"') >= 2
    assert "is loaded, as of 20" in page
    text, _ = nbconvert.MarkdownExporter().from_notebook_node(notebook)
    assert "glm4v-memory" in text


LOOKS = (
    "%load_ext glm4v_magic\n"
    "from PIL import Image, ImageDraw\n"
    "image = Image.new('RGB', (224, 224), 'white')\n"
    "ImageDraw.Draw(image).ellipse((40, 40, 120, 120), fill='red')",
    "%glm4v load demo",
    "answer = %glm4v ask image 'What colour is the circle?' --max-tokens 2 -q",
    "look = answer.inspect(); look",
    "%glm4v unload",
    "look",
    "1 + 1",
    "%glm4v load demo",
    "look",
    "%glm4v memory",
    "from glm4v_magic.notebook.widgets.memory import MemoryWidget\n"
    "MemoryWidget.cell_ended = lambda self: 1 / 0",
    "1 + 1",
    "%reload_ext glm4v_magic",
    "1 + 1",
)


def test_what_can_no_longer_be_shown_is_said_once_and_later_cells_are_as_ever(tmp_path):
    notebook = run_notebook(LOOKS, tmp_path)

    def shown(number):
        return [
            each["text"] if each["output_type"] == "stream" else each["data"]["text/plain"]
            for each in notebook.cells[number].outputs
        ]

    widget, twin = outputs(notebook, 3)
    assert WIDGET in widget
    assert "embeddings" in twin["text/plain"]
    gone = (
        "Inspection of 'The' by demo\ndemo is no longer loaded, or was loaded anew. Ask again, and "
        "inspect that answer."
    )
    assert shown(5) == shown(8) == [gone]
    assert shown(10) == [
        "A view of an earlier cell was closed: ZeroDivisionError: division by zero"
    ]
    for number in (6, 11, 13):
        assert shown(number) == ["2"]
    assert shown(12) == []
