"""``%glm4v plan`` and the placement options of ``%glm4v load``, as typed."""

from __future__ import annotations

import json
import re
import resource
import shutil
from html.parser import HTMLParser
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from IPython.utils.capture import capture_output
from shells import fresh_shell

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DoesNotFitError, OptionError
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.plan import Limits, Plan
from glm4v_magic.core.plan_text import gpu_rows
from glm4v_magic.core.stage import Stage
from glm4v_magic.notebook.render.plans.plan import plan_bundle, plan_html
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.files import plan_from_json
from glm4v_magic.virtual_gpus import VirtualGPUs

GIB = 2**30
NINE_B = architecture("GLM-4V-9B")


def planned(**options):
    return make_plan(NINE_B, PlacementOptions(**{"gpus": "4x16GiB", **options}))


def _in_a_cell(made):
    text = str(made).replace('objective="balance"', "--objective balance")
    return text.replace("keep=0", "--keep 0")


def test_the_plan_of_a_published_model_is_shown(run):
    shown = run("made = %glm4v plan GLM-4V-9B --gpus 4x16GiB")
    assert shown.strip() == _in_a_cell(planned())
    assert "3 of 4 GPUs, the fullest 68% full: as few as leave a fifth of each free;" in shown
    assert "8,192 tokens of context" in shown


def test_a_page_has_the_image_the_numbers_and_each_note_once(shell):
    with capture_output() as captured:
        shell.run_line_magic("glm4v", "plan GLM-4V-9B --gpus 8x16GiB")
    (output,) = captured.outputs
    html = output.data["text/html"]
    assert html.index("glm4v-devices") < html.index("glm4v-plan")
    for said in (html, output.data["text/plain"]):
        assert said.count("as few as leave a fifth of each free; --objective balance would") == 1


@pytest.mark.parametrize("model", ["GLM-4.1V-9B-Thinking", "zai-org/GLM-4.5V", "demo"])
def test_other_models_are_planned_too(run, model):
    shown = run(f"made = %glm4v plan {model} --gpus 8x80GiB --context 256 --images 0")
    assert shown.startswith(model.partition("/")[2] or model)
    assert "256 tokens of context, 0 images" in shown


def test_a_model_on_common_machines(run, shell, tmp_path):
    shown = run("fits = %glm4v plan GLM-4V-9B --machines --context 2048")
    assert re.search(r"^2xT4 +float16 +2,048 +18 +9\.[0-9] +Kaggle, free$", shown, re.MULTILINE)
    assert "expect about half" in shown
    fits = shell.user_ns["fits"]
    assert len(fits) > 50
    file = tmp_path / "table.json"
    again = run(f"again = %glm4v plan GLM-4V-9B --machines --context 2048 --json {file}")
    assert f"The table is in {file}." in again
    printed = run("third = %glm4v plan GLM-4V-9B --machines --context 2048 --json")
    written = json.loads(file.read_text(encoding="utf-8"))
    assert json.loads(printed) == written == [fit.as_json() for fit in fits]


def test_a_folder_and_the_model_in_use(run, tiny, tmp_path):
    folder = tmp_path / "only"
    folder.mkdir()
    shutil.copy(golden.CHECKPOINT / "config.json", folder)
    assert run(f"made = %glm4v plan {folder} --gpus 1x1GiB").startswith(str(folder))
    assert run("made = %glm4v plan --gpus 1x1GiB").startswith(str(tiny))


def test_without_gpus_the_cpu_is_planned_in_float32(run):
    shown = run("made = %glm4v plan GLM-4V-9B --gpus cpu")
    assert "float32" in shown
    assert "cpu CPU" in shown


def test_json_is_what_load_reads(run):
    text = run("made = %glm4v plan GLM-4V-9B --gpus 4x16GiB --json")
    assert plan_from_json(text) == planned()


