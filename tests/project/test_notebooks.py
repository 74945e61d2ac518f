"""Every notebook runs from top to bottom, and is committed as a reader should find it."""

from __future__ import annotations

import re
import runpy
from functools import cache
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TWINS = [path for path in PATHS if path.stem.endswith(".zh")]
CHINESE = re.compile("[\u4e00-\u9fff]")
BUG = ROOT / "notebooks" / "02_the_bug_and_its_cure.ipynb"
INSIDE = ROOT / "notebooks" / "04_look_inside.ipynb"
SERVER = ROOT / "notebooks" / "05_bigger_than_one_machine.ipynb"
SEVERAL = ROOT / "notebooks" / "06_several_images_boxes_video.ipynb"
SCRIPT = runpy.run_path(str(ROOT / "notebooks" / "execute.py"))

NEXT = re.compile(r"\*\*(?:Next:|下一篇)\*\*")
SKY = "--chat sky -o answer --temperature 0"

RAISES = "raises-exception"  # nbclient's tag for a cell that is meant to fail
OF_A_MACHINE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|Users|private|mnt|work)/|\b[A-Z]:\\")
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:"

# The code of a twin is that of its original, so those that take seconds are run by make nightly.
LONG_TWINS = [
    ROOT / "notebooks" / f"{name}.zh.ipynb"
    for name in (
        "01_quickstart",
        "02_the_bug_and_its_cure",
        "03_plan_your_machine",
        "04_look_inside",
        "05_bigger_than_one_machine",
        "06_several_images_boxes_video",
        "07_kaggle_and_colab",
    )
]
RUN = [
    pytest.param(path, marks=pytest.mark.nightly if path in LONG_TWINS else (), id=path.stem)
    for path in PATHS
]

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def committed(path):
    return nbformat.read(path, as_version=4)


@cache
def executed(path):
    return SCRIPT["execute"](path)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell shows: text, or the media types of its displays."""
    for output in cell.outputs:
        if "data" in output:
            yield from output.data
        else:
            yield output.output_type


def texts(notebook):
    """Sources, and outputs as far as they are text; images in them are left out."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            shown = [output.get("text", ""), *output.get("traceback", [])]
            data = output.get("data", {})
            shown += [data[kind] for kind in data if kind.startswith("text/")]
            yield re.sub(r"data:[\w/+-]+;base64,[\w+/=]+", "", "\n".join(shown))


def printed(notebook):
    return "\n".join(
        output.text
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "stream"
    )


def _is_failure(output):
    """IPython writes a `UsageError` as a line on stderr; all other errors are outputs."""
    if output.output_type == "stream":
        return output.name == "stderr" and output.text.startswith("UsageError: ")
    return output.output_type == "error"


def test_there_are_notebooks():
    assert BUG in PATHS


def test_each_has_a_chinese_twin():
    assert {path.name.replace(".zh", "") for path in TWINS} == {
        path.name for path in PATHS if path not in TWINS
    }


@each_notebook
def test_it_says_what_one_learns_and_ends_with_solved_exercises(path):
    cells = committed(path).cells
    assert re.search(r"\*\*(You will learn|你将学到)\*\*", cells[0].source)
    (at,) = (
        i for i, cell in enumerate(cells) if re.search(r"^## (Exercises|练习)$", cell.source, re.M)
    )
    exercises = re.findall(r"^\d\. ", cells[at].source, re.MULTILINE)
    solutions = [
        number
        for number, cell in enumerate(cells[at + 1 :], start=at + 1)
        if re.match(r"\*\*(Solution|答案) \d\*\*", cell.source)
    ]
    assert len(exercises) == len(solutions) >= 3
    assert {cells[number + 1].cell_type for number in solutions} == {"code"}


@pytest.mark.parametrize("path", TWINS, ids=lambda path: path.stem)
def test_a_chinese_twin_is_parallel(path):
    """The same cells in the same order; code differs only in lines that hold Chinese."""
    original = committed(path.with_suffix("").with_suffix(".ipynb"))
    pairs = list(zip(original.cells, committed(path).cells, strict=True))
    for ours, twin in pairs:
        assert ours.cell_type == twin.cell_type
        assert ours.metadata == twin.metadata
        if ours.cell_type == "markdown":
            assert CHINESE.search(twin.source), twin.source
            continue
        for line, translated in zip(
            ours.source.splitlines(), twin.source.splitlines(), strict=True
        ):
            assert line == translated or CHINESE.search(translated), translated


