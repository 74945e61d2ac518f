"""Advice whose step is taken outside of this program: by pip, a shell or a new process.

What `test_advice` lists by its code has its test here, and all that says what to install.
Stand-ins are at the edge alone: the driver, packages that are not here, and where pip finds the
files of those that are.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from clips import write_clip
from golden import CHECKPOINT
from installing import Environment
from packaging.requirements import Requirement
from PIL import Image
from safetensors.torch import load_file, save_file
from shells import ROOT
from tiny_compressed import compressed
from tiny_packed import write_packed, write_whole

from glm4v_magic.core.remarks import PYTHON, worded
from glm4v_magic.doctor import Facts, diagnose, gather
from glm4v_magic.doctor import facts as doctor_facts
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

GIB = 2**30
DOCTOR = """
import json, os, shutil, sys
from types import SimpleNamespace
import pytest
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.remarks import PYTHON, worded
from glm4v_magic.doctor import diagnose, gather

def look(model="GLM-4V-9B", gpus=None):
    found = diagnose(gather(gpus, model=model))
    return {f.subject: [f.verdict, f.found, worded(f.reason, PYTHON), worded(f.next_step, PYTHON)]
            for f in found}

def driven(*gpus):
    from driver_standin import Described, Driver
    Driver([Described(**gpu) for gpu in gpus]).install(pytest.MonkeyPatch())
"""
"""Beginning of a program that asks the doctor, in an environment of its own."""


@pytest.fixture
def environment(tmp_path: Path):
    """A function that makes an environment, without some distributions."""
    return lambda *without: Environment(tmp_path / "environment", without)


def asked(environment: Environment, code: str, *arguments: str, **variables: str) -> Any:
    """Return what a program prints as JSON that begins as `DOCTOR`."""
    return json.loads(environment.python(DOCTOR + code, *arguments, **variables).splitlines()[-1])


def torch_of(version: str, cuda: str, body: str = "") -> dict[str, str]:
    """Return the files of a stand-in of torch, built for a version of CUDA."""
    lines = [
        "import os",
        body,
        f"__version__ = {version!r}",
        f"class version: cuda = {cuda or None!r}",
        "class backends: pass",
        "class cuda:",
        "    is_available = staticmethod(lambda: 'CUDA_IS_DOWN' not in os.environ)",
    ]
    return {"torch/__init__.py": "\n".join(lines)}


COMMAND = r"""pip install (?:--\S+ )*(?:"[^"]+"|'[^']+'|[\w -]*\w)"""
ONE_GPU = "driven({})\nprint(json.dumps(look()))"


def command_in(text: str) -> str:
    """Return the command that a message says."""
    (found,) = re.findall(COMMAND, text)
    return str(found)


# Torch and CUDA.


def test_install(environment):
    """install"""
    here = environment("accelerate")
    here.put("torch", "2.0.0", torch_of("2.0.0", "12.6"))
    here.wheel("torch", "2.13.0", torch_of("2.13.0", "12.6"))
    before = asked(here, ONE_GPU)
    assert before["torch"][:2] == ["fail", "2.0.0"]
    assert before["accelerate"][:2] == ["fail", "not installed"]
    for name in ("torch", "accelerate"):
        (command,) = re.findall(r"^Run (pip .+), then restart Python\.$", before[name][3])
        here.shell(command)
    after = asked(here, ONE_GPU)
    assert [after[name][0] for name in ("torch", "accelerate")] == ["ok", "ok"]


def test_install_if_older(environment):
    """install_if_older"""
    here = environment()
    here.put("torch", "2.0.0", torch_of("2.0.0", "12.6"))
    (info,) = here.site.glob("torch-*.dist-info")
    about = (info / "METADATA").read_text()
    (info / "METADATA").write_text(about.replace("2.0.0", "built-by-hand"))
    here.wheel("torch", "2.13.0", torch_of("2.13.0", "12.6"))
    before = asked(here, ONE_GPU)
    assert before["torch"][:2] == ["warn", "built-by-hand"]
    (command,) = re.findall(
        r"^If it is older: (pip .+), then restart Python\.$", before["torch"][3]
    )
    here.shell(command)
    assert asked(here, ONE_GPU)["torch"][:2] == ["ok", "2.13.0"]


