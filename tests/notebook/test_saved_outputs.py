"""What a saved notebook shows, to those who use a keyboard or a screen reader, on small pages too.

It is opened as from somebody else: JupyterLab then drops much of the HTML; see `render.scrolling`.
"""

from __future__ import annotations

import lab
import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.browser

LONG = "a_name_that_has_no_space_and_is_longer_than_a_line_of_a_phone"
CELLS = (
    f"""%load_ext glm4v_magic
import pandas as pd
from PIL import Image
Image.open("shapes.png").save("{LONG}.png")
names = ["shapes.png", "{LONG}.png", "{LONG}_missing.png"]
frame = pd.DataFrame({{"image": names, "there": ["yes", "no", "yes"], "name": ["circle"] * 3}})
frames = [Image.open("shapes.png")] * 4
clip = ["shapes.png", "night.png"] * 2
%glm4v load demo-4.6v""",
    f"%%glm4v shapes.png {LONG}.png --thinking off\nWhere is the circle?",
    "%%glm4v shapes.png --logprobs 3\nHow many shapes are there?",
    "%%glm4v shapes.png --choices red,blue\nWhat colour is the circle?",
    "%%glm4v frames --fps 2\nWhat is there?",
    "%%glm4v --over names\nIs there a circle?",
    "%%glm4v --over frame.image --evaluate there --choices yes,no\nIs there a {{row.name}}?",
    "%%glm4v shapes.png --compare 'demo,demo-4.6v,demo temperature=1'\nWhat colour is the circle?",
    "%%glm4v shapes.png --preview\nWhat colour is the circle?",
    "%%glm4v shapes.png --chat shapes\nHow many shapes are there?",
    "%glm4v",
    "%glm4v chats",
    "%glm4v history shapes",
    "%glm4v config",
    "%glm4v ask shapes.png 'What colour is the circle?' -q\n%glm4v inspect",
    "%glm4v memory",
    "%glm4v doctor GLM-4.1V-9B-Thinking --gpus 2xT4",
    "%glm4v devices GLM-4V-9B --gpus 4x16GiB",
    "%glm4v plan GLM-4.1V-9B-Thinking --gpus 2xT4 --context 8192",
    "%glm4v plan GLM-4.5V --machines",
    "%glm4v check GLM-4.1V-9B-Thinking --gpus 2xT4 --context 8192",
    """from IPython.display import Markdown
from glm4v_magic.notebook.render.markdown import safe_markdown
head = "".join(f"<th>column {number}</th>" for number in range(40))
Markdown(safe_markdown(f"<table><tr>{head}</tr></table>"))""",
)
MADE = {"text/html", "text/markdown"}
WIDTHS = (1280, 800, 390)
LIVE = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Our outputs, as `notebooks/execute.py` saves them."""
    folder = tmp_path_factory.mktemp("saved")
    for name in ("shapes.png", "night.png"):
        (folder / name).write_bytes((lab.NOTEBOOKS / name).read_bytes())
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
    )
    client.execute()
    for cell in notebook.cells:
        cell.outputs = [each for each in cell.outputs if LIVE not in each.get("data", {})]
    for number, cell in enumerate(notebook.cells):
        made = [each for each in cell.outputs if MADE & {*each.get("data", {})}]
        assert made or number == 0, cell.source
    return notebook


def test_nothing_is_serious(front, saved):
    with front.open(saved, width=WIDTHS[0], all_cells=True) as page:
        assert page.locator("td[data-verdict]").count() == 0  # the sanitiser was there
        assert faults(page, fits=800) == []
        lab.end_kernel(page)


PATHS = sorted(lab.NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.nightly
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_nor_in_our_notebooks(front, path):
    notebook = nbformat.read(path, as_version=4)
    with front.open(notebook, width=WIDTHS[0], all_cells=True) as page:
        assert faults(page) == []  # words of each layer may take more room than there is
        lab.end_kernel(page)


@pytest.mark.parametrize("width", WIDTHS)
def test_nor_on_a_page_that_is_made_of_it(front, saved, width):
    nbconvert = pytest.importorskip("nbconvert")
    written, _ = nbconvert.HTMLExporter(exclude_input=True).from_notebook_node(saved)
    page = front.browser.new_page(viewport={"width": width, "height": 900})
    try:
        page.route("**/*", lambda route: route.abort())  # its scripts for formulas
        page.set_content(written)
        assert page.locator("td[data-verdict]").count() > 0
        prepare(page)
        assert lab.serious(page, "[data-axe]") == []
        assert wide(page) == []
    finally:
        page.close()


def faults(page, fits=None):
    """Return what is serious or wider than the page, in each theme and width.

    Args:
        page: the page.
        fits: width from which on nothing scrolls within an output, either.
    """
    found = []
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        lab.command(page, "apputils:change-theme", theme=theme)
        light = str(theme == "JupyterLab Light").lower()
        page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            prepare(page)
            found += [(theme, width, each) for each in lab.serious(page, "[data-axe]")]
            found += [(theme, width, each) for each in wide(page)]
            if fits is not None and width >= fits:
                found += [(theme, width, each) for each in scrolled(page)]
    return found


def prepare(page):
    """Unfold everything, and mark what outputs there are.

    Images that JupyterLab shows itself, without words, and tables of pandas are not ours.
    """
    page.evaluate(
        """() => {
            document.body.style.overflow = 'visible';  // JupyterLab's body has no height
            document.querySelectorAll('details').forEach(each => each.open = true);
            document.querySelectorAll('.jp-OutputArea-output').forEach(each => {
                if (each.childElementCount && !each.matches('.jp-RenderedImage')
                    && !each.querySelector('table.dataframe'))
                    each.setAttribute('data-axe', '');
            });
        }"""
    )
    page.wait_for_timeout(300)  # the page is laid out anew, and told of it


def wide(page):
    """Return the outputs that scroll themselves."""
    return page.evaluate(
        """() => [...document.querySelectorAll('[data-axe]')]
            .filter(each => each.scrollWidth > each.clientWidth + 1)
            .map(each => each.outerHTML.slice(0, 200))"""
    )


def scrolled(page):
    """Return what scrolls within them, but for a model's own wide table."""
    return page.evaluate(
        """() => [...document.querySelectorAll('[data-axe] a[tabindex]')]
            .filter(each => each.scrollWidth > each.clientWidth + 1
                && !each.textContent.includes('column 39'))
            .map(each => `${each.scrollWidth}: ${each.innerText.slice(0, 200)}`)"""
    )