@pytest.mark.parametrize(
    ("typed", "options"),
    [
        ("--context 2048", {"context": 2048}),
        ("--images 0", {"images": 0}),
        ("--batch 2 --context 512", {"batch": 2, "context": 512}),
        ("--objective fewest", {"objective": "fewest"}),
        ("--dtype float16", {"dtype": "float16"}),
        ("--quantize 4bit", {"quantize": "4bit"}),
        ("--max-memory 14", {"max_memory": 14.0}),
        ("--max-memory 15,14,13,12", {"max_memory": (15.0, 14.0, 13.0, 12.0)}),
        ("--reserve 2.5", {"reserve": 2.5}),
        ("--gpus 5x10GiB --split-vision off", {"gpus": "5x10GiB", "split_vision": False}),
        ("--gpus 2x9GiB --offload --context 1024", {"gpus": "2x9GiB", "offload": True}),
    ],
)
def test_every_option_reaches_the_plan_and_changes_it(run, typed, options):
    base = "" if "--gpus" in typed else "--gpus 4x16GiB "
    made = plan_from_json(run(f"made = %glm4v plan GLM-4V-9B {base}{typed} --json"))
    context = {"context": 1024} if "offload" in options else {}
    assert made == planned(**options, **context)
    if "offload" in options:
        assert any(stage.offloaded for stage in made.stages)
        with pytest.raises(DoesNotFitError):
            planned(**{**options, "offload": False}, **context)
    else:
        assert made != planned()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("nothing --gpus 1x1GiB", "There is no configuration 'nothing'"),
        ("GLM-4V-9 --gpus 1x1GiB", "Did you mean GLM-4V-9B?"),
        ("GLM-4V-9B --gpus 2x", "Cannot read '2x'"),
        ("GLM-4V-9B --gpus 1x8GiB", "does not fit on 1 x 7.76 GiB|does not fit on 7.76 GiB"),
        ("GLM-4V-9B --gpus 1x80GiB --images 2", "takes 1 image"),
        ("GLM-4V-9B --max-memory much", "is not a size in GiB"),
        ("GLM-4V-9B --machines --gpus 1x80GiB", "so --gpus has no meaning"),
        ("GLM-4V-9B --machines --images 2", "takes 1 image"),
        ("GLM-4V-9B --objectiv fewest", "Did you mean --objective?"),
    ],
)
def test_what_is_wrong_is_one_line(run, typed, said):
    shown = run(f"%glm4v plan {typed}", fails=True)
    assert re.search(said, shown)
    assert shown.strip().count("\n") == 0


def test_a_plan_is_a_value_that_is_shown_once(run, shell):
    run("made = %glm4v plan GLM-4V-9B --gpus 4x16GiB --quantize 4bit")
    assert shell.user_ns["made"] == planned(quantize="4bit")
    shown = run("%glm4v plan GLM-4V-9B --gpus 4x16GiB")
    assert shown.count("8,192 tokens of context") == 1
    assert run("_").count("8,192 tokens of context") == 1
    assert run("print(repr(_))").startswith("<Plan of GLM-4V-9B on cuda:0, cuda:1")