@pytest.mark.parametrize("path", [path for path in PATHS if "quickstart" in path.name])
def test_the_quickstart_shows_right_answers(path):
    """What is asked of the committed images is answered as anyone would."""
    said = dict(SCRIPT["questions_and_answers"](committed(path)))
    for question, right in (
        ("%%glm4v shapes.png\nWhat colour is the circle?", "The circle is red."),
        (f"%%glm4v night.png {SKY}\nWhat colour is the {{{{shape}}}}?", "The star is yellow."),
        ("%%glm4v --continue\nIs there a heart?", "Yes, there is a heart."),
        ("%%glm4v shapes.png\n圆形是什么颜色？", "圆形是红色的。"),
        (f"%%glm4v night.png {SKY}\n{{{{shape}}}}是什么颜色？", "星形是黄色的。"),
        ("%%glm4v --continue\n图中有没有心形？", "有，图中有心形。"),
    ):
        if ("zh" in path.name) == bool(CHINESE.search(question)):
            assert right in said[question]
    rows = {
        False: ("a square", "are 3 shapes", "no yellow star", "to the left", "is white"),
        True: ("正方形", "有3个图形", "没有黄色的星形", "在左边", "白色"),
    }["zh" in path.name]
    (table,) = (said[question] for question in said if "--over questions" in question)
    assert all(right in table for right in rows)
    likeliest = re.search(r"^ *(?:99|100)\.\d+%  (.*)$", printed(committed(path)), re.MULTILINE)
    assert likeliest is not None
    assert likeliest[1] in ("The circle is red.", "圆形是红色的。")


@pytest.mark.parametrize("path", [path for path in PATHS if "quickstart" in path.name])
def test_the_quickstart_shows_an_image_only_where_it_is_new(path):
    large = "".join(texts(committed(path))).count("max-width:320px")
    assert large <= 5


@each_notebook
def test_it_leads_to_the_next_one(path):
    """To the next in its language if there is one; the last of them to the README."""
    names = sorted({each.name.partition(".")[0] for each in PATHS})
    after = dict(zip(names, [*names[1:], ""], strict=True))[path.name.partition(".")[0]]
    language = ".zh" if path in TWINS else ""
    following = f"{after}{language}.ipynb" if after else f"../README{language}.md"
    (said,) = (
        NEXT.split(cell.source)[-1] for cell in committed(path).cells if NEXT.search(cell.source)
    )
    assert f"]({following})" in said.partition("\n\n")[0]


def test_the_bug_is_drawn_before_any_code():
    for path in (BUG, BUG.with_suffix(".zh.ipynb")):
        cells = committed(path).cells
        drawings = [re.findall(r"!\[(.+)\]\((.+\.svg)\)", cell.source) for cell in cells]
        ((_, name),) = drawings[0]
        drawn = (path.parent / name).read_text(encoding="utf-8")
        assert "one vision layer, cut in two" in drawn or "一个视觉层，被切成两半" in drawn
        # it draws the split that a cell below prints
        said = " ".join(printed(committed(path)).split())
        first, _, second = said.partition("cuda:1 ")
        assert "vision.boi, vision.eoi" in first
        assert first.rstrip().endswith("vision.transformer.layers.2.mlp.fc1")
        assert second.startswith("vision.transformer.layers.2.mlp.fc2")


@pytest.mark.parametrize("path", RUN)
def test_it_runs_and_fails_only_where_it_means_to(path):
    for cell in code_cells(executed(path)):
        fails = any(_is_failure(output) for output in cell.outputs)
        assert fails == (RAISES in cell.metadata.get("tags", [])), cell.source


@pytest.mark.parametrize("path", RUN)
def test_it_is_committed_with_its_outputs(path):
    cells = zip(code_cells(committed(path)), code_cells(executed(path)), strict=True)
    for before, now in cells:
        assert set(kinds(before)) == set(kinds(now)), before.source


