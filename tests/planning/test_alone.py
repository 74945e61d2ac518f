"""Planning needs Python's standard library, and pydantic to read files; no torch, no machine."""

from __future__ import annotations

import io
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Refuses whatever is not Python's, ours, or allowed, as if it were not installed.
BARRED = """
import sys
from importlib.abc import MetaPathFinder

def is_python(name):
    top = name.partition(".")[0]
    return top in {*sys.stdlib_module_names, "__main__"} or top.startswith("_sysconfigdata")

class Barred(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if not is_python(name) and name.partition(".")[0] not in {"glm4v_magic", *ALLOWED}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Barred())
"""
PYDANTIC = (
    "annotated_types",
    "pydantic",
    "pydantic_core",
    "typing_extensions",
    "typing_inspection",
)

FROM_THE_CONFIGURATION = """
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.files import plan_from_json
from glm4v_magic.planning.occupancy import occupancy

model = architecture("GLM-4V-9B")
made = make_plan(model, PlacementOptions(gpus="12+12+24GiB", context=2048))
assert plan_from_json(made.to_json()) == made
print(made, len(occupancy(made, model.shape()).gpus), sep="\\n")
"""

FROM_SIZES = """
import importlib, json, pkgutil
from importlib import resources

from glm4v_magic import core, planning
from glm4v_magic.checkpoints.glm4v_9b.units import model_shape
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.planning.device_map import check
from glm4v_magic.planning.plan import plan

for room in (core, planning):
    for module in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
        if module.name != "glm4v_magic.planning.given_map":  # checks device maps by pydantic
            importlib.import_module(module.name)
file = resources.files("glm4v_magic.checkpoints") / "published" / "GLM-4V-9B.json"
shape = model_shape(json.loads(file.read_text(encoding="utf-8")), "GLM-4V-9B")
made = plan(shape, parse_gpus("12+12+24GiB"), Workload(context=2048))
json.loads(made.to_json())

from glm4v_magic.notebook.render.plans.device_map import device_map_bundle
from glm4v_magic.notebook.render.plans.plan import plan_bundle
from glm4v_magic.planning.occupancy import occupancy

for bundle in (plan_bundle(made), device_map_bundle(occupancy(made, shape))):
    assert "cuda:1" in bundle["text/plain"] and "cuda:1" in bundle["text/html"]
print(made, len(made.stages), sep="\\n")
"""

IN_A_BROWSER = """
import json
sys.path.insert(0, sys.argv[1])
from glm4v_magic.notebook.web_planner import WebPlanner

models = open(f"{sys.argv[1]}/models.json", encoding="utf-8").read()
planner = WebPlanner(models)

def said(**asked):
    found = json.loads(planner.answer(json.dumps(asked)))
    return found["line"], found["html"]

for model in json.loads(models):
    for gpus in ("8xH200", "24+16+12GiB"):
        line, html = said(model=model, gpus=gpus, offload="on")
        assert "Error" not in html, html
        assert line.startswith(f"%glm4v load {model}") or "does not fit" in html, html
for objective in ("fastest", "fewest"):
    for gpus in ("2xT4", "4x3GiB", "1GiB", "cpu"):
        line, html = said(model="GLM-4V-9B", gpus=gpus, objective=objective)
        assert "Error" not in html, html
        assert bool(line) == (gpus == "cpu"), line
for wrong in (
    {"gpus": "2xT5"}, {"gpus": "4x"}, {"gpus": "<b>"}, {"context": "<b>"}, {"context": "-1"},
    {"images": "2"}, {"dtype": "int3"}, {"quantize": "5bit"}, {"objective": "x"}, {"model": "<b>"},
    {"offload": "<b>"},
):
    line, html = said(**{"model": "GLM-4V-9B", "gpus": "2xT4", **wrong})
    assert not line, wrong
    assert "no plan" in html and "<b>" not in html and "Error" not in html, html
assert "Describe them" in said(model="GLM-4V-9B")[1]
print([name for name in sys.modules if not name.startswith("glm4v") and not is_python(name)])
"""


def run(code, *allowed, options=(), arguments=()):
    code = BARRED.replace("*ALLOWED", f"*{allowed!r}") + code
    return subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", code, *arguments],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("code", "allowed"),
    [(FROM_THE_CONFIGURATION, PYDANTIC), (FROM_SIZES, ())],
    ids=["file", "sizes"],
)
def test_glm4v_9b_is_planned_without_torch(code, allowed):
    done = run(code, *allowed)
    assert done.returncode == 0, done.stderr
    first, *_, gpus = done.stdout.splitlines()
    assert first.startswith("GLM-4V-9B")
    assert gpus == "3"


def test_what_a_page_in_a_browser_gets_is_enough_for_it(tmp_path):
    made = runpy.run_path(str(ROOT / "docs" / "planner.py"))["sources"]()
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        archive.extractall(tmp_path)
    done = run(IN_A_BROWSER, options=("-I", "-S"), arguments=(str(tmp_path),))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["torch", "numpy", "pydantic"])
def test_what_is_barred_cannot_be_imported(name):
    assert f"No module named '{name}'" in run(f"import {name}").stderr