def test_a_plan_is_saved_checked_and_loaded_as_one_thing(run, shell, tmp_path):
    options = "--gpus 2x1GiB --dtype float16 --context 128 --batch 2 --pin head=1 --reserve 0.1"
    shown = run(f"%glm4v plan {golden.CHECKPOINT} {options} --save plan.json")
    assert "The plan is in plan.json." in shown
    made = plan_from_json((tmp_path / "plan.json").read_text())
    assert made.limits == Limits(pin=(("head", 1),), reserve=0.1, dtype="float16")
    run(f"%glm4v plan {golden.CHECKPOINT} {options} --json again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "plan.json").read_text()
    shown = run("%glm4v check --map plan.json")
    assert shown.startswith(str(golden.CHECKPOINT))
    assert "float16, as planned" in shown
    assert "batch of 2" in shown
    with VirtualGPUs("2x1GiB"):
        assert "Loaded" in run(f"%glm4v load {golden.CHECKPOINT} --map plan.json")
        assert "float16" in run("%glm4v status")
        said = run(f"%glm4v load {golden.CHECKPOINT} --map plan.json --dtype bfloat16", fails=True)
        assert "--dtype is bfloat16, but the plan was made with float16" in said
        assert "is loaded already" in run(f"%glm4v load {golden.CHECKPOINT} --map plan.json")
        run("%glm4v unload")


SIZES = {0: "44GiB", "1": 20 * GIB, "cpu": "30GiB"}
AS_TYPED = "--max-memory 0=44GiB,1=20GiB,cpu=30GiB"
IN_PYTHON = [
    ("--max-memory {{sizes}}", AS_TYPED),
    ("--max-memory={{sizes}}", AS_TYPED),
    (f"--max-memory '{json.dumps(SIZES)}'", AS_TYPED),
    (f"--max-memory 0=44GiB,1={20 * GIB},cpu={30 * GIB}", AS_TYPED),
    ("--max-memory {{[44, 20]}}", "--max-memory 44,20"),
    ("--max-memory 0=0,1=44GiB", "--max-memory 0=0GiB,1=44GiB"),
    ("--max-memory mps=44GiB,cpu=30GiB", "--max-memory 0=44GiB,cpu=30GiB"),
    ("--dtype {{torch.float16}}", "--dtype float16"),
    ("--dtype={{torch.float16}}", "--dtype float16"),
    ("--pin {{pins}}", "--pin vision=1,head=1"),
    ('--pin \'{"vision": 1, "head": 1}\'', "--pin vision=1,head=1"),
    ("--context {{count}}", "--context 512"),
    ("--reserve {{count / 512}}", "--reserve 1"),
    ("--split-vision {{cut}}", "--split-vision off"),
    ("--split-vision={{cut}}", "--split-vision off"),
    ("--split-vision {{True}}", "--split-vision on"),
    ("--split-vision {{not cut}}", "--split-vision on"),
    ("--dtype {{None}} --max-memory={{None}} --pin {{None}} --context {{none}}", ""),
    ("--max-memory {{dict(sizes)}}", AS_TYPED),
    ("--dtype {{[torch.float16][0]}}", "--dtype float16"),
]


@pytest.mark.parametrize(("given", "typed"), IN_PYTHON)
def test_values_of_options_as_python_has_them(run, shell, given, typed):
    sizes = {torch.device("cuda", 0): "44GiB", np.int64(1): "20GiB", "cpu": 30 * GIB}
    pins = {"vision": np.int64(1), "head": torch.device("cuda:1")}
    shell.user_ns |= {"sizes": sizes, "pins": pins, "count": np.int64(512), "cut": False}
    shell.user_ns |= {"torch": torch, "none": None}
    if given == "--max-memory={{sizes}}":
        shell.user_ns["sizes"] = SIZES
    line = "%glm4v plan GLM-4V-9B --gpus 2x48GiB --json {}"
    assert json.loads(run(line.format(given))) == json.loads(run(line.format(typed)))


@pytest.mark.parametrize(
    ("way", "said", "taken"),
    [
        ("sequential", "Leave --map out, and take --objective fewest.", "--objective fewest"),
        (
            "balanced_low_0",
            "Leave --map out, and give GPU 0 less by --max-memory.",
            "--max-memory 8,24",
        ),
    ],
)
def test_ways_of_transformers_to_fill_gpus(run, way, said, taken):
    for command in ("load", "check"):
        line = f"%glm4v {command} demo{' --gpus 2x24GiB' if command == 'check' else ''}"
        shown = run(f"{line} --map {way} {taken}", fails=True)  # they do not go together
        assert said in shown
    run(f"%glm4v plan demo --gpus 2x24GiB {taken}")
    run("%glm4v check demo --gpus 2x24GiB")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--max-memory {{{'disk': 1}}}", "--max-memory names disk, which is not supported. Use"),
        ("--max-memory {{{0: 10}}}", '--max-memory has 10 for 0: bytes, as in .* "10GiB"'),
        ("--max-memory 0=10", '--max-memory has 10 for .*: bytes, as in accelerate.* "10GiB"'),
        ("--max-memory '{0: '", "'{0: ' is not a size in GiB"),
        ("--max-memory {{sole}}", "--max-memory: 'sole' is not a size"),
        ("--context {{True}}", "--context is 'True', but must be"),
        ("--pin {{[1]}}", "--pin is .*, but must be units and the GPU of each"),
        ("--pin vision=0,vision=1", "'vision' is pinned twice"),
        ("--pin foo=1", "has no unit 'foo' to pin"),
        ("--gpus cpu --pin foo=1", "has no unit 'foo' to pin"),
        ("--max-memory nan", "--max-memory is nan"),
        ("--max-memory inf,1", r"--max-memory is \(inf, 1.0\)"),
        ("--max-memory 1e400", "--max-memory is inf"),
        ("--max-memory 0=10GiB,0=1GiB", r"--max-memory names a device twice: GPU 0\. Give each"),
        ("--max-memory 1=9GiB,cuda:1=8GiB", r"--max-memory names a device twice: GPU 1\."),
        ("--max-memory cpu=9GiB,0=8GiB,cpu=9GiB", r"--max-memory names a device twice: cpu\."),
        ("--max-memory 0=much", "'much' for '0', which is not a size"),
        ("--max-memory 7=10GiB", "names GPU 7, which is not there"),
        ("--reserve nan", "--reserve is nan"),
        ("--reserve 1e400", "--reserve is inf"),
        ("--reserve -1", "--reserve is -1.0"),
        ("--save plan.txt", "must end in .json"),
        ("--save ''", "--save is empty."),
    ],
)
def test_sizes_pins_and_files_that_are_none(run, shell, typed, said):
    shell.user_ns["sole"] = [20]  # typed alone it would be for all GPUs
    shown = run(f"%glm4v plan GLM-4V-9B --gpus 2x24GiB {typed}", fails=True)
    assert re.search(said, shown.splitlines()[-1])
    assert shown.splitlines()[-1].startswith("UsageError: ")
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("option", "file", "reason"),
    [
        ("--save", "no/plan.json", "there is no folder no"),
        ("--save", "folder.json", "Is a directory"),
        ("--save", "loop.json", "Too many levels of symbolic links"),
        ("--save", "plan.json/plan.json", "Not a directory|there is no folder plan.json"),
        ("--save", f"{'a' * 300}.json", "File name too long"),
        ("--json", "no/plan.json", "there is no folder no"),
    ],
)
def test_a_plan_that_cannot_be_written_is_the_value_all_the_same(
    run, shell, tmp_path, option, file, reason
):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "plan.json").write_text("before")
    for options in ("--gpus 2x24GiB", *(["--machines"] if option == "--json" else [])):
        shown = run(f"made = %glm4v plan GLM-4V-9B {options} {option} {file}").splitlines()
        what = "The table" if "machines" in options else "The plan"
        name = file if len(file) < 100 else f"{file[:40]}...{file[-60:]}"
        written = f"{what} is shown here, but cannot be written to {name}: "
        assert re.fullmatch(f"{written}({reason}).", shown[-1])
        assert len(shown) > 5
    assert isinstance(shell.user_ns["made"], Plan if option == "--save" else tuple)
    assert (tmp_path / "plan.json").read_text() == "before"


