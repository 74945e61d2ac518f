"""The fixture that pytest finds, and what it costs where no test asks for it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

A_TEST_OF_SOMEBODY = """
import pytest
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.second(self.first(x))


def test_a_map_that_fails(virtual_gpus):
    gpus = virtual_gpus("2x1GiB")
    net = Net()
    net.first.to("cuda:0")
    net.second.to("cuda:1")
    with pytest.raises(RuntimeError, match="cuda:0 and cuda:1|cuda:1 and cuda:0"):
        net(torch.ones(1, 4, device="cuda:0"))
    assert gpus.problems[0].module == "second"


def test_the_one_before_is_over(virtual_gpus):
    virtual_gpus([1 << 20], available=True)
    assert torch.cuda.device_count() == 1
    assert torch.cuda.is_available()


def test_without(request):
    assert torch.compile(abs) is not abs
"""


def run(*arguments: str, folder: Path | None = None) -> str:
    """Run Python, with no plugins of pytest but those that are named: not all are installed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def plugin() -> str:
    points = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["entry-points"]["pytest11"]
    (module,) = points.values()
    assert importlib.metadata.EntryPoint("virtual_gpus", module, "pytest11").load()
    return str(module)


def test_a_test_of_somebody_uses_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_net.py").write_text(A_TEST_OF_SOMEBODY, "utf-8")
    options = ("-q", "-p", "no:cacheprovider", "-p", plugin())
    assert "3 passed" in run("-m", "pytest", *options, "test_net.py", folder=tmp_path)
    assert "virtual_gpus" in run("-m", "pytest", *options, "--fixtures", folder=tmp_path)


def test_the_page_for_your_own_model_is_true(tmp_path: Path) -> None:
    page = (PYPROJECT.parent / "docs/your-own-model.md").read_text("utf-8")
    small, large, test = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "page.py").write_text(small + large, "utf-8")
    said = run("page.py", folder=tmp_path)
    assert re.search(r"cuda:0 -> cuda:1 model\.layers\.2 \d+", said)
    assert "found at least two devices, cuda:0 and cuda:1!" in said
    assert re.search(r"prefill cuda:1 \d+\.\d GiB", said)
    (tmp_path / "test_page.py").write_text(small + test, "utf-8")
    options = ("-q", "-p", "no:cacheprovider", "-p", plugin())
    assert "1 passed" in run("-m", "pytest", *options, "test_page.py", folder=tmp_path)


def test_the_plugin_imports_nothing_of_weight() -> None:
    code = (
        f"import sys, {plugin()}\n"
        "print(*sorted(n for n in sys.modules if n.startswith('glm4v_magic.')))\n"
        "print(*{'torch', 'numpy', 'transformers'} & set(sys.modules))"
    )
    ours, heavy = run("-c", code).splitlines()
    assert ours.split() == [
        "glm4v_magic.virtual_gpus", "glm4v_magic.virtual_gpus.pytest_plugin",
    ]  # fmt: skip
    assert not heavy


ALONE = """
import torch
from glm4v_magic.virtual_gpus import MixedDeviceError, VirtualGPUs

with VirtualGPUs("2xA100-1.5GiB+1GiB", available=True) as gpus:
    assert [gpu.name for gpu in gpus.gpus] == ["A100", "A100", "GPU"]
    assert gpus.max_memory == {0: 3 * 2**29, 1: 3 * 2**29, 2: 2**30}
    model = torch.nn.Linear(4, 4).to("cuda:1")
    moved = model(torch.ones(1, 4, device="cuda:1")).to("cuda:2")
    assert torch.equal(moved.cpu(), model(torch.ones(1, 4, device="cuda:1")).cpu())
    try:
        moved + model.bias
    except MixedDeviceError as error:
        print(error)
    try:
        torch.ones(2**29, device="cuda:0")
    except torch.OutOfMemoryError as error:
        print(error)
for wrong in (lambda: VirtualGPUs("4xT4"), lambda: VirtualGPUs("1x1GiB", values="some"),
              lambda: VirtualGPUs("300x1GiB"), lambda: VirtualGPUs("16")):
    try:
        wrong()
    except Exception as error:
        print(type(error).__module__, type(error).__name__, error)
"""


def test_a_copy_of_the_folder_works_alone(tmp_path: Path) -> None:
    package = tmp_path / "glm4v_magic"
    shutil.copytree(PYPROJECT.parent / "glm4v_magic/virtual_gpus", package / "virtual_gpus")
    (package / "__init__.py").touch()
    (tmp_path / "own.py").write_text(ALONE, "utf-8")
    mixed, full, *wrong = run("own.py", folder=tmp_path).splitlines()
    assert "found at least two devices, cuda:2 and cuda:1!" in mixed
    assert "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.50 GiB" in full
    alone = "glm4v_magic.virtual_gpus.alone"
    assert [line.split()[:2] for line in wrong] == [
        [alone, "GPUDescriptionError"], [alone, "OptionError"],
        [alone, "GPUDescriptionError"], [alone, "GPUDescriptionError"],
    ]  # fmt: skip
    assert wrong[0].endswith("""Cannot read '4xT4'. Write for example "4x16GiB" or "24+16GiB".""")
