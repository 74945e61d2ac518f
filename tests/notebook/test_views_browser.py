"""The views of memory and devices, on virtual GPUs, in small pages and in those of others."""

from __future__ import annotations

import lab
import nbformat
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

SECONDS = 60
FILES = [lab.NOTEBOOKS / "shapes.png"]
CELLS = (
    """%load_ext glm4v_magic
from glm4v_magic.virtual_gpus import VirtualGPUs
VirtualGPUs("4x16GiB").__enter__()
words = ["circle"] * 400
%glm4v load demo --gpus 4x16GiB --objective balance""",
    "%glm4v devices",
    "%glm4v memory",
    "%glm4v devices GLM-4V-9B --gpus 4x16GiB --pin vision=1",
    """%%glm4v shapes.png --over words --batch-size 1 -q
Is there a {{item}}?""",
    """%glm4v ask shapes.png "What colour is the circle?" -q
%glm4v inspect""",
)
LOADED, MEMORY, TOOL, ROWS, LOOK = 1, 2, 3, 4, 5
WIDTH = 800
MARKUP = "text/html"


@pytest.fixture(scope="module")
def page(front):
    with front.open(CELLS, FILES, width=WIDTH, height=1700) as page:
        for number in (*range(ROWS), LOOK):
            lab.run(page, number)
        expect(lab.cell(page, MEMORY)).to_contain_text("demo is loaded", timeout=1000 * SECONDS)
        yield page


SEEN = """number => {
    const cell = document.querySelectorAll('.jp-Notebook .jp-CodeCell')[number];
    const area = cell.querySelector('.jp-OutputArea').getBoundingClientRect();
    const shown = [...cell.querySelectorAll('.glm4v-segment')].filter(each => each.offsetParent);
    return shown.map(each => {
        const box = each.getBoundingClientRect();
        const style = getComputedStyle(each);
        return {
            title: each.title, width: box.width, over: box.right - area.right,
            colour: style.backgroundColor,
        };
    });
}"""


@pytest.mark.parametrize("number", [LOADED, MEMORY, TOOL])
def test_it_fits_a_small_page_and_every_part_can_be_seen(page, number):
    parts = page.evaluate(SEEN, number)
    assert parts
    assert max(part["over"] for part in parts) <= 1
    assert min(part["width"] for part in parts) >= 3
    wide = page.evaluate(
        """number => [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')[number]
            .querySelectorAll('.glm4v-devices, .glm4v-memory')]
            .map(each => each.scrollWidth - each.clientWidth)""",
        number,
    )
    assert max(wide) <= 1


CUT = """() => [...document.querySelectorAll('.jp-OutputArea-output')]
    .flatMap(each => [each, ...each.querySelectorAll('select, input, button, img')]
        .filter(part => part === each ? each.scrollWidth > each.clientWidth + 1
            : part.offsetParent && part.getBoundingClientRect().right
                > each.getBoundingClientRect().right + 1))
    .map(each => each.outerHTML.slice(0, 100))"""


def test_nothing_is_wider_than_the_page_of_a_phone(page):
    size = page.viewport_size
    page.set_viewport_size({"width": 390, "height": 844})
    try:
        for number in (LOADED, MEMORY, TOOL, LOOK):
            lab.cell(page, number).scroll_into_view_if_needed()
            assert page.evaluate(CUT) == []
            assert all(part["over"] <= 1 for part in page.evaluate(SEEN, number))
            assert serious(page, number) == []
    finally:
        page.set_viewport_size(size)


def test_nor_in_a_notebook_that_was_saved_and_made_a_page(front, page):
    nbconvert = pytest.importorskip("nbconvert")
    saved = front.saved(page)
    saved.metadata.pop("widgets", None)  # what stands for them is shown
    written, _ = nbconvert.HTMLExporter(exclude_input=True).from_notebook_node(saved)
    phone = front.browser.new_page(viewport={"width": 390, "height": 844})
    try:
        phone.route("**/*", lambda route: route.abort())  # its scripts for formulas
        phone.set_content(written)
        assert phone.locator(".glm4v-memory table").count() == 1
        phone.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert phone.evaluate(CUT) == []
    finally:
        phone.close()


def test_the_demo_on_large_gpus_is_drawn_larger(page):
    assert "times as large" in lab.cell(page, LOADED).inner_text()
    widest = max(part["width"] for part in page.evaluate(SEEN, LOADED) if "layers" in part["title"])
    assert widest > 50


def test_both_say_what_they_tell(page):
    assert "planned 3% of 15.52 GiB usable" in lab.cell(page, LOADED).inner_text()
    assert "which these have not" in lab.cell(page, MEMORY).inner_text()


def test_a_pin_is_seen_and_taken_back(page):
    tool = lab.cell(page, TOOL)
    pin = tool.get_by_role("button", name="vision on cuda:1")
    expect(pin).to_be_visible()
    pin.click()
    expect(pin).to_have_count(0, timeout=1000 * SECONDS)


def test_the_view_keeps_its_place_when_something_is_typed_that_is_wrong(page):
    tool = lab.cell(page, TOOL)
    bars = tool.locator(".glm4v-bar:visible")
    count, top = bars.count(), tool.get_by_role("button", name="Load").bounding_box()["y"]
    gpus = tool.get_by_label("GPUs")
    gpus.fill("4xnothing")
    gpus.press("Enter")
    expect(tool.locator(".glm4v-devices").first).to_contain_text("nothing", timeout=1000 * SECONDS)
    assert bars.count() == count
    assert abs(tool.get_by_role("button", name="Load").bounding_box()["y"] - top) < 100
    gpus.fill("4x16GiB")
    gpus.press("Enter")
    expect(tool.locator(".glm4v-devices").first).to_contain_text("Fits", timeout=1000 * SECONDS)


