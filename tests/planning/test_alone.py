"""Planning needs Python's standard library, and pydantic to read files; no torch, no machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Refuses whatever is not Python's, ours, or allowed, as if it were not installed.
BARRED = """
import sys
from importlib.abc import MetaPathFinder

class Barred(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        is_python = top in sys.stdlib_module_names or top.startswith("_sysconfigdata")
        if not is_python and top not in {"glm4v_magic", *ALLOWED}:
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


def run(code, *allowed):
    code = BARRED.replace("*ALLOWED", f"*{allowed!r}") + code
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
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


@pytest.mark.parametrize("name", ["torch", "numpy", "pydantic"])
def test_what_is_barred_cannot_be_imported(name):
    assert f"No module named '{name}'" in run(f"import {name}").stderr
