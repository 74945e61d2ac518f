"""The pictures in a real front end: alive in JupyterLab and Notebook 7, and after the kernel."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import pytest

pytest.importorskip("playwright")
from conftest import TINY
from lab import CHROMIUM, open_notebook
from playwright.sync_api import Error as BrowserError

ROOT = Path(__file__).parent.parent
SECONDS = 60_000  # milliseconds
CELLS = (
    "%load_ext glm4v_magic",
    "%glm4v devices GLM-4V-9B --gpus 2x9GiB",
    "%glm4v memory",
    f"%glm4v load {TINY}",
    "import time",
)
LIVE = ".jupyter-widgets.widget-vbox:visible"
TWIN = '[class^="glm4v-"][class$="-twin"]'

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A notebook in JupyterLab whose cells have run, for all tests below, in their order."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        patch.setenv("JUPYTERLAB_SETTINGS_DIR", str(tmp_path_factory.mktemp("settings")))
        with open_notebook(CELLS, height=1600) as page:
            run_all_once_ready(page)
            page.wait_for_selector(f'{LIVE}:has-text("is loaded")', timeout=SECONDS)
            yield page


def run_all_once_ready(page):
    """On a busy machine JupyterLab calls a kernel idle that does not hear yet: ask it again."""
    prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]"
    for _ in range(3):
        page.click(".jp-Notebook .jp-Cell >> nth=0")
        choose(page, "Run", "Run All Cells")
        with contextlib.suppress(BrowserError):
            began = f"{prompts}.some(prompt => /[*0-9]/.test(prompt.textContent))"
            page.wait_for_function(began, timeout=20_000)
            break
    ended = f"{prompts}.every(prompt => /[0-9]/.test(prompt.textContent))"
    page.wait_for_function(ended, timeout=5 * SECONDS)


def picture(page, name):
    """Save what the page shows, if somebody wants to look at it."""
    folder = os.environ.get("PICTURES_FOLDER")
    if folder:
        page.screenshot(path=Path(folder) / f"widgets-{name}.png")


def choose(page, *labels):
    page.click(f'.lm-MenuBar-itemLabel:text-is("{labels[0]}")')
    for label in labels[1:-1]:
        page.hover(f'.lm-Menu-itemLabel:text-is("{label}")')
    page.click(f'.lm-Menu-itemLabel:text-is("{labels[-1]}")')


def saved_notebook(page):
    """The notebook as the server has it."""
    page.keyboard.press("Control+s")
    page.wait_for_timeout(1500)
    origin = re.match(r"https?://[^/]+", page.url)[0]
    answer = page.request.get(f"{origin}/api/contents/notebook.ipynb?content=1&token=test")
    return answer.json()["content"]


def test_the_widget_is_there_and_hides_what_will_outlive_it(page):
    assert page.locator(LIVE).count() == 2
    assert page.locator(TWIN).count() == 2
    assert page.locator(f"{TWIN}:visible").count() == 0
    assert "does not fit" in page.locator(LIVE).first.inner_text()
    picture(page, "lab-light")


def test_controls_answer_while_a_cell_runs(page):
    """ipykernel 7.4.0 would answer when the cell has ended; see `hear_while_busy`."""
    page.click(".jp-Notebook .jp-CodeCell >> nth=4 >> .cm-content")
    page.keyboard.press("Control+a")
    page.keyboard.type("import time; time.sleep(30)")
    page.keyboard.press("Control+Enter")
    prompt = page.locator(".jp-CodeCell >> nth=4 >> .jp-InputPrompt")
    page.wait_for_function("e => e.textContent.includes('*')", arg=prompt.element_handle())
    for _ in range(2):  # the first answer must not make the second wait
        page.get_by_label("offload if need be").check()
        page.wait_for_selector(f"{LIVE} >> text=visit from host memory", timeout=15_000)
        page.get_by_label("offload if need be").uncheck()
        page.wait_for_selector(f"{LIVE} >> text=does not fit", timeout=15_000)
    page.get_by_label("offload if need be").check()
    page.wait_for_selector(f"{LIVE} >> text=visit from host memory", timeout=15_000)
    assert "*" in prompt.inner_text()
    choose(page, "Kernel", "Interrupt Kernel")
    page.wait_for_selector('[data-status="idle"]', timeout=SECONDS)


def test_the_keyboard_reaches_every_part_and_shows_what_it_is(page):
    first = page.locator(f"{LIVE} .glm4v-segment").first
    first.focus()
    page.keyboard.press("Tab")
    told = page.evaluate(
        "[document.activeElement.getAttribute('aria-label'),"
        " getComputedStyle(document.activeElement, '::after').content]"
    )
    assert told[0].startswith("embedding: 1.16 GiB, bfloat16")
    assert told[1].startswith('"embedding: 1.16 GiB, bfloat16')
    assert "model.language_model.rotary_emb" in told[1]
    picture(page, "lab-focus")


def test_memory_is_live(page):
    """Nobody runs a cell here: the picture follows what this kernel holds by itself."""
    memory = page.locator(f"{LIVE}:has(.glm4v-memory)")
    before = memory.inner_html()
    page.wait_for_function(
        "([e, before]) => e.innerHTML !== before",
        arg=[memory.element_handle(), before],
        timeout=SECONDS,
    )


def test_it_is_readable_in_the_dark(page):
    choose(page, "Settings", "Theme", "JupyterLab Dark")
    dark = 'body[data-jp-theme-light="false"]'
    page.wait_for_selector(dark, state="attached", timeout=SECONDS)
    text, ground = page.evaluate(
        """() => {
            const e = document.querySelector('.glm4v-devices');
            const cell = document.querySelector('.jp-Notebook');
            return [getComputedStyle(e).color, getComputedStyle(cell).backgroundColor]
                .map(c => Math.max(...c.match(/[0-9.]+/g).slice(0, 3).map(Number)));
        }"""
    )
    assert text > 180
    assert ground < 60
    picture(page, "lab-dark")
    choose(page, "Settings", "Theme", "JupyterLab Light")


def test_what_is_saved_is_the_latest(page):
    notebook = saved_notebook(page)
    html = [
        "".join(output["data"].get("text/html", ""))
        for output in notebook["cells"][1]["outputs"]
        if "data" in output
    ]
    assert "visit from host memory" in html[1]  # chosen with a control, not by a cell
    assert f"{TINY} is loaded" in "".join(notebook["cells"][2]["outputs"][1]["data"]["text/html"])


def test_in_notebook_7_the_same_widgets_are_alive(page):
    origin = re.match(r"https?://[^/]+", page.url)[0]
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"{origin}/notebooks/notebook.ipynb?token=test")
    page.wait_for_selector(f'{LIVE}:has-text("is loaded")', timeout=SECONDS)
    page.wait_for_selector(f"{LIVE} >> text=visit from host memory", timeout=SECONDS)
    assert page.locator(f"{TWIN}:visible").count() == 0
    page.get_by_label("offload if need be").uncheck()
    page.wait_for_selector(f"{LIVE} >> text=does not fit", timeout=SECONDS)
    picture(page, "notebook-7")


def test_when_the_kernel_is_gone_the_static_picture_takes_over(page):
    choose(page, "Kernel", "Restart Kernel…")
    page.click('.jp-Dialog button:has-text("Restart")')
    page.wait_for_selector(f'{TWIN}:visible:has-text("is loaded, as of")', timeout=SECONDS)
    assert page.locator(f"{TWIN}:visible").count() == 2
    assert page.locator(LIVE).count() == 0
    picture(page, "restarted")
    # A server that is told to end while it starts a kernel does not hear it.
    page.wait_for_selector('[data-status="idle"]', timeout=SECONDS)