def test_a_disk_that_becomes_full_leaves_the_plan_before(run, shell, tmp_path):
    run("%glm4v plan GLM-4V-9B --gpus 2x24GiB --save plan.json")
    before = (tmp_path / "plan.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))
    try:
        shown = run("made = %glm4v plan GLM-4V-9B --gpus 1x80GiB --save plan.json")
        with pytest.raises(OptionError, match="File too large"):
            shell.user_ns["made"].save(tmp_path / "plan.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written to plan.json: File too large." in shown
    assert (tmp_path / "plan.json").read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_is_written_where_a_link_or_a_device_is(run, tmp_path):
    (tmp_path / "real.json").write_text("")
    (tmp_path / "link.json").symlink_to("real.json")
    (tmp_path / "null.json").symlink_to("/dev/null")
    for name in ("link.json", "null.json"):
        assert f"The plan is in {name}." in run(
            f"made = %glm4v plan GLM-4V-9B --gpus 2x24GiB --save {name}"
        )
        assert (tmp_path / name).is_symlink()
    assert plan_from_json((tmp_path / "real.json").read_text()) == planned(gpus="2x24GiB")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"lm_head": 0,', "is not valid JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"weight_map": {}}', "is the index of a checkpoint"),
        ('{"format": "glm4v_magic.chat", "version": 1}', "is not a plan of glm4v_magic"),
        ('{"": 3}', "puts the whole model on GPU 3, but"),
        (None, "is of another model than"),
    ],
)
@pytest.mark.parametrize("command", ["load", "check --gpus 2x1GiB"])
def test_a_file_that_is_no_map_of_the_model_is_one_line(
    run, tiny, tmp_path, command, content, said
):
    other = planned().to_json()
    (tmp_path / "map.json").write_text(other if content is None else content)
    command, _, gpus = command.partition(" ")
    shown = run(f"%glm4v {command} {tiny} {gpus} --map map.json", fails=True)
    assert said in shown
    assert shown.strip().count("\n") == 0
    assert str(tiny) in run("%glm4v status")