def test_there_are_few_stops_of_the_keyboard(page):
    stops = lab.cell(page, LOADED).locator('.jp-OutputArea [tabindex="0"]:visible').count()
    assert 4 <= stops <= 6  # a bar for each GPU


@pytest.mark.parametrize("number", [LOADED, MEMORY, TOOL, LOOK])
@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_a_reader_of_the_screen_finds_nothing_serious(page, theme, number):
    lab.command(page, "apputils:change-theme", theme=theme)
    light = str(theme == "JupyterLab Light").lower()
    page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached")
    assert serious(page, number) == []


def test_nor_where_something_wrong_is_typed(page):
    tool = lab.cell(page, TOOL)
    gpus = tool.get_by_label("GPUs")
    for typed, said in (("4xnothing", "nothing"), ("4x16GiB", "Fits")):
        gpus.fill(typed)
        gpus.press("Enter")
        expect(tool.locator(".glm4v-devices").first).to_contain_text(said, timeout=1000 * SECONDS)
        assert serious(page, TOOL) == []


def serious(page, number: int) -> list[tuple[str, list[str]]]:
    """Return what axe finds in the output of a cell: the rule, and the elements."""
    lab.cell(page, number).scroll_into_view_if_needed()
    page.evaluate(
        """number => {
            document.body.style.overflow = 'visible';  // JupyterLab's body has no height
            document.querySelectorAll('.jp-Notebook .jp-CodeCell')[number]
                .querySelector('.jp-OutputArea').setAttribute('data-axe', number);
        }""",
        number,
    )
    return lab.serious(page, f'[data-axe="{number}"]')


def test_a_word_is_chosen_by_keyboard_and_mouse(page):
    look = lab.cell(page, LOOK)
    said, word = look.get_by_role("status"), look.get_by_label("word", exact=True)
    expect(said).to_contain_text('" red"')
    word.focus()
    for key in ("Enter", "ArrowUp", "Enter"):  # a closed menu leaves the arrows to JupyterLab
        page.keyboard.press(key)
    expect(said).to_contain_text('" is"', timeout=1000 * SECONDS)
    look.get_by_role("button", name="The", exact=True).click()
    expect(said).to_contain_text('"The"', timeout=1000 * SECONDS)
    look.get_by_label("method").select_option("attention")
    expect(look.get_by_label("layer", exact=True)).to_contain_text("4", timeout=1000 * SECONDS)
    look.get_by_label("method").select_option("gradient")
    expect(look.get_by_role("alert")).to_contain_text("virtual GPUs", timeout=1000 * SECONDS)
    look.get_by_role("checkbox", name="words of each layer").check()
    look.get_by_label("method").select_option("covering parts")
    expect(look.get_by_role("region")).to_contain_text("layer 4", timeout=1000 * SECONDS)
    assert serious(page, LOOK) == []
    stops = look.locator(".glm4v-words button").evaluate_all(
        "all => all.filter(each => each.tabIndex >= 0).length"
    )
    assert stops == 0  # the menu is the one stop for all words


def test_what_works_lights_up(page):
    lab.start(page, ROWS)
    page.wait_for_function(
        """number => {
            const cell = document.querySelectorAll('.jp-Notebook .jp-CodeCell')[number];
            const stages = [...cell.querySelectorAll('.jupyter-widgets [data-stage]')];
            window.lit = window.lit || new Set();
            stages.forEach(each => {
                if (getComputedStyle(each).boxShadow !== 'none') window.lit.add(each.dataset.stage);
            });
            return window.lit.size > 1;  // it moves
        }""",
        arg=LOADED,
    )
    assert "working: " in lab.cell(page, LOADED).inner_text()
    lab.command(page, "notebook:interrupt-kernel")
    lab.wait_until_idle(page)


def test_a_notebook_that_is_not_trusted_keeps_the_views(front, page):
    saved = front.saved(page)
    saved.metadata.pop("widgets", None)
    outputs = [each for at in (LOADED, MEMORY, LOOK) for each in saved.cells[at].outputs]
    for output in outputs:
        if MARKUP in output.get("data", {}):  # as from somebody else
            output.data[MARKUP] = "".join(output.data[MARKUP]) + "<!-- -->"
            output.data.pop("application/vnd.jupyter.widget-view+json", None)
    with front.open(nbformat.from_dict(saved), FILES, width=WIDTH, height=1700) as again:
        again.wait_for_selector(".glm4v-segment", state="attached")
        assert again.locator(".glm4v-segment[role]").count() == 0  # the sanitiser was there
        for number, least in ((LOADED, 4), (MEMORY, 1)):
            parts = again.evaluate(SEEN, number)
            kinds = {
                part["title"].split(":")[0]: part["colour"]
                for part in parts
                if not part["title"].startswith(("free", "reserve"))
            }
            assert len(kinds) >= least
            assert "rgba(0, 0, 0, 0)" not in kinds.values(), kinds
            assert min(part["width"] for part in parts) >= 3
        images = lab.cell(again, LOOK).locator("img[src^='data:image/svg']")
        count = sum(  # as many as the words that were looked at, in any order of these tests
            "".join(output.get("data", {}).get(MARKUP, "")).count('src="data:image/svg')
            for output in saved.cells[LOOK].outputs
        )
        assert count >= 2
        assert (
            images.evaluate_all("all => all.map(each => each.naturalWidth > 0)") == [True] * count
        )
        shade = "each => getComputedStyle(each).backgroundColor"
        assert "0.5" in lab.cell(again, LOOK).get_by_text("' red' ✓").locator("..").first.evaluate(
            shade
        )
