"""Loading the extension imports nothing heavy; what a question needs is imported with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "transformers",
    "accelerate",
    "PIL",
    "numpy",
    "ipywidgets",
    "pynvml",
    "jinja2",
    "pydantic",
    "httpx",
    "starlette",
)

SHELL = """
from traitlets.config import Config
from IPython.core.interactiveshell import InteractiveShell
config = Config()
config.HistoryManager.enabled = False
shell = InteractiveShell.instance(config=config)
"""

CASES = {
    "the package": "import glm4v_magic",
    "its names": "import glm4v_magic\nfor name in glm4v_magic.__all__: getattr(glm4v_magic, name)",
    "load_ext": SHELL + "shell.run_line_magic('load_ext', 'glm4v_magic')",
    "help": SHELL
    + "shell.run_line_magic('load_ext', 'glm4v_magic')\n"
    + "for line in ('help', 'help ask'):\n"
    + "    shell.run_line_magic('glm4v', line)",
    "status": SHELL
    + "shell.run_line_magic('load_ext', 'glm4v_magic')\n"
    + "for line in ('', 'status', 'unload'):\n"
    + "    shell.run_line_magic('glm4v', line)",
    "errors of a line": SHELL
    + "shell.run_line_magic('load_ext', 'glm4v_magic')\n"
    + "for cell in ('%glm4v lod', '%%glm4v no.png\\nQ', '%%glm4v --x\\nQ', '%glm4v load no'):\n"
    + "    assert not shell.run_cell(cell).success",
    "unload_ext": SHELL
    + "shell.run_line_magic('load_ext', 'glm4v_magic')\n"
    + "shell.run_line_magic('reload_ext', 'glm4v_magic')\n"
    + "shell.run_line_magic('unload_ext', 'glm4v_magic')",
}


def run(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("case", CASES)
def test_nothing_heavy_is_imported_by(case):
    tail = f"\nimport sys\nprint('heavy:', *[n for n in {HEAVY!r} if n in sys.modules])"
    # What shows a page is made with Jinja2; that is all that a status needs.
    expected = ["jinja2"] if case == "status" else []
    assert run(CASES[case] + tail).splitlines()[-1].split() == ["heavy:", *expected]


REFUSED_LOADS = """
shell.run_line_magic('load_ext', 'glm4v_magic')
for option in ('--gpus 100x16GiB', '--map no.json', '--context 99999', '--images 3', '--gpus x'):
    assert not shell.run_cell('%glm4v load demo ' + option).success
import sys
print('torch' in sys.modules)
"""


def test_a_load_is_refused_before_torch_is_imported_and_progress_is_shown():
    assert run(SHELL + REFUSED_LOADS).splitlines() == ["False"]  # errors are on stderr


def test_this_test_would_notice():
    tail = f"\nimport numpy, sys\nprint('heavy:', *[n for n in {HEAVY!r} if n in sys.modules])"
    assert run(CASES["load_ext"] + tail).splitlines()[-1].split() == ["heavy:", "numpy"]


@pytest.mark.parametrize(
    "module", ["session", "core.errors", "images", "calls.prompt", "mapping", "doctor"]
)
def test_ipython_is_not_imported_by(module):
    code = f"import glm4v_magic.{module}, sys\nprint('IPython' in sys.modules)"
    assert run(code).strip() == "False"
