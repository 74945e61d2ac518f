"""Lines as people type them: names, maps, files and options in forms that nobody documents."""

from __future__ import annotations

import json
import re

import pytest

from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.plan import Plan
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
    "plan demo --gpus cpu --save nosuch/plan.json": "there is no folder nosuch",
    "plan nosuch --base X --gpus cpu": "There is no checkpoint 'nosuch'",
    "plan GLM-4V-9B --base X --gpus cpu": "is no adapter",
    "check demo --gpus 1x1GiB --map neg.json": "-1 is no device",
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
