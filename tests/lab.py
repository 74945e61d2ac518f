"""JupyterLab and Notebook 7 in headless Chromium: one server and one browser for many notebooks.

    python tests/lab.py docs/images/cell.gif

records the cell that the README shows, while it is asked and answered, and

    python tests/lab.py docs/images/inspect.png

takes the one of a look into an answer.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Browser, Locator, Page, sync_playwright

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LAB, NOTEBOOK = "doc/tree", "notebooks"
"""Where JupyterLab and Notebook 7 show a file."""

_QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_TOKEN = "test"
_SETTINGS = ("config", "lab", "user-settings", "@jupyterlab")
_SECONDS = 120
_SESSION = "(panel => panel?.sessionContext || panel?.context?.sessionContext)" + (
    "(window.jupyterapp.shell.currentWidget)"
)
"""JavaScript: the session of the notebook that is shown."""
_TALLEST = 800
"""Height that a recorded cell may have, in CSS pixels."""
_COLOURS = 64


@dataclass
class Server:
    """A Jupyter server on this computer.

    Attributes:
        address: its URL.
        folder: what it serves.
    """

    address: str
    folder: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def new_folder(self) -> Path:
        """Return a fresh folder below the served one."""
        folder = self.folder / f"{next(self._numbers)}"
        folder.mkdir()
        return folder

    def draw_all_cells(self, is_wanted: bool) -> None:
        """Set whether pages draw cells that are not in sight, too; for those opened from now on."""
        settings = self.folder.parent.joinpath(*_SETTINGS, "notebook-extension")
        settings.mkdir(exist_ok=True)
        file = settings / "tracker.jupyterlab-settings"
        if is_wanted:
            file.write_text('{"windowingMode": "none"}')
        else:
            file.unlink(missing_ok=True)


@contextmanager
def jupyter_server() -> Iterator[Server]:
    """Start a server with our extension and the usual settings; it knows nothing of the user's."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "served").mkdir()
        extensions = folder / "share" / "labextensions"
        shutil.copytree(ROOT / "labextension", extensions / "glm4v-magic")
        settings = folder.joinpath(*_SETTINGS)
        (settings / "apputils-extension").mkdir(parents=True)
        (settings / "apputils-extension" / "notification.jupyterlab-settings").write_text(
            '{"fetchNews": "false", "checkForUpdates": false}'
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root",
            f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={_TOKEN}",
            f"--ServerApp.root_dir={folder / 'served'}", "--LabApp.expose_app_in_browser=True",
            "--JupyterNotebookApp.expose_app_in_browser=True",
        ]  # fmt: skip
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_PATH": str(folder / "share"),
            "IPYTHONDIR": str(folder / "ipython"),
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        process = stack.enter_context(
            subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
            )
        )
        stack.callback(_end, process)
        address = f"http://127.0.0.1:{port}"
        _wait_until_up(f"{address}/api?token={_TOKEN}", process)
        yield Server(address, folder / "served")


@dataclass
class Front:
    """A browser and the server whose notebooks it shows."""

    server: Server
    browser: Browser

    @contextmanager
    def open(
        self,
        notebook: Sequence[str] | Any,
        files: Sequence[Path] = (),
        *,
        kind: str = LAB,
        width: int = 1000,
        height: int = 900,
        scale: int = 1,
        all_cells: bool = False,
    ) -> Iterator[Page]:
        """Show a notebook, its kernel ready, nothing run yet.

        Args:
            notebook: sources of its code cells, or a notebook as nbformat has it.
            files: copied beside the notebook.
            kind: `LAB` or `NOTEBOOK`.
            width: of the window, in CSS pixels.
            height: likewise.
            scale: device pixels to a CSS pixel.
            all_cells: whether cells are drawn that are not in sight, too.
        """
        self.server.draw_all_cells(all_cells)
        folder = self.server.new_folder()
        for file in files:
            shutil.copy(file, folder)
        if isinstance(notebook, Sequence):
            notebook = nbformat.v4.new_notebook(
                cells=[nbformat.v4.new_code_cell(source) for source in notebook]
            )
        # Without it, a dialog asks for the kernel.
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, folder / "notebook.ipynb")
        page = self.browser.new_page(
            viewport={"width": width, "height": height}, device_scale_factor=scale
        )
        page.set_default_timeout(1000 * _SECONDS)
        try:
            path = (folder / "notebook.ipynb").relative_to(self.server.folder)
            page.goto(f"{self.server.address}/{kind}/{path}?token={_TOKEN}")
            page.wait_for_selector(".jp-Notebook .jp-Cell")
            page.wait_for_function("() => !!window.jupyterapp")
            wait_until_idle(page)
            yield page
        finally:
            page.close()

    def saved(self, page: Page) -> Any:
        """Save the notebook of a page and return what is in the file."""
        command(page, "docmanager:save")
        path = page.url.split("?")[0].split(f"/{LAB}/")[-1].split(f"/{NOTEBOOK}/")[-1]
        page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')")
        return nbformat.read(self.server.folder / path, as_version=4)