def test_load_takes_the_same_options_and_a_map(run, tmp_path):
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"": "cpu"}))
    assert "Loaded" in run(f"%glm4v load {golden.CHECKPOINT} --map {file} --dtype float32")
    assert "is loaded already" in run(f"%glm4v load --map {file} --dtype float32")
    assert "Loaded" in run("%glm4v load --gpus cpu --context 64")
    file.write_text(json.dumps({"model": "cpu"}))
    assert "'lm_head' no device" in run(f"%glm4v load --map {file}", fails=True)
    assert "has no revision" in run("%glm4v load --revision main", fails=True)
    assert "torch sees none here" in run("%glm4v load --gpus 99x1GiB", fails=True)
    assert "was unloaded" in run("%glm4v unload")
    assert "was not loaded" in run("%glm4v unload")


def test_planning_imports_no_torch():
    plans = [f"plan {model} --gpus 8x80GiB" for model in ("GLM-4V-9B", "GLM-4.5V", "demo")]
    shown, modules = fresh_shell(*plans, "plan")
    assert not modules & {"torch", "transformers", "accelerate"}
    assert "GLM-4.5V" in shown


class Page(HTMLParser):
    """Tags in order, and whether each is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


class TestHTML:
    def test_one_row_for_each_gpu(self):
        plan = planned(gpus="24+16+12GiB")
        page = Page(plan_html(plan).replace("<wbr>", ""))
        assert len([tag for tag, _ in page.tags if tag == "tr"]) == 1 + 3
        for row in gpu_rows(plan.stages):
            assert {cell for cell in row if cell} <= set(page.text)

    def test_every_module_is_named_in_the_details(self):
        plan = planned()
        words = Page(plan_html(plan).replace("<wbr>", "")).text
        for stage in plan.stages:
            assert set(stage.modules) <= set(words)

    def test_an_idle_gpu_and_the_cpu(self):
        fewest = plan_html(planned(gpus="2x80GiB", objective="fewest"))
        assert ">idle<" in fewest
        assert "?" in plan_html(planned(gpus="cpu"))

    def test_offloaded_modules_are_marked(self):
        plan = planned(gpus="2x9GiB", offload=True, context=1024)
        html = plan_html(plan)
        assert html.count("(in host memory)") == sum(len(s.offloaded) for s in plan.stages) > 0

    def test_names_are_escaped_and_colours_suit_any_page(self):
        plan = Plan("<b>m", planned().workload, "balance", (Stage(0, "<i>GPU", GIB, ("a",)),))
        html = plan_html(plan)
        assert "<b>" not in html
        assert "<i>" not in html
        assert "color:" not in re.sub("background-color:|;color:inherit;", "", html)
        assert plan_bundle(plan)["text/plain"].startswith("<b>m")


@pytest.mark.parametrize("line", ["--over {{df}} -o rows", "--over df -o rows"])
def test_none_is_no_table_that_was_left_out(run, shell, line):
    shell.user_ns["df"] = None
    assert "df is of type NoneType" in run(f"%%glm4v {line} --max-tokens 2\nHm?", fails=True)
    shell.user_ns["labels"] = ["yes", "no", "other"]
    run('%glm4v ask "Hm?" --choices {{labels[:2]}} -o said')
    assert [*shell.user_ns["said"].choices] == ["yes", "no"]
