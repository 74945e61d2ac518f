"""The page that plans in the browser: its form, and Python with the planner beside it.

mkdocs calls `on_page_markdown` and `on_post_build`. Python in the browser is Pyodide, from its npm
package; ``python docs/planner.py`` fetches that into build/. Where it cannot, for lack of npm, it
says so in a line, the page says that it is missing, and the tests of the page are skipped.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.names import PUBLISHED
from glm4v_magic.core.options import DTYPES, OBJECTIVES, QUANTIZATIONS
from glm4v_magic.notebook.web_planner import CHOSEN, WebPlanner, models_json

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).parent.parent

VERSION = "314.0.7"
SHA512 = (
    "d18bd7c4485f11da4b7dbfd790cd8114078c44eab488c517d9bcf31fda4eb6dc"
    "8c716930abe1db139bb2b860fcd8b37bcb6abe48dbe2ffa579244b0e943d91d4"
)
"""Of the package, as npm packs it."""
FILES = (
    "pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json",
)  # fmt: skip
PYODIDE = ROOT / "build" / f"pyodide-{VERSION}"

ROOMS = ("core", "outside", "planning", "notebook/render/plans")
"""Rooms that a plan is made and drawn with."""
MODULES = (
    "__init__.py",
    "imports.py",
    "notebook/__init__.py",
    "notebook/draft.py",
    "notebook/next_steps.py",
    "notebook/web_planner.py",
    "notebook/render/__init__.py",
    "notebook/render/bars.py",
)
"""Modules of other rooms, likewise."""

GPUS = ("2x24GiB", "2xT4", "4x16GiB", "24+16+12GiB", "8x8GiB", "1xRTX-4090", "8xA100-80GB", "cpu")
_FIRST_GPUS = "2x24GiB"
_EACH = {"objective": OBJECTIVES, "dtype": DTYPES, "quantize": QUANTIZATIONS}
_UNSET = {"objective": None, "dtype": "as published", "quantize": "no"}
_WORDS = {"gpus": "GPUs", "quantize": "quantise", "offload": "offload if need be"}

MISSING = """!!! note "Not in this copy"

    What plans here is Python in the browser, which npm brings, and these pages were built
    without it. In a notebook the same is `%glm4v devices GLM-4V-9B --gpus 2x24GiB`.
"""


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Put the form into its page; called by mkdocs."""
    if page.file.src_uri != "planner.md":
        return markdown
    models = models_json(architecture(name) for name in PUBLISHED)
    view, line = first_plan(models)
    there = form(view, line) if PYODIDE.is_dir() else f"{MISSING}\n{view}\n\n`{line}`"
    return markdown.replace("{{ planner }}", there)


def on_post_build(config: MkDocsConfig) -> None:
    """Put Python and the planner beside the page; called by mkdocs."""
    folder = Path(config.site_dir) / "planner"
    if PYODIDE.is_dir():
        shutil.copytree(PYODIDE, folder / "pyodide", dirs_exist_ok=True)
        (folder / "planner.zip").write_bytes(sources())


def sources() -> bytes:
    """Return a zip of all that Python in the browser needs of ours."""
    package = ROOT / "glm4v_magic"
    files = [*(package / each for each in MODULES)]
    for room in ROOMS:
        files += sorted((package / room).glob("*.py"))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.relative_to(ROOT))
        archive.writestr("models.json", models_json(architecture(name) for name in PUBLISHED))
    return content.getvalue()


def first_plan(models: str) -> tuple[str, str]:
    """Return the plan of the controls as they are at first, as HTML, and the line that loads it.

    It is on the page before Python has started there.
    """
    asked = {"model": next(iter(PUBLISHED)), "gpus": _FIRST_GPUS}
    answer = json.loads(WebPlanner(models).answer(json.dumps(asked)))
    shown = " ".join(answer["html"].split("\n"))
    return f'<div id="planner-view" markdown="0">{shown}</div>', answer["line"]


def form(view: str, line: str) -> str:
    """Return the controls of the page and what it shows at first, as HTML."""
    labels = [_labelled("model", _select("model", [(each, each) for each in PUBLISHED]))]
    labels += [_labelled(name, _control(name)) for name in CHOSEN]
    offers = "".join(f'<option value="{html.escape(each)}"></option>' for each in GPUS)
    return (
        '<form id="planner-form" class="planner" autocomplete="off" '
        f'data-worker="../js/planner_worker.js">{"".join(labels)}'
        f'<datalist id="planner-gpus">{offers}</datalist></form>'
        '<p id="planner-status" role="status">Starting Python in this page ...</p>'
        '<progress id="planner-progress" aria-label="Python starts"></progress>'
        f'{view}<p class="planner-loads"><code id="planner-line" tabindex="0">{html.escape(line)}'
        "</code> "
        '<button id="planner-copy" type="button" class="md-button">copy the line</button></p>'
        '<script src="../js/planner.js" defer></script>'
    )


def _labelled(name: str, control: str) -> str:
    return f"<label><span>{_WORDS.get(name, name)}</span>{control}</label>"


def _control(name: str) -> str:
    if name in _EACH:
        unset = _UNSET[name]
        choices = [(each, each) for each in _EACH[name]]
        return _select(name, choices if unset is None else [("", unset), *choices])
    if name == "offload":
        return '<input name="offload" type="checkbox" value="on">'
    if name == "gpus":
        return (
            f'<input name="gpus" list="planner-gpus" value="{_FIRST_GPUS}" spellcheck="false" '
            'autocapitalize="off" placeholder="such as 2x24GiB or 2xT4">'
        )
    least, step, placeholder = (0, 1, "1") if name == "images" else (256, 256, "")
    return (
        f'<input name="{name}" type="number" min="{least}" step="{step}" '
        f'placeholder="{placeholder}">'
    )


def _select(name: str, choices: list[tuple[str, str]]) -> str:
    options = "".join(
        f'<option value="{html.escape(value)}">{html.escape(text)}</option>'
        for value, text in choices
    )
    return f'<select name="{name}">{options}</select>'


def fetch() -> str:
    """Fetch Pyodide into `PYODIDE` unless it is there; return what is wrong, if anything is."""
    if PYODIDE.is_dir():
        return ""
    npm = shutil.which("npm")
    if npm is None:
        return "there is no npm"
    PYODIDE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PYODIDE.parent) as name:
        folder = Path(name)
        command = [npm, "pack", "--silent", "--pack-destination", name, f"pyodide@{VERSION}"]
        try:
            subprocess.run(command, check=True, timeout=120)  # noqa: S603  no shell
        except (OSError, subprocess.SubprocessError) as error:
            return f"npm cannot fetch pyodide {VERSION} ({error})"
        (file,) = folder.glob("pyodide-*.tgz")
        if hashlib.sha512(file.read_bytes()).hexdigest() != SHA512:
            raise SystemExit(f"npm's pyodide {VERSION} is not the one that docs/planner.py knows.")
        with tarfile.open(file) as archive:
            for each in FILES:
                archive.extract(f"package/{each}", folder, filter="data")
        (folder / "package").rename(PYODIDE)
    return ""


if __name__ == "__main__":
    missing = fetch()
    if missing:
        sys.stderr.write(
            f"The pages have no planner in the browser, and its tests are skipped: {missing}.\n"
        )