def test_a_torch_that_is_damaged_is_installed_again(environment):
    missing = "raise OSError('libcudart.so.12: cannot open shared object file')"
    here = environment()
    here.put("torch", "2.13.0", torch_of("2.13.0", "12.6", missing))
    here.wheel("torch", "2.13.0", torch_of("2.13.0", "12.6"))
    before = asked(here, ONE_GPU)
    assert before["CUDA"][:2] == ["fail", "torch cannot be imported"]
    assert "libcudart.so.12" in before["CUDA"][2]
    (command,) = re.findall(r"^Run (pip .+), then restart Python\.$", before["CUDA"][3])
    here.shell(command)
    after = asked(here, ONE_GPU)
    assert after["CUDA"][:2] == ["ok", "torch is built for 12.6"]
    assert after["torch"][0] == "ok"


def test_restart_and_look(environment):
    """restart_and_look"""
    here = environment()
    here.put("torch", "2.13.0", torch_of("2.13.0", "12.6"))
    before = asked(here, ONE_GPU, CUDA_IS_DOWN="1")
    assert before["CUDA"][:2] == ["fail", "torch is built for 12.6, and CUDA does not start"]
    assert before["CUDA"][3] == (
        "Restart Python; if CUDA does not start then either, nvidia-smi tells whether the driver "
        "works."
    )
    assert asked(here, ONE_GPU)["CUDA"][0] == "ok"  # a new process


def test_restart(environment):
    """restart"""
    here = environment()
    here.put("peft", "0.18.0", {"peft/__init__.py": "__version__ = '0.18.0'"})
    here.wheel("peft", "0.19.0", {"peft/__init__.py": "__version__ = '0.19.0'"})
    replaced = (
        "import subprocess, peft\n"
        "first = look()\n"
        "subprocess.run('pip install --upgrade --no-deps peft', shell=True, stdout=2, check=True)\n"
        "print(json.dumps([first, look()]))"
    )
    first, then = asked(here, replaced)
    assert "peft" not in first  # what is as asked is counted, not listed
    assert then["peft"] == [
        "warn",
        "0.19.0 installed, 0.18.0 imported",
        "It was replaced while Python was running.",
        "Restart Python.",
    ]
    assert "peft" not in asked(here, "import peft\nprint(json.dumps(look()))")


@pytest.mark.parametrize("is_older", [True, False])
def test_what_the_doctor_says_to_install_is_what_it_asks_for(monkeypatch, is_older):
    """Of every package: pip takes the words, and with what `constraints.txt` has it is content.

    Of an extra it says: Install it if you need that.
    """
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    pinned = {name.replace("_", "-").lower(): version for name, version in pinned.items()}
    here = {name: metadata.version(name) for name in ("torch", "transformers")}
    installed: dict[str, str] = {}

    def version(name: str) -> str:
        if name in installed:
            return installed[name]
        if is_older and name not in here:
            return "0.0.1"
        if is_older:
            return "1.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor_facts.metadata, "version", version)

    def told() -> dict[str, str]:
        found = (each for each in diagnose(_without_imports(gather(()))) if each.next_step)
        commands = {each.subject: worded(each.next_step, PYTHON) for each in found}
        return {name: text for name, text in commands.items() if "pip install" in text}

    assert len(told()) > 10
    for _ in range(2):  # the version that was found to be a trap is left after that
        for name, text in told().items():
            (asked_for,) = shlex.split(command_in(text))[2:]
            wanted = Requirement(asked_for)
            assert wanted.name == name
            exact = [each.version for each in wanted.specifier if each.operator == "=="]
            (there,) = exact or [pinned[name.replace("_", "-").lower()]]
            assert wanted.specifier.contains(there), (asked_for, there)
            installed[name] = there
    assert told() == {}


def _without_imports(facts: Facts) -> Facts:
    return replace(facts, packages=tuple(replace(each, imported="") for each in facts.packages))


# What is to be installed, by the sentence that says it.

KALEIDO = """
import os
class errors:
    class ChromeNotFoundError(Exception): pass
import sys
sys.modules["kaleido.errors"] = errors
CHROME = os.path.join(os.environ["HOME"], "chrome")
def get_chrome_sync(path=None):
    open(CHROME, "w").close()
    return CHROME
def calc_fig_sync(*arguments, **options):
    if not os.path.exists(CHROME):
        raise errors.ChromeNotFoundError()
    import io
    from PIL import Image
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()
"""
VL_CONVERT = """
def get_vegalite_versions(): return ["9.9"]
def vegalite_to_png(*arguments, **options):
    import io
    from PIL import Image
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()
"""
MADE = {
    "kaleido": (
        "1.5.0",
        {
            "kaleido/__init__.py": KALEIDO,
            "choreographer/cli/__init__.py": "",
            "choreographer/cli/defaults.py": "default_download_path = None",
        },
    ),
    "vl-convert-python": ("1.9.0", {"vl_convert/__init__.py": VL_CONVERT}),
    "gptqmodel": (
        "7.0.0",
        {
            "gptqmodel/__init__.py": "",
            "gptqmodel/nn_modules/__init__.py": "",
            "gptqmodel/nn_modules/qlinear.py": "class BaseQuantLinear: pass",
        },
    ),
    "optimum": ("1.27.0", {"optimum/__init__.py": ""}),
}
"""Packages that no test environment has: name -> version and files of a stand-in."""

