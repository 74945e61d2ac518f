"""``%glm4v check`` as typed: what it shows, what it refuses, and what it leaves alone."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from following import follow
from IPython.utils.capture import capture_output
from shells import TINY

from glm4v_magic.dry_run.files import report_from_json
from glm4v_magic.planning.plan import plan

CHECK = f"%glm4v check {TINY} --gpus 2x1GiB"
SPLIT = {"model.vision": 0, "model.language_model": 1, "lm_head": 1}


def session(shell):
    return shell.magics_manager.registry["Glm4vMagics"].context.session


def report(run, options=""):
    return report_from_json(run(f"{CHECK} {options} --json"))


def refusal(run, line):
    """The one line of an error."""
    (message,) = run(line, fails=True).strip().splitlines()
    assert message.startswith("UsageError: ")
    return message


def test_the_report_is_shown(run, shell, tmp_path):
    text = run(f"made = %glm4v plan {CHECK.partition('check ')[2]} --objective balance --json")
    (tmp_path / "spread.json").write_text(text)
    line = f"{CHECK} --map spread.json"
    shown = run(line)
    assert shown.startswith(str(TINY))
    assert "It would run; the fullest GPU is cuda:" in shown.replace("\n", " ")
    assert "cuda:0 -> cuda:1" in shown
    with capture_output() as captured:
        shell.run_cell(line).raise_error()
    (output,) = captured.outputs
    assert output.data["text/plain"] in shown
    assert output.data["text/html"].startswith('<div class="glm4v-dry-run">')


def test_a_plan_is_judged_by_the_gpus_it_is_checked_for(run):
    run(f"made = %glm4v plan {TINY} --gpus 2x1GiB --objective balance")
    for gpus in ("2x1GiB", "2x4GiB", "2xT4"):
        line = f"%glm4v check {TINY} --objective balance --gpus {gpus} --json"
        fresh = report_from_json(run(line))
        given = report_from_json(run(f"{line} --map made"))
        sizes = [gpu.capacity_bytes for gpu in fresh.gpus]
        assert [gpu.capacity_bytes for gpu in given.gpus] == sizes


def test_a_plan_or_a_map_in_a_variable(run, shell):
    run(f"made = %glm4v plan {CHECK.partition('check ')[2]} --objective balance")
    shell.user_ns["split"] = SPLIT
    assert report(run, "--map made").placement == "plan"
    assert report(run, "--map split").placement == "map"


HELD = {
    "number": 1,
    "numpy's": np.int64(1),
    "text": "cuda:1",
    "digits": "1",
    "JSON": '{"": 1}',
    "device": torch.device("cuda:1"),
    "name": "one map.json",
    "path": Path("one map.json"),
    "plan's": {"": torch.device("cuda", 1)},
}


@pytest.mark.parametrize("how", HELD)
def test_whatever_says_where_a_model_goes_may_be_in_a_variable(run, shell, how):
    Path("one map.json").write_text('{"": 1}')
    shell.user_ns["held"] = HELD[how]
    shell.user_ns |= {"some": [HELD[how]], "named": {"it": HELD[how]}}
    for typed in ("held", "{{held}}", "{{some[0]}}", '{{named["it"]}}'):
        found = report(run, f"--map {typed}")
        assert found.placement == "map"
        assert [bool(gpu.peak_bytes) for gpu in found.gpus] == [False, True]


@pytest.mark.parametrize("held", [None, [1], 1.5, True, b"cpu", torch.device("meta"), object()])
def test_a_variable_that_says_no_place_is_named(run, shell, held):
    shell.user_ns["held"] = held
    said = refusal(run, f"{CHECK} --map held")
    assert said.startswith("UsageError: held is a variable. The device map is wrong: ")
    assert "is not a device. A device is a number such as 0" in said
    Path("held").write_text('{"": 1}')  # a file comes before such a variable
    assert report(run, "--map held").placement == "map"


def test_maps_as_python_shows_them(run, shell):
    shell.user_ns |= {"split": SPLIT, "plans": []}
    expected = report(run, "--map split").gpus
    for typed in ("{{dict(split)}}", '"{{dict(split)}}"', f'"{SPLIT}"', f"'{json.dumps(SPLIT)}'"):
        assert report(run, f"--map {typed}").gpus == expected
    assert "not valid JSON" in refusal(run, f"""{CHECK} --map "{{'': 0" """)
    twice = f"""{CHECK} --map "{{'': 0, '': 1}}" """
    assert "The device map names '' twice." in refusal(run, twice)
    run(f"made = %glm4v plan {TINY} --gpus 2x1GiB --objective balance")
    shell.user_ns["plans"] = [shell.user_ns["made"]]
    assert report(run, "--map {{plans[0]}}").placement == "plan"
    for word in ("map.v2", 'print("hi")', "filter"):  # names of Python are no variables
        said = refusal(run, f"{CHECK} --map '{word}'")
        assert f"The device map {word} cannot be read" in said
    Path("plans.json").write_text(json.dumps({"": 1}))  # not an attribute of the variable
    assert report(run, "--map plans.json").placement == "map"


def test_words_of_map_itself_come_before_variables(run, shell):
    shell.user_ns |= {"auto": {"": "cpu"}, "cpu": "cuda:1", "plan": 1}
    assert report(run, "--map auto").placement == "auto"
    assert report(run, "--map plan").placement == "plan"
    assert not any(gpu.peak_bytes for gpu in report(run, "--map cpu").gpus)


def test_without_a_model_the_one_in_use_which_stays_as_it_is(run, shell, tiny, photo):
    ask = "%%glm4v cat.png --temperature 0 --max-tokens 8\nWhat is this?"
    run(ask)
    before = shell.user_ns["_"].text
    engine = session(shell).engine
    weights = {parameter.data_ptr() for parameter in engine.model.parameters()}
    cuda, call = torch.cuda.device_count, torch.nn.Module.__call__
    assert run("%glm4v check --gpus 3x1GiB").startswith(str(tiny))
    assert session(shell).engine is engine
    assert {parameter.data_ptr() for parameter in engine.model.parameters()} == weights
    assert torch.cuda.device_count is cuda
    assert torch.nn.Module.__call__ is call
    run(ask)
    assert shell.user_ns["_"].text == before


@pytest.mark.parametrize(
    ("options", "attribute", "expected"),
    [
        ("--context 100", "prompt_tokens", 100 - 3 + 6 - 2),
        ("--images 0", "images", 0),
        ("--batch 2", "batch", 2),
        ("--dtype bfloat16", "dtype", "bfloat16"),
        ("--map auto", "placement", "auto"),
        ("--map plan", "placement", "plan"),
        ("--map map.json", "placement", "map"),
    ],
)
def test_every_option_reaches_the_dry_run(run, tmp_path, options, attribute, expected):
    (tmp_path / "map.json").write_text(json.dumps(SPLIT))
    assert getattr(report(run, options), attribute) == expected


def test_json_goes_to_a_file(run, tmp_path):
    shown = run(f"{CHECK} --json report.json")
    assert shown.rstrip().endswith("The report is in report.json.")
    assert "cuda:0" in shown
    written = report_from_json((tmp_path / "report.json").read_text())
    assert written == report(run)


def test_a_report_that_cannot_be_written_is_shown(run, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps(SPLIT))
    said = "The report is shown here, but cannot be written to no/r.json: there is no folder no."
    shown = run(f"{CHECK} --json no/r.json").splitlines()
    assert (shown[0].startswith(str(TINY)), shown[-1]) == (True, said)
    *shown, error = run(
        f"%glm4v check {TINY} --gpus 2x256MiB --map map.json --json no/r.json", fails=True
    ).splitlines()
    assert said in shown
    assert "would not run on this placement" in error


def test_what_would_not_run_is_shown_and_then_raised(run, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps(SPLIT))
    line = f"%glm4v check {TINY} --gpus 2x256MiB --map map.json"
    *shown, error = run(f"{line} --json report.json", fails=True).strip().splitlines()
    assert any(row.startswith("cuda:1 GPU") for row in shown)
    assert error.startswith(f"UsageError: {TINY} would not run on this placement (1 more): out of")
    assert not report_from_json((tmp_path / "report.json").read_text()).works
    *_, error = run(f"{line} --json", fails=True).strip().splitlines()
    assert error.startswith("UsageError: ")


def test_gpus_that_a_plan_leaves_out_are_not_too_small(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shown = run(f"%glm4v plan {TINY} --gpus 3x1GiB --max-memory 1=1GiB --save plan.json")
    assert "1 of 3 GPUs" in shown
    assert "It would run" in run(f"%glm4v check {TINY} --map plan.json")


def test_without_gpus_some_must_be_described(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert refusal(run, f"%glm4v check {TINY}") == (
        "UsageError: No GPU was found here. Describe the GPUs to check for: --gpus 4x16GiB."
    )
    assert "cpu is not a GPU. Describe" in refusal(run, f"%glm4v check {TINY} --gpus cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model.vision": 0}, "gives 'model.language_model' and 1 more no device."),
        ({**SPLIT, "model.vison": 0}, "'model.vison', which the model does not have. Did you mean "
         "model.vision?"),
        ({**SPLIT, "lm_head": 2}, "puts 'lm_head' on GPU 2, but there are GPUs 0 to 1."),
        ('{"lm_head": 0,', "map.json is not valid JSON"),
        ("{}", "The device map is empty."),
        (None, "map.json cannot be read: No such file or directory."),
    ],
    ids=["misses a module", "unknown module", "absent GPU", "malformed", "empty",
         "no file"],
)  # fmt: skip
def test_maps_that_are_wrong(run, tmp_path, content, message):
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "map.json").write_text(text)
    assert message in refusal(run, f"{CHECK} --map map.json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("GLM-4V-9B --gpus 4x", "Cannot read '4x'."),
        ("GLM-4V-9B --gpus 0x16", "'0x16' gives a size without a unit."),
        ("GLM-4V-9B --gpus 0x16GiB", "'0x16GiB' has a count below one."),
        ("GLM-4V-9B --gpus 3x-1GiB", "'3x-1GiB' has a size below one."),
        ("GLM-4V-9B --gpus 200x16GiB", "describes more than 128 GPUs"),
        ("GLM-4V-9B --gpus 1x16GiB", "GLM-4V-9B does not fit on 15.52 GiB: "),
        ("GLM-4V-9B --gpus 4x16GiB --context 9000", "is longer than GLM-4V-9B allows (8,192)."),
        ("GLM-4V-9B --gpus 4x16GiB --images 2", "takes 1 image, not 2."),
        (
            "GLM-4V-9B --gpus 4x16GiB --batch 0",
            "--batch is 0, but must be a whole number from 1 to 4,096.",
        ),
        (
            f"GLM-4V-9B --gpus 4x16GiB --batch {10**20}",
            f"--batch is {10**20}, but must be a whole number from 1 to 4,096.",
        ),
        ("GLM-4V-9B --gpus 4x16GiB --dtype int4", "Unknown dtype 'int4'"),
        ("GLM-4V-9 --gpus 4x16GiB", "Did you mean GLM-4V-9B"),
        ("GLM-4V-9B --fps 2", "%glm4v check has no option --fps. It is one of %%glm4v."),
        (f"{'a' * 300} --gpus 4x16GiB", "There is no configuration 'aaa"),
        ("GLM-4V-9B --gpu 4x16GiB", "There is no option --gpu. Did you mean --gpus"),
        ("--gpus 4x16GiB --json GLM-4V-9B", "the name of the file must end in .json."),
    ],
)
def test_lines_that_are_wrong(run, line, message):
    assert message in run(f"%glm4v check {line}", fails=True).strip().splitlines()[-1]


def test_a_plan_from_a_file(run, tmp_path):
    from glm4v_magic.checkpoints.architecture import architecture
    from glm4v_magic.core.gpu_spec import parse_gpus

    made = plan(architecture(TINY).shape(), parse_gpus("2x1GiB"))
    (tmp_path / "plan.json").write_text(made.to_json())
    assert report(run, "--map plan.json") == report(run)
    shorter = replace(made, workload=replace(made.workload, context=64))
    (tmp_path / "plan.json").write_text(shorter.to_json())
    assert report(run, "--map plan.json") == report(run, "--context 64")
    assert report(run, "--map plan.json").context == 64
    assert report(run, "--map plan.json --context 96").context == 96


def test_a_model_at_work_is_not_disturbed(run, shell, tiny):
    started, go_on = threading.Event(), threading.Event()

    def wait(*_):
        started.set()
        assert go_on.wait(60)

    asking = threading.Thread(
        target=lambda: follow(session(shell).stream("Why?", max_tokens=1), started=wait)
    )
    asking.start()
    try:
        assert started.wait(60)
        assert "The model is at work. Check when it has finished." in refusal(run, CHECK)
    finally:
        go_on.set()
        asking.join()


def test_help_names_the_command(run):
    assert "%glm4v check MODEL --gpus SPEC" in run("%glm4v help")
    assert "--map" in run("%glm4v help check")
