"""Lines as people type them: names, maps, files and options in forms that nobody documents."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.remarks import remark
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.notebook.render.plans.dry_run import dry_run_bundle
from glm4v_magic.planning.files import read_given
from glm4v_magic.virtual_gpus import VirtualGPUs

DEMO = "demo --gpus 2x1GiB"


@pytest.mark.parametrize(
    ("given", "fullest"),
    [
        ("""--map '{"": 0}'""", "cuda:0"),
        ("""--map '{"model": 1, "lm_head": 0}'""", "cuda:1"),
        ("--map bom.json", "cuda:0"),
        ("--map 1", "cuda:1"),
        ("--map cuda:1", "cuda:1"),
    ],
)
def test_maps_on_the_line_and_files_of_editors(run, tmp_path, given, fullest):
    (tmp_path / "bom.json").write_text('{"": 0}', encoding="utf-8-sig")
    assert f"the fullest GPU is {fullest}" in run(f"%glm4v check {DEMO} {given}")


def test_a_map_in_json_is_taken_from_python_too(run):
    assert read_given(' {"model": 1, "lm_head": "cuda:0"}') == {"model": 1, "lm_head": 0}
    with pytest.raises(DeviceMapError, match=r"^The device map is not valid JSON: [^\n]*$"):
        read_given('{"": 0')
    with pytest.raises(DeviceMapError, match="twice"):
        read_given('{"": 0, "": 1}')


REFUSED = {
    'check demo --gpus 1x1GiB --map {"": 0}': """in quotes: --map '{"": 0}'""",
    "plan demo --gpus cpu --save plan.txt": "For example: --save plan.json",
    "plan --json GLM-4V-9B": "put it before the option: GLM-4V-9B --json",
    "plan nosuch --base X --gpus cpu": "There is no checkpoint 'nosuch'",
    "plan GLM-4V-9B --base X --gpus cpu": "is not an adapter",
    "check demo --gpus 1x1GiB --map neg.json": "-1 is not a device",
    "check demo --gpus 1x1GiB --map far.json": "puts the whole model on GPU 4, but there is GPU 0",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_refused_says_what_was_meant(run, tmp_path, line):
    (tmp_path / "neg.json").write_text('{"": -1}')
    (tmp_path / "far.json").write_text('{"": 4}')
    said = run(f"%glm4v {line}", fails=True).strip()
    assert REFUSED[line] in said
    assert "\n" not in said


@pytest.mark.parametrize("value", ["1e400", "nan", "inf", "0=1e400GiB", "x", "0=x"])
def test_an_option_is_named_once(run, value):
    said = run(f"%glm4v plan {DEMO} --max-memory {value}", fails=True)
    assert len(re.findall("max.memory", said)) == 1


def test_no_goal_is_guessed_of_a_word_that_is_near_to_none(run):
    assert "Did you mean" not in run(f"%glm4v plan {DEMO} --objective best", fails=True)
    close = run(f"%glm4v plan {DEMO} --objective balanced", fails=True)
    assert "Did you mean balance?" in close


def test_a_plan_for_the_cpu_is_checked_without_gpus(run, tmp_path):
    run("%glm4v plan demo --gpus cpu --save cpu.json")
    for line in ("--map cpu.json", "--map cpu demo", "--map cpu.json --json report.json"):
        assert "It would run on the CPU" in run(f"%glm4v check {line}")
    assert json.loads((tmp_path / "report.json").read_text())["gpus"] == []


def test_check_counts_what_the_plan_may_use_and_speaks_of_options(run):
    run(f"made = %glm4v plan {DEMO} --max-memory 0.75 --save limited.json")
    shown = run("%glm4v check --map limited.json")
    # less the reserve of 3 %
    assert re.search(r"cuda:0 .* 0\.72 ", shown)
    report = replace(dry_run(architecture("demo"), "1x1GiB"), notes=(remark("float16_overflows"),))
    shown = dry_run_bundle(report)["text/plain"]
    assert "--dtype float32" in shown
    assert 'dtype="' not in shown


def test_quantised_plans_are_checked(run):
    run(f"made = %glm4v plan {DEMO} --quantize 4bit --save few.json")
    assert "float16, 4bit, as planned" in run("%glm4v check --map few.json")
    assert "float16, 8bit, by map" in run(f"%glm4v check {DEMO} --quantize 8bit --map 0")


def test_nothing_is_written_before_a_result_that_is_shown_already(run, shell):
    assert "Out[" not in run(f"%glm4v plan {DEMO}")
    run("made = %glm4v plan demo --gpus cpu")
    assert isinstance(shell.user_ns["made"], Plan)
    assert re.search(r"Out\[\d+\]: 5", run("%glm4v plan demo --gpus cpu\n5"))
    assert re.search(r"Out\[\d+\]:", run("made"))


def test_a_model_on_gpus_that_are_gone_is_loaded_again(run):
    with VirtualGPUs("2x1GiB"):
        run("%glm4v load demo")
        assert "cuda:0" in run("%glm4v status")
        assert "is loaded already" in run("%glm4v load demo")
    assert "Load it again" in run('%glm4v ask "Hello?"', fails=True)
    assert "is loaded already" not in run("%glm4v load demo")
    assert run('answer = %glm4v ask "Hello?"')
    assert "is loaded already" in run("%glm4v load demo")


GREEDY = "--temperature 0 --max-tokens 2 --quiet"


def source_of(shell):
    return shell.user_ns["_"].images[0].source


def test_a_comment_at_the_end_of_a_line_is_left_out(run, shell, tiny, photo):
    photo.rename("#1.png")
    run(f"%%glm4v #1.png {GREEDY} # it's a \"comment\nWhat?")
    assert source_of(shell) == "#1.png"
    run(f'%glm4v ask #1.png "Is it # 1?" {GREEDY}  ## twice')
    assert shell.user_ns["_"].prompt == "Is it # 1?"
    run("%glm4v devices # the same")
    assert "no command '#'" not in run("%glm4v # only a comment")


BRACES = {
    "%%glm4v {{name}} OPTIONS\nWhat?": ("cat.png", "What?"),
    "%%glm4v {{folder}}/{{stem + '.png'}} OPTIONS\nWhat?": ("./cat.png", "What?"),
    "%%glm4v {{ image }} OPTIONS\nWhat?": ("image", "What?"),
    "%glm4v ask {{name}} 'Is it {{braces}}?' OPTIONS": ("cat.png", "Is it {{name}}?"),
    '%%glm4v cat.png --format {{kind + "t"}} OPTIONS\nWhat?': (
        "cat.png",
        "What?",
    ),
    "%%glm4v {{name}}.png --raw OPTIONS\nWhat?": ("{{name}}.png", "What?"),
}


@pytest.mark.parametrize("cell", BRACES)
def test_braces_are_filled_in_on_the_first_line_too(run, shell, tiny, photo, cell):
    Image.new("RGB", (8, 8)).save("cat.png")
    Image.new("RGB", (8, 8)).save("{{name}}.png")
    names = {"name": "cat.png", "stem": "cat", "folder": ".", "braces": "{{name}}", "kind": "tex"}
    shell.user_ns.update(names, image=Image.new("RGB", (8, 8)))
    run(cell.replace("OPTIONS", GREEDY))
    answer = shell.user_ns["_"]
    assert (answer.images[0].source, answer.prompt) == BRACES[cell]
    if "--format" in cell:
        assert answer.format == "text"
        assert "In cat.png" in run("%glm4v preview 'What?' --system 'In {{name}}'")


def test_braces_that_fail_are_said_to_be_on_the_first_line(run, tiny):
    said = run(f"%%glm4v {{{{nosuch + 1}}}} {GREEDY}\nWhat?", fails=True)
    assert "{{nosuch + 1}} on the first line uses nosuch, which is not defined" in said


@pytest.mark.parametrize("word", ['df["two words"]', "df.loc[:,'two words']"])
def test_a_column_of_two_words_needs_no_quotes_around_it(run, shell, tiny, word):
    shell.user_ns["df"] = pd.DataFrame({"two words": ["a b", "c"]})
    run(f"%%glm4v --over {word} -o rows {GREEDY}\nWhat is {{{{item}}}}?")
    assert list(shell.user_ns["rows"].index) == [0, 1]
    shell.user_ns["images"] = {"a cat": Image.new("RGB", (8, 8))}
    run(f"%%glm4v images['a cat'] {GREEDY}\nWhat?")
    assert source_of(shell) == "images['a cat']"


@pytest.fixture(scope="module")
def text():
    """A PNG of 960 kB as base64 text."""
    pixels = np.random.default_rng(0).integers(0, 256, (490, 490, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("line", ["%%glm4v {} {}\nWhat?", "x = %glm4v ask {} 'What?' {}"])
def test_a_long_data_uri_on_the_line_takes_no_time(run, shell, tiny, text, line):
    cell = line.format(f"data:image/png;base64,{text}", GREEDY)
    before = time.process_time()
    run(cell)
    assert shell.user_ns["_" if line[0] == "%" else "x"].images[0].original_size == (490, 490)
    assert time.process_time() - before < 2  # 0.1 s; word by word it was 16 s


LONG = "a" * 3000
LONG_LINES = [
    "%%glm4v WORD\nx", "%%glm4v WORD/WORD/x.png\nx", "%%glm4v ~WORD/x.png\nx", "%%glm4v WORD*\nx",
    "%%glm4v --over WORD\nx", "%%glm4v --over text\nx",
    "%%glm4v --over [text]\nx", "%%glm4v -f WORD/WORD\n", "%%glm4v --schema WORD\nx",
    "%%glm4v --choices WORD\nx", "%%glm4v --WORD\nx", "%%glm4v --seed WORD\nx",
    "%%glm4v --format WORD\nx", "%%glm4v --crop WORD a\nx", "%%glm4v 'WORD\nx",
    "%%glm4v\n{{WORD}}", "%glm4v WORD", "%glm4v ask WORD", "%glm4v help WORD",
    "%glm4v config WORD", "%glm4v history WORD", "%glm4v retry WORD", "%glm4v chats WORD",
    "%glm4v import WORD", "%glm4v export WORD/WORD.md", "%glm4v load WORD", "%glm4v load ~WORD",
    "%glm4v load http://WORD", "%glm4v load demo --lora WORD", "%glm4v load WORD --base WORD",
    "%glm4v load demo --revision WORD", "%glm4v load demo --pin WORD", "%glm4v patch WORD",
    "%glm4v plan WORD --gpus cpu", "%glm4v plan demo --gpus WORD",
    "%glm4v check demo --gpus 1x1GiB --map WORD", "%glm4v doctor WORD", "%glm4v doctor WORD/WORD",
]  # fmt: skip


@pytest.mark.parametrize("line", LONG_LINES)
def test_what_is_pasted_in_place_of_a_name_gets_one_short_line(run, shell, tiny, text, line):
    shell.user_ns["text"] = text
    said = run(line.replace("WORD", LONG), fails=True).strip()
    error = said[said.index("UsageError: ") :]
    assert "\n" not in error
    assert len(error) <= 720  # a next step may name all options
    assert "OSError" not in error


@pytest.mark.parametrize("file", ["nosuch/plan.json", "~nobody/x.json", f"{LONG}/{LONG}.json"])
def test_a_plan_that_cannot_be_written_is_there_and_one_short_line_says_why(run, shell, file):
    said = run(f"made = %glm4v plan {DEMO} --gpus cpu --save {file}")
    last = said.strip().splitlines()[-1]
    assert last.startswith("The plan is shown here, but cannot be written to ")
    assert len(last) <= 500
    assert shell.user_ns["made"].stages
    assert "no folder nosuch" in last or file != "nosuch/plan.json"


def test_base64_text_in_a_variable_is_an_image(run, shell, tiny, text):
    shell.user_ns["text"] = text
    run(f"%%glm4v text {GREEDY}\nWhat?")
    assert shell.user_ns["_"].images[0].original_size == (490, 490)


def test_a_null_character_in_a_name_is_refused_in_one_line(run, tiny, photo):
    run(f"%%glm4v {photo.name} {GREEDY}\nWhat?")
    for line in ("export a\0.md", "import \0.json", "load \0", "patch \0"):
        assert run(f"%glm4v {line}", fails=True).strip().startswith("UsageError: ")


@pytest.mark.parametrize(
    ("typed", "choices"),
    [
        ("是，否", ["是", "否"]),
        ("是、否", ["是", "否"]),
        ("一，二,三", ["一，二", "三"]),
        ('["yes","no"]', ["yes", "no"]),
        ("('yes','no')", ["yes", "no"]),
        ("[1],[2]", ["[1]", "[2]"]),
    ],
)
def test_choices_as_they_are_typed_elsewhere(run, shell, tiny, photo, typed, choices):
    run(f"%%glm4v cat.png --choices {typed} --quiet\nWhat?")
    assert {*shell.user_ns["_"].choices} == {*choices}


@pytest.mark.parametrize("typed", ['["a","b"]*3', '["a","b"', "['a']+x"])
def test_what_is_python_in_place_of_choices_says_so(run, tiny, photo, typed):
    said = run(f"%%glm4v cat.png --choices {typed}\nWhat?", fails=True)
    assert "is not a list of texts; a variable may hold what Python makes of it" in said


def test_the_variable_that_is_advised_in_place_of_python_does_it(run, shell, tiny, photo):
    shell.user_ns["pairs"] = ["cat.png"]
    for typed in ('["cat.png"]*3', "pairs*3", "pairs+pairs"):
        said = run(f"%%glm4v --over {typed}\nWhat?", fails=True)
        assert said.strip().endswith("Put it into a variable, and give its name."), said
    assert "A list with spaces goes in quotes" in run(
        '%%glm4v --over ["cat.png",\nWhat?', fails=True
    )
    shell.user_ns["three"] = shell.user_ns["pairs"] * 3
    assert "3 of 3 rows answered" in run(f"%%glm4v --over three {GREEDY[:-8]}\nWhat?")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("２x16GiB", "2x16GiB"), ("2x16ＧiB", "2x16GiB"), ("２xT4", "2xT4")],
)
def test_gpus_in_full_width_characters_are_told_in_others(run, typed, meant):
    said = run(f"%glm4v plan demo --gpus {typed}", fails=True)
    assert f"Cannot read '{typed}'. Did you mean \"{meant}\"?" in said
    assert "demo" in run(f"%glm4v plan demo --gpus {meant}")


@pytest.mark.parametrize("word", ["box", "{{box}}", "{{boxes[1]}}"])
@pytest.mark.parametrize(
    ("box", "read"),
    [
        ((0, 0, 5, 4), "0,0,5,4"),
        ([0, 0, 0.5, 0.5], "0,0,0.5,0.5"),
        (np.array([0, 0, 5, 4]), "0,0,5,4"),
        (["0", "0", "50%", "50%"], "0,0,50%,50%"),
    ],
)
def test_a_crop_may_be_a_variable(run, shell, tiny, photo, box, read, word):
    shell.user_ns |= {"box": box, "boxes": [None, box]}
    run(f"%%glm4v cat.png --crop {word} {GREEDY}\nWhat?")
    assert source_of(shell) == f"cat.png, crop {read}"


def test_what_a_variable_holds_for_a_crop_is_named_if_it_is_none(run, shell, tiny, photo):
    shell.user_ns |= {"box": (1, 2, 3), "text": "0,0,5,4", "none": None, "cats": ["cat.png"]}
    for word, shown in (("{{box}}", "1,2,3"), ("box", "1,2,3"), ("none", "None"), ("bx", "bx")):
        said = run(f"%%glm4v cat.png --crop {word} {GREEDY}\nWhat?", fails=True)
        assert f"The crop '{shown}' is not four numbers." in said
    for word in ("({[]:1})", "[]"):
        assert "The crop" in run(f"%%glm4v cat.png --crop {word} {GREEDY}\nWhat?", fails=True)
    for word in ("text", "{{(0, 0, 5, 4)}}", "[0,0,5,4]"):
        run(f"%%glm4v cat.png --crop {word} {GREEDY}\nWhat?")
        assert source_of(shell) == "cat.png, crop 0,0,5,4"
    run(f"%%glm4v --over cats --crop text {GREEDY}\nWhat?")
    assert shell.user_ns["_"][0].answer.images[0].source == "cat.png, crop 0,0,5,4"


def test_sizes_and_crops_may_be_in_full_width_characters(run, shell, tiny, photo):
    plain = run("%glm4v plan demo --gpus 2x16GiB --max-memory 2,1")
    assert run("%glm4v plan demo --gpus 2x16GiB --max-memory ２，１") == plain
    run(f"%%glm4v cat.png --crop 0，0，５０％，50% {GREEDY}\nWhat?")
    assert source_of(shell) == "cat.png, crop 0,0,50%,50%"


def test_a_preview_does_not_leave_a_comparison_out_without_a_word(run, tiny, photo):
    cell = "%%glm4v cat.png --preview --compare demo,demo-4.6v\nWhat?"
    said = run(cell, fails=True)
    assert "--preview does not go with --compare. Leave --compare out to see" in said
    assert "nothing was sent" in run(cell.replace(" --compare demo,demo-4.6v", ""))


@pytest.mark.parametrize(
    "line", ["plan", "plan demo", "check demo", "devices demo", "doctor demo", "load demo"]
)
def test_gpus_that_nobody_knows_are_named_once(run, line):
    said = run(f"%glm4v {line} --gpus banana", fails=True)
    assert said.count("banana") == 1
    for form in re.findall(r'"([^"]+)"', said):
        assert "cannot" not in run(f"%glm4v plan demo --gpus {form}").lower()


def test_new_columns_that_have_other_names_are_named_once(run, shell, tiny, photo):
    shell.user_ns["frame"] = pd.DataFrame({"image": ["cat.png"], "answer": ["mine"], "seed": [3]})
    cell = "%%glm4v --over frame.image -o found --temperature 0 --max-tokens 2\nWhat?"
    said = run(cell)
    new = "answer_2, error_2, finish_reason_2, new_tokens_2, seed_2"
    assert f"The table has columns of their names already, so the new ones are {new}." in said
    assert [*shell.user_ns["found"].columns] == ["image", "answer", "seed", *new.split(", ")]
    assert "of their names already" not in run(cell)
    shell.user_ns["frame"] = shell.user_ns["frame"][["image"]]
    assert "of their names already" not in run(cell)
