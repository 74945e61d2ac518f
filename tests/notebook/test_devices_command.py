"""``%glm4v devices``, ``%glm4v memory`` and pins, as typed in a terminal; and lines that load."""

from __future__ import annotations

import json
import re

import golden
import pytest
from shells import fresh_shell

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import PlacementError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.notebook.command_line import parse, split
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.commands.plan import as_options, placement_options
from glm4v_magic.notebook.draft import load_line
from glm4v_magic.notebook.render.plans.device_map import device_map_text
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.files import plan_from_json
from glm4v_magic.planning.occupancy import occupancy

NINE_B = architecture("GLM-4V-9B")


def drawn(gpus, **options):
    plan = make_plan(NINE_B, PlacementOptions(gpus=gpus, **options))
    return device_map_text(occupancy(plan, NINE_B.shape(), parse_gpus(gpus)))


def test_a_model_that_is_not_here_is_drawn(run):
    shown = run("%glm4v devices GLM-4V-9B --gpus 4x16GiB --context 4096")
    assert shown.strip() == drawn("4x16GiB", context=4096)


def test_what_does_not_fit_is_drawn_too_and_said(run):
    shown = run("%glm4v devices GLM-4V-9B --gpus 2x9GiB")
    assert "GLM-4V-9B does not fit on 2 x 8.73 GiB" in shown
    assert re.search(r"cuda:1 GPU, 9.00 GiB, planned 17\d%", shown)


def test_the_loaded_model_is_drawn_as_it_is(run, tiny):
    assert "Loaded on the CPU" in run("%glm4v devices")
    assert "cache in use" not in run("%glm4v devices")
    run("%%glm4v --max-tokens 4\nWhat?")
    assert "C cache in use" in run("%glm4v devices")
    # An option asks for a plan, not for what is loaded.
    assert "Fits: the fullest GPU is cuda:0" in run("%glm4v devices --gpus 2x1GiB")


def test_a_map_that_puts_all_on_the_cpu_is_no_riddle(run, tmp_path):
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"": "cpu"}))
    run(f"%glm4v load {golden.CHECKPOINT} --map {file}")
    shown = run("%glm4v devices")
    assert "Loaded on the CPU" in shown


def test_of_a_map_over_gpus_nothing_is_known(run, tiny, shell):
    from dataclasses import replace

    from glm4v_magic.notebook.commands.devices import draw_loaded

    status = shell.magics_manager.registry["Glm4vMagics"].context.session.status()
    mapped = replace(status, info=replace(status.info, devices=("cuda:0", "cuda:1")))
    with pytest.raises(PlacementError, match="follows a map that was given"):
        draw_loaded(architecture(str(tiny)), mapped)


def test_a_server_does_not_tell_its_gpus(shell, tiny):
    """Neither in a line nor in a view that was open when the session went over to it."""
    from dataclasses import replace

    from glm4v_magic.notebook.commands.devices import Drawing, refuse_server

    status = shell.magics_manager.registry["Glm4vMagics"].context.session.status()
    address = "http://127.0.0.1:8000/v1"
    away = replace(
        status,
        choice=replace(status.choice, model=address),
        info=replace(status.info, devices=(), parameters=None, server=address),
    )
    with pytest.raises(PlacementError, match="which does not tell its GPUs"):
        refuse_server(away)
    draw = Drawing(architecture(str(tiny)), status)
    assert draw(status).problem == ""
    assert draw(status) is draw(status)
    assert "which does not tell its GPUs" in draw(away).problem
    assert draw(replace(status, info=None)).problem == "No model is loaded now."
    assert draw(status).problem == ""


def test_the_answer_of_another_model_used_none_of_the_cache(run, tiny, shell):
    from dataclasses import replace

    from glm4v_magic.notebook.commands.devices import draw_loaded

    run("%%glm4v --max-tokens 4\nWhat?")
    status = shell.magics_manager.registry["Glm4vMagics"].context.session.status()
    model = architecture(str(tiny))
    for last, used in (
        (status.last, True),
        (replace(status.last, model="another"), False),
        (None, False),
    ):
        (gpu,) = draw_loaded(model, replace(status, last=last)).gpus
        assert ("cache" in {part.kind for part in gpu.parts}) == used