@contextmanager
def browsing(server: Server) -> Iterator[Front]:
    """Start a browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_QUIET))
        yield Front(server, browser)
        browser.close()


def command(page: Page, name: str, **arguments: object) -> None:
    """Run a command of the front end, as its menus do."""
    page.evaluate(
        "([name, options]) => window.jupyterapp.commands.execute(name, options)", [name, arguments]
    )


def cell(page: Page, number: int) -> Locator:
    """Return a code cell; the first has the number 0."""
    return page.locator(".jp-Notebook .jp-CodeCell").nth(number)


def start(page: Page, number: int) -> Locator:
    """Run a cell from the keyboard and return it at once."""
    chosen = cell(page, number)
    chosen.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    return chosen


def wait_until_idle(page: Page) -> None:
    """Wait until the kernel has nothing to do."""
    page.wait_for_function(
        f"() => {{ const session = {_SESSION}; return session?.kernelDisplayStatus === 'idle'; }}"
    )


def end_kernel(page: Page) -> None:
    """End the kernel of a notebook, which stays when its page is closed."""
    page.evaluate(f"async () => {{ await {_SESSION}.shutdown(); }}")


def run(page: Page, number: int) -> Locator:
    """Run a cell from the keyboard, wait until it has run, and return it."""
    chosen = start(page, number)
    wait_for_prompt(page, number)
    return chosen


def wait_for_prompt(page: Page, number: int) -> None:
    """Wait until a cell shows the number of its execution, and no longer a star."""
    page.wait_for_function(
        """number => {
            const cell = document.querySelectorAll('.jp-Notebook .jp-CodeCell')[number];
            const prompt = cell.querySelector('.jp-InputPrompt').textContent;
            return /\\[\\d+\\]/.test(prompt);
        }""",
        arg=number,
    )


def serious(page: Page, part: str) -> list[tuple[str, list[str]]]:
    """Return what axe finds serious in a part of the page: the rule, and the elements.

    Args:
        page: the page.
        part: selector of it.
    """
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed"
    )
    found = axe.Axe().run(page, context=part).response["violations"]
    return [
        (each["id"], [node["html"][:200] for node in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:  # a server that restarts a kernel may not listen
        process.kill()


def _wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"JupyterLab ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"JupyterLab did not answer within {_SECONDS} s")


def record(page: Page, number: int) -> list[tuple[float, bytes]]:
    """Run a cell; return what it looked like, as PNG, and for how many seconds."""
    chosen = cell(page, number)
    chosen.scroll_into_view_if_needed()
    page.mouse.move(0, 0)
    box = chosen.bounding_box()
    assert box is not None
    area = {"x": box["x"], "y": box["y"], "width": box["width"], "height": _TALLEST}
    begun = time.monotonic()
    shots = [(begun, page.screenshot(clip=area))]
    chosen.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")  # which adds no cell below
    page.mouse.move(0, 0)
    while time.monotonic() < begun + _SECONDS:
        is_over = chosen.locator("details").count() and not chosen.locator("button").count()
        shots.append((time.monotonic(), page.screenshot(clip=area)))
        if is_over:
            break
    times = [at for at, _ in shots[1:]] + [time.monotonic()]
    return [(end - at, shot) for (at, shot), end in zip(shots, times, strict=True)]


def animate(shots: Sequence[tuple[float, bytes]], target: Path) -> None:
    """Write images as one that moves once and then stays, without the empty part at the bottom."""
    frames = [(seconds, Image.open(io.BytesIO(shot)).convert("RGB")) for seconds, shot in shots]
    last = frames[-1][1]
    empty = Image.new("RGB", last.size, last.getpixel((last.width - 1, last.height - 1)))
    _, _, _, lower = ImageChops.difference(last, empty).getbbox() or (0, 0, 0, last.height)
    palette = last.crop((0, 0, last.width, lower)).quantize(_COLOURS)
    distinct: list[tuple[float, Image.Image]] = []
    for seconds, frame in frames:
        shown = frame.crop((0, 0, last.width, lower)).quantize(palette=palette, dither=0)
        if distinct and distinct[-1][1].tobytes() == shown.tobytes():
            distinct[-1] = (distinct[-1][0] + seconds, shown)
        else:
            distinct.append((seconds, shown))
    first, *rest = (frame for _, frame in distinct)
    durations = [max(60, min(1500, round(1000 * seconds))) for seconds, _ in distinct]
    first.save(target, save_all=True, append_images=rest, duration=[1500, *durations[1:]])


def save_recording(front: Front, target: Path) -> None:
    """Write a cell that is asked and answered as an image that moves."""
    cells = [
        "%load_ext glm4v_magic\n%glm4v load demo-4.6v",
        "%%glm4v shapes.png\nHow many shapes are there?",
    ]
    shapes = [NOTEBOOKS / "shapes.png"]
    with front.open(cells, shapes, width=900, height=1200, scale=2) as page:
        # A fixed width, whatever the side bars do, and no buttons over the question.
        page.add_style_tag(content=".jp-CodeCell {width: 640px} .jp-cell-toolbar {display: none}")
        run(page, 0)
        animate(record(page, 1), target)


def save_look(front: Front, target: Path) -> None:
    """Write a look into an answer, with the words of each layer."""
    cells = [
        "%load_ext glm4v_magic\n%glm4v load demo\n"
        "%glm4v ask shapes.png 'What colour is the circle?' -q",
        "%glm4v inspect",
    ]
    shapes = [NOTEBOOKS / "shapes.png"]
    with front.open(cells, shapes, width=1000, height=1200, scale=2) as page:
        page.add_style_tag(content=".jp-CodeCell {width: 760px} .jp-cell-toolbar {display: none}")
        run(page, 0)
        run(page, 1)
        look = cell(page, 1)
        look.get_by_label("words of each layer").check()
        look.get_by_role("region", name="words of each layer").wait_for()
        page.mouse.move(0, 0)
        shot = Image.open(io.BytesIO(look.screenshot())).convert("RGB")
        shot.quantize(_COLOURS).save(target, optimize=True)


def main() -> None:
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    with jupyter_server() as server, browsing(server) as front:
        (save_look if target.stem == "inspect" else save_recording)(front, target)


if __name__ == "__main__":
    main()