HIDDEN = (
    "av", "bitsandbytes", "compressed-tensors", "llguidance", "nnsight", "peft", "pyarrow",
    "pypdfium2", "ray", "xarray",
)  # fmt: skip

SCENES = {
    "an adapter": "session.load('adapter')",
    "awq": "resolve('awq').require_usable()",
    "gptq": "resolve('gptq').require_usable()",
    "bitsandbytes": "session.load('demo', quantize='8bit')",
    "compressed": "resolve('compressed').require_usable()",
    "a clip": "to_video('clip.mp4', 'it')",
    "a document": "to_image('page.pdf', 'it')",
    "a plotly figure": "to_image(graph_objects.Figure(), 'it')",
    "an altair chart": ("to_image(altair.Chart(altair.Data(values=[{'a': 1}])).mark_bar(), 'it')"),
    "labelled": "Labelled(np.zeros(2), ('a',)).to_xarray()",
    "rows": "session.map('{{item}}?', ['a', 'b'], save='rows.parquet', max_tokens=2)",
    "a pattern": "session.ask('What?', regex='a|b', max_tokens=4)",
    "a pattern of a server": "read_question(question, 'demo')",
    "a trace": "session.trace('What?', max_tokens=1)",
    "replicas": "require_ray()",
}
"""What needs a package, as a program that has `BEGINNING` before it says it."""

INSTALLED = {
    "an adapter": "Install it with: pip install 'glm4v_magic[lora]'",
    "gptq": "Install {} with: pip install {}",
    "bitsandbytes": "Install it with: pip install 'glm4v_magic[quantize]'",
    "a clip": "Install it with: pip install av",
    "a document": "Install it with: pip install pypdfium2",
    "a plotly figure": "Install it with: pip install --upgrade kaleido, and restart Python.",
    "an altair chart": "Install it with: pip install --upgrade vl-convert-python",
    "labelled": 'Install it with pip install "glm4v_magic[xarray]".',
    "rows": "Install it with: pip install 'glm4v_magic[parquet]'",
    "a pattern": "Install it with: pip install llguidance",
    "a trace": 'Install it with pip install "glm4v_magic[nnsight]".',
    "replicas": "Install it with: pip install 'glm4v_magic[ray]'",
}
"""The advice that is met there and taken."""

BEGINNING = """
import json, os, re, site, subprocess, sys
import altair
import numpy as np
from plotly import graph_objects
from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.engines.replicas.cluster import require_ray
from glm4v_magic.images import to_image
from glm4v_magic.images.video import to_video
from glm4v_magic.inspect.labelled import Labelled
from glm4v_magic.server.questions import read_question
from glm4v_magic.session.session import Session

scenes, pattern, packages = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
session = Session().load("demo", gpus="cpu")
question = {"messages": [{"role": "user", "content": "?"}], "guided_regex": "a|b"}

def said():
    found = {}
    for name, code in scenes.items():
        try:
            exec(code)
        except Glm4vError as error:
            found[name] = str(error)
    return found

before = said()
print(json.dumps(before))
commands = [re.search(pattern, text) for text in before.values()]
for command in dict.fromkeys(found[0] for found in commands if found):
    subprocess.run(command, shell=True, check=True, stdout=2)
site.addsitedir(packages)  # where the stand-ins of installed files are links
print(json.dumps(said()))
"""


def write_what_needs_packages(folder: Path) -> None:
    """Write the files that `SCENES` name."""
    write_clip(folder / "clip.mp4", count=4)
    Image.new("RGB", (40, 40)).save(folder / "page.pdf")
    model = write_whole(folder / "full-precision")
    compressed(model, folder / "compressed", "pack-quantized")
    for method in ("gptq", "awq"):
        small, _ = write_packed(model, folder / f"of-{method}", method)
        small.rename(folder / method)
    config = peft.LoraConfig(r=1, target_modules=["query_key_value"])
    config.base_model_name_or_path = str(CHECKPOINT)
    config.save_pretrained(folder / "adapter")
    weights = load_file(CHECKPOINT / "model.safetensors")
    module = "transformer.encoder.layers.0.self_attention.query_key_value"
    rows, columns = weights[f"{module}.weight"].shape
    name = f"base_model.model.{module}"
    parts = {
        f"{name}.lora_A.weight": torch.ones(1, columns),
        f"{name}.lora_B.weight": torch.ones(rows, 1),
    }
    save_file(parts, folder / "adapter" / "adapter_model.safetensors")