def test_an_edited_plan_is_a_problem_of_the_view_alone(tiny, shell):
    from dataclasses import replace

    from glm4v_magic.notebook.commands.devices import Drawing

    status = shell.magics_manager.registry["Glm4vMagics"].context.session.status()
    model = architecture(str(tiny))
    made = make_plan(model, PlacementOptions(gpus="1x1GiB"))
    for edited, said in (
        (replace(made, stages=(replace(made.stages[0], units=("x",)),)), "a unit 'x'"),
        (replace(made, workload=replace(made.workload, context=10**6)), "is longer than"),
    ):
        loaded = replace(status, info=replace(status.info, plan=edited))
        assert said in Drawing(model, status)(loaded).problem


def test_memory_in_a_terminal(run, tiny):
    shown = run("%glm4v memory")
    assert f"{tiny} is loaded, as of 20" in shown
    assert "this model's weights" in shown
    run("%glm4v unload")
    assert "No model is loaded" in run("%glm4v memory")


def test_inside_virtual_gpus_memory_shows_them(run):
    shown = run(
        "from glm4v_magic.virtual_gpus import VirtualGPUs\n"
        "import torch\n"
        "with VirtualGPUs('4x8MiB'):\n"
        "    held = torch.ones(2**20, device='cuda:2')\n"
        "    get_ipython().run_line_magic('glm4v', 'memory')\n"
    )
    assert shown.count("virtual GPU, 8.0 MiB") == 4
    assert "this kernel's other memory: 4.0 MiB" in shown


def test_nothing_heavy_is_needed_to_draw():
    _, modules = fresh_shell("devices GLM-4V-9B --gpus 4x16GiB", "memory")
    assert not modules & {"torch", "transformers", "ipywidgets", "numpy"}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("devices nothing", "There is no configuration 'nothing'"),
        ("devices GLM-4V-9B --gpus 2x", "Cannot read '2x'"),
        ("devices GLM-4V-9B --gpus 1x1GiB --reserve 2", "no GPU has memory left"),
        ("plan GLM-4V-9B --gpus 4x16GiB --pin vision", "'vision' is not a unit and its GPU"),
        ("plan GLM-4V-9B --gpus 4x16GiB --pin vision=x", "is not a unit and its GPU"),
        ("plan GLM-4V-9B --gpus 4x16GiB --pin vison=0", "Did you mean vision?"),
        ("plan GLM-4V-9B --gpus 4x16GiB --pin vision=9", "pinned to cuda:9, which is not there"),
        ("memory now", "does not take 'now'"),
    ],
)
def test_what_is_wrong_is_one_line(run, typed, said):
    shown = run(f"%glm4v {typed}", fails=True)
    assert said in shown
    assert shown.strip().count("\n") == 0


def test_pins_reach_the_plan(run):
    text = run("made = %glm4v plan GLM-4V-9B --gpus 4x16GiB --pin vision=2,layer.0=cuda:2 --json")
    plan = plan_from_json(text)
    (stage,) = [stage for stage in plan.stages if stage.gpu == 2]
    assert {"vision", "embedding", "layer.0"} <= set(stage.units)
    assert plan != make_plan(NINE_B, PlacementOptions(gpus="4x16GiB"))


def test_pins_are_of_a_plan_not_of_a_map(run, tmp_path):
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"": "cpu"}))
    line = f"%glm4v load {golden.CHECKPOINT} --map {file} --pin vision=0"
    assert "pin is for making a plan" in run(line, fails=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gpus": "24+16+12GiB", "context": 4096, "images": 0},
        {"gpus": "2 x 16 GiB", "objective": "fewest", "dtype": "float16"},
        {"quantize": "4bit", "max_memory": 14.5, "batch": 2},
        {"max_memory": (15.0, 14.123456789), "reserve": 0.5, "split_vision": True},
        {"max_memory": {0: "14.5GiB", "cpu": "30GiB"}},
        {"offload": True, "pin": (("vision", 0), ("layer.7", 1))},
    ],
)
@pytest.mark.parametrize("model", ["demo", "my models/glm-4v", "it's here", 'a "b"'])
def test_the_line_of_a_plan_loads_the_same(options, model):
    options = PlacementOptions(**options)
    line = load_line(model, options)
    _, command, *words = split(line)
    arguments = parse(COMMANDS[command], words)
    assert arguments.model == model
    assert as_options(placement_options(arguments)) == options


def test_a_plan_in_a_notebook_has_the_view(shell):
    from IPython.utils.capture import capture_output

    with capture_output() as captured:
        shell.run_line_magic("glm4v", "plan GLM-4V-9B --gpus 4x16GiB")
    (output,) = captured.outputs
    assert 'class="glm4v-devices"' in output.data["text/html"]
    assert 'class="glm4v-plan"' in output.data["text/html"]
    assert output.data["text/plain"].startswith("GLM-4V-9B, bfloat16")