@each_notebook
def test_its_outputs_are_those_of_one_run(path):
    counts = [cell.execution_count for cell in code_cells(committed(path))]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_every_question_reads_without_a_kernel(path):
    for question, answer in SCRIPT["questions_and_answers"](committed(path)):
        assert answer, question


@each_notebook
def test_it_holds_nothing_of_the_machine_it_ran_on(path):
    notebook = committed(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
    for cell in code_cells(notebook):
        assert not [kind for kind in kinds(cell) if "widget" in kind], cell.source
    for text in texts(notebook):
        assert str(ROOT) not in text
        assert not OF_A_MACHINE.search(text), text


@each_notebook
def test_code_fits_a_page(path):
    for cell in code_cells(committed(path)):
        for line in cell.source.splitlines():
            assert len(line) <= 100, line


@pytest.mark.parametrize("path", [param for param in RUN if "the_bug" in str(param.id)])
def test_the_bug_is_shown_and_cured(path):
    """Whatever the demo model answers: splits fail as they did, and cured ones agree."""
    for notebook in (committed(path), executed(path)):
        said = printed(notebook)
        assert "same logits on one device: True" in said
        assert "10 of 10 maps give the same logits" in said
        assert said.count("same logits as on one device: True") >= 5
        assert "False" not in said
        # the residual, the two vectors, the projection; a Llama's norm; twice in the solutions
        assert said.count(MIXED) == 6
        assert "same logits as on the CPU: True" in said
        modules = re.findall(r"in module: (\S+)", said)
        assert modules[:3] == [
            "model.vision.transformer.layers.2",
            "model.vision",
            "model.vision.linear_proj",
        ]


def test_hooks_at_borders_cost_fewer_copies():
    copies = [int(n) for n in re.findall(r"(\d+) copies per token", printed(committed(BUG)))]
    of_accelerate, ours, planned = copies
    assert of_accelerate > 10 * ours
    assert ours >= planned


def test_a_look_inside_shows_what_it_says():
    for notebook in (committed(INSIDE), executed(INSIDE)):
        plots = [cell for cell in code_cells(notebook) if "image/png" in kinds(cell)]
        assert len(plots) == 4
        described = [cell for cell in notebook.cells if cell.source.startswith("*The plot")]
        assert len(described) == len(plots)
        shown = "\n".join(texts(notebook))
        # the views of an inspection, of two side by side, and in a solution, without a kernel
        for name in ("shapes.png", "images"):
            assert f"<small>{name}: covering row 1, column 1 of 2x2 costs most, 8.2 of" in shown
        assert "The first answer depends more on row 1, column 1 of 2x2, by 7.2" in shown
        assert "row 2, column 3 of 4x4 costs most, 5.3 of its log-probability</small>" in shown
        (drops,) = re.findall(r"^the drop of 'red' +(\S+) +(\S+) +(\S+)$", shown, re.MULTILINE)
        circle, *others = map(float, drops)
        assert circle > 5 > 0.5 > max(others)
        said = printed(notebook)
        assert "positions 5 to 20 of 29 in the prompt" in said
        assert "the image, before any layer: The circle is blue" in said
        skipped = re.findall(r"^without layer \d .*: '(.*)'$", said, re.MULTILINE)
        assert [text == "The circle is red." for text in skipped] == [False, True, True, True]


def test_a_server_answers_as_the_model_in_this_process():
    twin = SERVER.with_suffix(".zh.ipynb")
    for notebook in (committed(SERVER), executed(SERVER), committed(twin)):
        said = printed(notebook)
        assert said.count("same: True") == 4
        assert "same: False" not in said
        assert said.startswith("demo is served at http://127.0.0.1:")
        assert "serves demo, not glm-4v-9b." in said
        assert "No server answers at" in said
        assert said.count("answers 401 Unauthorized") == 2


def test_several_images_boxes_and_a_clip_are_answered_as_anyone_would():
    said = dict(SCRIPT["questions_and_answers"](committed(SEVERAL)))
    for question, right in (
        (
            "monday tuesday --thinking off\nWhich image shows a triangle?",
            "Image 2 shows a triangle.",
        ),
        ("monday tuesday --thinking off\nHow many shapes are in image 2?", "There are 3 shapes in"),
        ("monday tuesday -o answer\nHow many shapes are in image 1?", "There are 2 shapes in"),
        ("tuesday --thinking off -o all_of_them\nFind all shapes.", "3 green triangle: ("),
    ):
        assert right in said[f"%%glm4v {question}"]
    text = printed(committed(SEVERAL))
    assert "thought: Image 1: a red circle, a blue square. Image 2: " in text
    (measured,) = re.findall(r"^IoU (\d\.\d\d)$", text, re.MULTILINE)
    assert float(measured) > 0.4  # a box by name; those of all shapes fit better
    (edges,) = re.findall(r"^green triangle +(\d+) +(\d+) +(\d+) +(\d+)$", text, re.MULTILINE)
    assert [int(edge) for edge in edges] == pytest.approx([120, 200, 220, 300], abs=10)
    assert "\n[1]\n" in text  # the box is on the second image


def test_the_chinese_twin_on_several_images_is_answered_in_chinese():
    said = dict(SCRIPT["questions_and_answers"](committed(SEVERAL.with_suffix(".zh.ipynb"))))
    for question, right in (
        ("monday tuesday --thinking off\n哪张图里有三角形？", "图2有三角形。"),
        ("monday tuesday --thinking off -o compared\n哪张图里的图形更多？", "图2的图形更多。"),
        ("tuesday --thinking off -o found\n绿色的三角形在哪里？", "绿色的三角形在[["),
    ):
        assert right in said[f"%%glm4v {question}"]


def test_machine_paths_are_recognised():
    for folder in ("home", "mnt", "private", "root", "tmp", "Users"):
        for text in (f"in /{folder}/x.py", f"'/{folder}/x'", f'"/{folder}/.cache"'):
            assert OF_A_MACHINE.search(text)
        for text in (f"https://host/{folder}/x", f"../{folder}/x", f"model/{folder}/x"):
            assert not OF_A_MACHINE.search(text)
    assert OF_A_MACHINE.search(r"at C:\Users")
    assert not OF_A_MACHINE.search("1/2")


@pytest.mark.parametrize("path", [path for path in PATHS if "plan_your" in path.name])
def test_a_plan_fits_where_automatic_placement_does_not(path):
    said = dict(SCRIPT["questions_and_answers"](committed(path)))
    # the widget's static twin: bars to scale
    assert "[VVVV" in said["%glm4v devices GLM-4V-9B --gpus 24+16GiB --context 8192"]
    line = "%glm4v check GLM-4V-9B --gpus 3x11GiB --context 8192"
    assert "It would run;" in said[line]
    assert "It would not run:" in said[f"{line} --map auto"]
    assert "UsageError: GLM-4V-9B would not run on this placement" in said[f"{line} --map auto"]


def test_what_the_page_on_kaggle_and_colab_says_is_what_the_notebook_shows():
    notebook = executed(ROOT / "notebooks" / "07_kaggle_and_colab.ipynb")
    said = dict(SCRIPT["questions_and_answers"](notebook))
    checks = [line for line in said if line.startswith("%glm4v check ")]
    assert [line.split(" --context")[0].split("check ")[1] for line in checks] == [
        "GLM-4.1V-9B-Thinking --gpus 2xT4",
        "GLM-4V-9B --gpus 2xT4",
        "GLM-4.1V-9B-Thinking --gpus T4",
    ]
    for line in checks:
        assert "It would run;" in said[line]
        assert ", float16" in said[line]
    page = (ROOT / "docs" / "kaggle-and-colab.md").read_text()
    rows = re.findall(
        r"^(GLM-\S+) +(\S+) +([\d%-]+) +([\d%-]+) +([\d%-]+)$", printed(notebook), re.M
    )
    assert len(rows) == 15
    for model, gpus, *forms in rows:
        found = re.search(rf"^\| {model} \| {gpus} \|[^|]*\| (.*) \|$", page, re.MULTILINE)
        assert found, (model, gpus)
        assert [cell.strip() for cell in found[1].split("|")] == forms
    assert "The circle is orange." in said["%%glm4v drawing\nWhat colour is the circle?"]
