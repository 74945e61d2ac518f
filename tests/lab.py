"""JupyterLab in headless Chromium: a server of its own, and one notebook open in it.

    python tests/lab.py docs/images/cell.png

takes the picture of a cell that the README shows.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nbformat
from playwright.sync_api import Page, sync_playwright

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_TOKEN = "test"
_SECONDS = 120


@contextmanager
def open_notebook(
    cells: Sequence[str], files: Sequence[Path] = (), width: int = 1000, height: int = 900
) -> Iterator[Page]:
    """Show a notebook with these code cells in JupyterLab, its kernel ready, nothing run yet.

    Args:
        cells: sources of the cells.
        files: copied beside the notebook.
        width: of the window, in CSS pixels.
        height: likewise.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in files:
            shutil.copy(file, folder)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        # Without it, a dialog asks for the kernel.
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, folder / "notebook.ipynb")
        with _server(folder) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_QUIET))
            page = browser.new_page(
                viewport={"width": width, "height": height}, device_scale_factor=2
            )
            page.goto(f"{address}/doc/tree/notebook.ipynb?token={_TOKEN}")
            page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=1000 * _SECONDS)
            page.wait_for_selector('[data-status="idle"]', timeout=1000 * _SECONDS)
            yield page
            browser.close()


def run_all(page: Page) -> None:
    """Run all cells and wait until the last one has run."""
    page.click(".jp-Notebook .jp-Cell >> nth=0")
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    page.wait_for_function(
        """() => {
            const prompts = document.querySelectorAll('.jp-CodeCell .jp-InputPrompt');
            return [...prompts].every(prompt => /\\[\\d+\\]/.test(prompt.textContent));
        }""",
        timeout=1000 * _SECONDS,
    )


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root",
        f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={_TOKEN}",
        f"--ServerApp.root_dir={folder}", "--LabApp.news_url=", "--LabApp.check_for_updates_class="
        "jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    ) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_until_up(f"{address}/api?token={_TOKEN}", process)
            yield address
        finally:
            process.terminate()


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


def main() -> None:
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    cells = ["%load_ext glm4v_magic", "%%glm4v shapes.png\nWhat colour is the circle?"]
    with open_notebook(cells, [NOTEBOOKS / "shapes.png"]) as page:
        run_all(page)
        page.locator(".jp-CodeCell >> nth=1").screenshot(path=target)


if __name__ == "__main__":
    main()