def test_what_is_said_to_be_installed_is_all_that_is_needed(tmp_path):
    """Each message is met in a running process, its command is run, and it does not come again."""
    there = Environment(tmp_path / "environment", HIDDEN)
    for name, (version, files) in MADE.items():
        there.wheel(name, version, files)
    write_what_needs_packages(there.folder)
    arguments = [json.dumps(SCENES), COMMAND, str(there.site)]
    before, after = map(json.loads, there.python(BEGINNING, *arguments).splitlines())
    assert before.keys() == SCENES.keys()
    for name, advice in INSTALLED.items():
        assert all(part in before[name] for part in advice.split("{}")), before[name]
    later = {name for name, text in before.items() if text.endswith("and restart Python.")}
    assert after.keys() == later, after
    arguments[0] = json.dumps({name: SCENES[name] for name in later})
    (chrome,) = json.loads(there.python(BEGINNING, *arguments).splitlines()[-1]).values()
    assert chrome.startswith("it is a plotly figure, and kaleido draws it with Chrome, which is")
    (command,) = re.findall(r"Install Chrome, or run (\w+) in a terminal\.$", chrome)
    there.script(command)
    there.shell(command, given="y\n")
    assert json.loads(there.python(BEGINNING, *arguments).splitlines()[-1]) == {}


BACKEND = """
import base64, os, tomllib, zipfile

def build_wheel(folder, settings=None, metadata=None):
    project = tomllib.load(open("pyproject.toml", "rb"))["project"]
    info = "glm4v_magic-0.1.0.dist-info"
    about = ["Metadata-Version: 2.1", "Name: glm4v_magic", "Version: 0.1.0"]
    about += ["Requires-Python: " + project["requires-python"]]
    about += ["Requires-Dist: " + each for each in project["dependencies"]]
    files = {
        "glm4v_magic.pth": os.getcwd() + "\\n",
        info + "/METADATA": "\\n".join(about),
        info + "/WHEEL": "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\n"
        "Tag: py3-none-any\\n",
    }
    files[info + "/RECORD"] = "".join(path + ",,\\n" for path in [*files, info + "/RECORD"])
    with zipfile.ZipFile(os.path.join(folder, "glm4v_magic-0.1.0-py3-none-any.whl"), "w") as file:
        for path, text in files.items():
            file.writestr(path, text)
    return "glm4v_magic-0.1.0-py3-none-any.whl"
"""
"""What builds the package, which is not among the packages of the tests."""


def test_the_folder_of_the_package_is_installed(environment):
    here = environment("glm4v_magic")
    here.wheel("hatchling", "1.27.0", {"hatchling/__init__.py": "", "hatchling/build.py": BACKEND})
    ask = "print(json.dumps(look(gpus=parse_gpus('1x24GiB'))))"
    before = asked(here, ask)["Python"]
    assert "glm4v_magic is not installed" in before[2]
    (command,) = re.findall('^Run "(pip install .*)" in its folder\\.$', before[3])
    here.shell(command, cwd=ROOT)
    assert asked(here, ask)["Python"][0] == "ok"


def test_what_tells_which_gpus_there_are_is_installed(environment):
    """Run pip install nvidia-ml-py."""
    here = environment("nvidia-ml-py")
    before = asked(here, "print(json.dumps(look()))")["GPUs"]
    assert before[1] == "not known"
    here.shell(command_in(before[3]))
    after = asked(here, "print(json.dumps(look()))")["GPUs"]
    assert after[1] == "none"
    assert after[2] == "There is no NVIDIA driver."


# GPUs.


def test_idle_gpus_are_left_to_others():
    """Leave them to others."""
    with VirtualGPUs("7x1GiB") as gpus:
        session = Session().load(CHECKPOINT)
        found = {each.subject: each for each in diagnose(gather(gpus.gpus, model=str(CHECKPOINT)))}
        assert found["idle GPUs"].next_step == "Leave them to others."
        idle = found["idle GPUs"].found.split(", ")
        assert not {*idle} & {*session.status().info.devices}
        before = session.ask("What?", max_tokens=4, temperature=0).text
        others = [torch.empty(GIB, dtype=torch.uint8, device=each) for each in idle]
        assert session.ask("What?", max_tokens=4, temperature=0).text == before
        assert others
        session.unload()
