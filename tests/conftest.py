"""A real IPython shell, and kernels for real notebooks."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from shells import ROOT, TINY, ipython_shell
from slow_files import SLOW

# How long an example takes says more of the machine's other work than of the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

# A shell lets its background jobs ignore interrupts, and so do the kernels they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


PLACES = {Path(__file__).parent / name: place for place, name in enumerate(SLOW)}


def pytest_ignore_collect(collection_path, config):
    """Slow files are not even read where none of their tests is wanted."""
    if "not slow" in config.option.markexpr and collection_path in PLACES:
        return True
    return None


def pytest_collection_modifyitems(items):
    """Mark the tests of slow files, and put these first, those that take longest before others.

    Then no process is left alone with a long file at the end.
    """
    for item in items:
        if item.path in PLACES:
            item.add_marker("slow")
    items.sort(key=lambda item: PLACES.get(item.path, len(PLACES)))


class Sparing:
    """Spares the garbage collector what was imported: it stays, and there is much of it.

    IPython and a model that is unloaded collect garbage at once, so nearly every test does.
    """

    FEW = 30  # modules that may be looked through again and again

    def __init__(self) -> None:
        self.spared = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self):
        if len(sys.modules) > self.spared + self.FEW:
            gc.collect()
            gc.freeze()
            self.spared = len(sys.modules)


def pytest_configure(config):
    """Hide the GPUs there may be, unless they are what is tested: no result depends on them."""
    config.pluginmanager.register(Sparing())
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture
def plain_shell(tmp_path, monkeypatch):
    """An IPython shell without the extension, in an empty folder; gone after the test."""
    monkeypatch.chdir(tmp_path)
    with ipython_shell(tmp_path / ".ipython") as shell:
        yield shell


@pytest.fixture(scope="module")
def module_shell(tmp_path_factory):
    """An IPython shell with the extension loaded, for all tests of a module."""
    with ipython_shell(tmp_path_factory.mktemp("ipython")) as shell:
        shell.run_line_magic("load_ext", "glm4v_magic")
        yield shell
        shell.run_line_magic("unload_ext", "glm4v_magic")


@pytest.fixture
def shell(module_shell, tmp_path, monkeypatch):
    """The module's shell without a variable, in an empty folder. A loaded model stays loaded."""
    monkeypatch.chdir(tmp_path)
    module_shell.reset(new_session=False)
    return module_shell


@pytest.fixture
def run(shell, capsys):
    """Run cells as a user does; returns what the last one put on the screen."""

    def run_cell(code, *, fails=False):
        capsys.readouterr()
        result = shell.run_cell(code, store_history=True)
        out, err = capsys.readouterr()
        assert (not result.success) == fails, out + err
        return out + err

    return run_cell


@pytest.fixture
def tiny(run):
    """The tiny reference checkpoint, loaded into `shell`: real code, random weights."""
    run(f"%glm4v load {TINY}")
    return TINY


_SPECIAL_TOKENS = 300  # the first of them in the tiny checkpoint


@pytest.fixture(scope="session")
def talkative(tmp_path_factory):
    """The tiny checkpoint with room for thousands of tokens and no token that ends an answer."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("talkative") / "tiny"
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(config | {"seq_length": 32768}), encoding="utf-8"
    )
    generation = {"do_sample": False, "eos_token_id": None, "pad_token_id": config["pad_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    # Tokens of roles end an answer whatever the file says; a logit of 0 is never the largest.
    weights = load_file(folder / "model.safetensors")
    weights["transformer.output_layer.weight"][_SPECIAL_TOKENS:] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def photo(tmp_path):
    """A photograph-sized image; its path."""
    from PIL import Image

    path = tmp_path / "cat.png"
    Image.linear_gradient("L").resize((320, 240)).convert("RGB").save(path)
    return path


@pytest.fixture
def interrupt():
    """Send this process the signal of a notebook's stop button."""
    return lambda: os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def without_llguidance(monkeypatch):
    """As if llguidance were not installed: JSON is checked when it is there."""
    monkeypatch.setitem(sys.modules, "llguidance", None)


@pytest.fixture
def kernel_folder(photo, monkeypatch):
    """A folder with an image, from which a kernel finds this package."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    monkeypatch.setenv("IPYTHONDIR", str(photo.parent / ".ipython"))
    return photo.parent


@pytest.fixture(scope="session")
def jupyter():
    """A Jupyter server; started when a test first needs it."""
    import lab

    with lab.jupyter_server() as server:
        yield server


@pytest.fixture(scope="module")
def front(jupyter):
    """A browser, for all tests of a module; skips them without Chromium.

    Not for the session: as long as Playwright runs, its thread has a running event loop.
    """
    import lab

    if lab.CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with lab.browsing(jupyter) as front:
        yield front


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    """Folder of a tiny checkpoint of a model type, written once."""
    written: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in written:
            import tiny_native

            written[kind] = tiny_native.write(kind, tmp_path_factory.mktemp(kind))
        return written[kind]

    return folder
