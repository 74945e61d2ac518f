"""The views in a real front end: alive in JupyterLab and Notebook 7, and after the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("playwright")
from lab import CHROMIUM, LAB, NOTEBOOK, cell, command, run, wait_until_idle
from shells import TINY

SECONDS = 120_000  # milliseconds
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
def page(front):
    """A notebook in JupyterLab whose cells have run, for all tests below, in their order."""
    with front.open(CELLS, height=1600) as page:
        for number in range(len(CELLS)):
            run(page, number)
        page.wait_for_selector(f'{LIVE}:has-text("is loaded")')
        yield page


def view(page, name):
    """Save what the page shows, if somebody wants to look at it."""
    folder = os.environ.get("SCREENSHOTS_FOLDER")
    if folder:
        page.screenshot(path=Path(folder) / f"widgets-{name}.png")


def test_the_widget_is_there_and_hides_what_will_outlive_it(page):
    assert page.locator(LIVE).count() == 2
    assert page.locator(TWIN).count() == 2
    assert page.locator(f"{TWIN}:visible").count() == 0
    assert "does not fit" in page.locator(LIVE).first.inner_text()
    view(page, "lab-light")


def test_controls_answer_while_a_cell_runs(page):
    """ipykernel 7.4.0 would answer when the cell has ended; see `hear_while_busy`."""
    cell(page, 4).locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.type("import time; time.sleep(3600)")  # until it is interrupted
    page.keyboard.press("Control+Enter")
    prompt = cell(page, 4).locator(".jp-InputPrompt")
    page.wait_for_function("e => e.textContent.includes('*')", arg=prompt.element_handle())
    for _ in range(2):  # the first answer must not make the second wait
        page.get_by_label("offload if need be").check()
        page.wait_for_selector(f"{LIVE} >> text=visit from host memory", timeout=SECONDS)
        page.get_by_label("offload if need be").uncheck()
        page.wait_for_selector(f"{LIVE} >> text=does not fit", timeout=SECONDS)
    page.get_by_label("offload if need be").check()
    page.wait_for_selector(f"{LIVE} >> text=visit from host memory", timeout=SECONDS)
    assert "*" in prompt.inner_text()
    command(page, "notebook:interrupt-kernel")
    wait_until_idle(page)


def test_the_keyboard_reaches_every_part_and_shows_what_it_is(page):
    page.locator(f"{LIVE} .glm4v-bar").first.focus()
    page.keyboard.press("Tab")
    told = page.evaluate(
        "[document.activeElement.getAttribute('aria-label'),"
        " getComputedStyle(document.activeElement, '::after').content]"
    )
    assert told[0].startswith("cuda:1 GPU, 9.00 GiB")  # the second of the way
    assert told[1].startswith('"')
    assert "bfloat16" in told[1]
    assert "model.language_model" in told[1]
    view(page, "lab-focus")


def test_memory_is_live(page):
    """Nobody runs a cell here: the view follows what this kernel holds by itself."""
    memory = page.locator(f"{LIVE}:has(.glm4v-memory)")
    before = memory.inner_html()
    page.wait_for_function(
        "([e, before]) => e.innerHTML !== before",
        arg=[memory.element_handle(), before],
        timeout=SECONDS,
    )


def test_it_is_readable_in_the_dark(page):
    command(page, "apputils:change-theme", theme="JupyterLab Dark")
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
    view(page, "lab-dark")
    command(page, "apputils:change-theme", theme="JupyterLab Light")


def test_what_is_saved_is_the_latest(page, front):
    notebook = front.saved(page)
    html = [
        "".join(output["data"].get("text/html", ""))
        for output in notebook["cells"][1]["outputs"]
        if "data" in output
    ]
    assert "visit from host memory" in html[1]  # chosen with a control, not by a cell
    assert f"{TINY} is loaded" in "".join(notebook["cells"][2]["outputs"][1]["data"]["text/html"])


def test_in_notebook_7_the_same_widgets_are_alive(page):
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(page.url.replace(f"/{LAB}/", f"/{NOTEBOOK}/"))
    page.wait_for_selector(f'{LIVE}:has-text("is loaded")', timeout=SECONDS)
    page.wait_for_selector(f"{LIVE} >> text=visit from host memory", timeout=SECONDS)
    assert page.locator(f"{TWIN}:visible").count() == 0
    page.get_by_label("offload if need be").uncheck()
    page.wait_for_selector(f"{LIVE} >> text=does not fit", timeout=SECONDS)
    view(page, "notebook-7")


def test_when_the_kernel_is_gone_the_static_view_takes_over(page):
    page.click('.lm-MenuBar-itemLabel:text-is("Kernel")')
    page.click('.lm-Menu-itemLabel:text-is("Restart Kernel…")')
    page.click('.jp-Dialog button:has-text("Restart")')
    page.wait_for_selector(f'{TWIN}:visible:has-text("is loaded, as of")', timeout=SECONDS)
    assert page.locator(f"{TWIN}:visible").count() == 2
    assert page.locator(LIVE).count() == 0
    view(page, "restarted")
    # A server that is told to end while it starts a kernel does not hear it.
    wait_until_idle(page)
