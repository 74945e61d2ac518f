"""Cells with a task of GLM-OCR."""

from __future__ import annotations

import json

import pytest
import tiny_native
from IPython.utils.capture import capture_output
from shells import ipython_shell

from glm4v_magic.checkpoints import resolve

GREEDY = "--temperature 0 --max-tokens 4"


@pytest.fixture(scope="module")
def shell(native, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    tiny_native.image(90, 60, 1).image.save(folder / "page.png")
    with ipython_shell(folder) as shell:
        shell.run_line_magic("load_ext", "glm4v_magic")
        run(shell, f"%glm4v load {native('glm_ocr')}")
        shell.user_ns["page"] = str(folder / "page.png")
        shell.user_ns["pages"] = [shell.user_ns["page"]]
        yield shell


def run(shell, cell):
    with capture_output() as captured:
        shell.run_cell(cell)
    outputs = [str(each.data.get("text/plain")) for each in captured.outputs]
    return "\n".join([captured.stdout, captured.stderr, *outputs])


@pytest.mark.parametrize(
    "cell",
    [
        f"%%glm4v page --task table {GREEDY}",
        f"%%glm4v page --task table {GREEDY}\n",
        f"%glm4v ask page --task table {GREEDY}",
    ],
)
def test_the_question_is_the_published_prompt(shell, cell):
    run(shell, cell)
    assert shell.user_ns["_"].prompt == "Table Recognition:"
    assert len(shell.user_ns["_"].images) == 1


def test_values_are_extracted_as_json(shell):
    said = run(shell, f"%%glm4v page --task extract {GREEDY}\n" + '{"name": ""}')
    assert shell.user_ns["_"].prompt.endswith('{"name": ""}')
    assert shell.user_ns["_"].format == "json"
    assert "Traceback" not in said
    shell.user_ns["schema"] = {"properties": {"n": {"type": "integer"}}, "required": ["n"]}
    run(shell, "%%glm4v page --task extract --schema schema --temperature 0 --max-tokens 60")
    assert json.loads(shell.user_ns["_"].prompt.split("\n", 1)[1]) == {"n": ""}


def test_rows_and_previews(shell):
    run(shell, f"%%glm4v --over pages --task text {GREEDY}")
    (row,) = shell.user_ns["_"]
    assert row.answer.prompt == "Text Recognition:"
    for line in ("page", "--over pages"):
        said = run(shell, f"%%glm4v {line} --task formula --preview")
        assert "Formula Recognition:" in said


def test_a_question_beside_the_task_is_refused(shell):
    said = run(shell, "%%glm4v page --task text\nWhat?")
    assert "The task text has a prompt of its own, and there is a question, too." in said
    assert "Traceback" not in said


@pytest.mark.parametrize("line", ["", "--preview"])
def test_a_task_without_an_image_is_refused(shell, line):
    said = run(shell, f"%%glm4v {line} --task text")
    assert "The task text reads an image, and there is none." in said
    assert "Traceback" not in said


def test_another_model_refuses_by_name_before_it_is_loaded(tmp_path):
    with ipython_shell(tmp_path) as shell:
        shell.run_line_magic("load_ext", "glm4v_magic")
        said = run(shell, "%glm4v ask --task text")
        assert "demo has no task text: the tasks are those of GLM-OCR. Ask it a question" in said
        assert "not loaded" in run(shell, "%glm4v status")


def test_checkpoints_know_their_tasks(native):
    assert resolve(native("glm_ocr")).tasks == ("text", "table", "formula", "extract")
    assert resolve(native("glm46v")).tasks == resolve().tasks == ()
