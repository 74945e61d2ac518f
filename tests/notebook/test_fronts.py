"""JupyterLab 4 and Notebook 7 in a real browser: what people see, press and hear."""

from __future__ import annotations

import json
import random
import re
import time
from contextlib import suppress

import lab
import nbformat
import pytest
from attacks import ATTACKS
from nbconvert import HTMLExporter
from playwright.sync_api import TimeoutError as Late
from playwright.sync_api import expect
from shells import ROOT

from glm4v_magic.core.options import DTYPES

pytestmark = pytest.mark.browser

SECONDS = 60

SCREENSHOTS = ROOT / "build" / "screenshots"
FILES = [lab.NOTEBOOKS / "shapes.png"]
INTERRUPT = '[data-command="notebook:interrupt-kernel"]'
WIDGET = "application/vnd.jupyter.widget-view+json"
LONG = "%%glm4v shapes.png -o answer --temperature 0 --max-tokens 30000\nWhat is this?"
SHORT = "%%glm4v shapes.png -o answer --temperature 0 --max-tokens 12\nWhat is this?"
ROWS = (
    "%%glm4v --over words -o rows --temperature 0 --batch-size 1 --max-tokens 2000\n"
    "Is there a {{item}}?"
)
INTERRUPTED, CLICKED, BY_KEYS, ANSWERED, SUMMARY, REFUSED, MANY, TYPED = range(1, 9)


@pytest.fixture(scope="module", params=["lab", "notebook"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def page(front, kind, talkative):
    """A notebook in which a model is loaded; each test runs cells of its own."""
    cells = [
        f"%load_ext glm4v_magic\n%glm4v load {talkative}\nwords = ['cat'] * 20",
        *[LONG] * 3,
        SHORT,
        "%glm4v",
        "%%glm4v shaped.png\nWhat is this?",
        ROWS,
        "",
    ]
    view = lab.LAB if kind == "lab" else lab.NOTEBOOK
    with front.open(cells, FILES, kind=view) as page:
        lab.run(page, 0)
        yield page


def screenshot(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def answer_of(cell):
    """The answer's place in a cell: the output that Markdown made."""
    return cell.locator(".jp-OutputArea-output.jp-RenderedMarkdown")


def expect_answer(cell, text):
    """Wait until an answer holds a text: its place is on the page before its Markdown is."""
    expect(answer_of(cell)).to_contain_text(text, use_inner_text=True, timeout=1000 * SECONDS)


def stop_button(cell):
    return cell.get_by_role("button", name="Stop")


def wait_for_growth(page, number):
    """Wait until the answer of a running cell has been longer at least three times."""
    page.wait_for_function(
        """number => {
            const cell = document.querySelectorAll('.jp-Notebook .jp-CodeCell')[number];
            const answer = cell.querySelector('.jp-RenderedMarkdown');
            const running = cell.querySelector('.jp-InputPrompt').textContent.includes('*');
            const length = answer && running ? answer.textContent.length : 0;
            window.lengths = window.lengths || {};
            const seen = window.lengths[number] = window.lengths[number] || [];
            if (length > (seen[seen.length - 1] || 0)) seen.push(length);
            return seen.length > 3;
        }""",
        arg=number,
    )


def check_stopped(cell):
    expect_answer(cell, "stopped by you")
    assert len(answer_of(cell).inner_text()) > 100
    assert (
        "Stopped: what was said until then is in _; %glm4v continue carries it on."
        in cell.inner_text()
    )
    assert stop_button(cell).count() == 0
    assert cell.locator(".jupyter-widgets").count() == 0


@pytest.mark.parametrize(
    "view",
    [lab.LAB, pytest.param(lab.NOTEBOOK, marks=pytest.mark.nightly)],
    ids=["lab", "notebook"],
)
def test_stopped_by_the_button_while_pytorch_starts_it_answers_the_next_question(front, view):
    question = "%%glm4v shapes.png\nWhat colour is the circle?"
    with front.open(["%load_ext glm4v_magic", *[question] * 2], FILES, kind=view) as page:
        lab.run(page, 0)
        stopped = lab.start(page, 1)
        expect(stopped).to_contain_text("Starting PyTorch", timeout=1000 * SECONDS)
        stop_button(stopped).click()
        lab.wait_for_prompt(page, 1)
        expect(stopped).to_contain_text("PyTorch is still starting, in the background")
        assert stop_button(stopped).count() == 0
        expect_answer(lab.run(page, 2), "The circle is red.")


IN_BROWSERS = 15  # moments of each button in each front end: 60 trials
BUTTONS = {
    "of the front end": lambda page, _: page.locator(INTERRUPT).first,
    "of the cell": lambda _, cell: stop_button(cell),
}


def is_running(cell):
    return "*" in cell.locator(".jp-InputPrompt").first.inner_text()


def press_while_running(page, cell, button):
    """Press a button as soon as it is there; return whether the cell ran until then."""
    while is_running(cell):
        with suppress(Late):  # looked at again: ours comes with the first line of the cell
            button.click(timeout=3000)
            return True
    return False


@pytest.mark.nightly
@pytest.mark.parametrize("moment", range(IN_BROWSERS))
@pytest.mark.parametrize("button", BUTTONS)
@pytest.mark.parametrize("view", [lab.LAB, lab.NOTEBOOK], ids=["lab", "notebook"])
def test_stopped_at_any_moment_by_either_button_it_answers_the_next_question(
    front, view, button, moment
):
    question = "%%glm4v shapes.png\nWhat colour is the circle?"
    at = random.Random(f"{view} {button} {moment}").uniform(0.2, 8)
    pressed = False
    while not pressed:  # a cell that was done by then is none to stop: once more, and earlier
        assert at > 0.1, "the button was never there"
        with front.open(["%load_ext glm4v_magic", *[question] * 2], FILES, kind=view) as page:
            try:
                lab.run(page, 0)
                begun, cell = time.monotonic(), lab.start(page, 1)
                page.wait_for_timeout(max(0, 1000 * (begun + at - time.monotonic())))
                pressed = press_while_running(page, cell, BUTTONS[button](page, cell))
                lab.wait_for_prompt(page, 1)
                expect_answer(lab.run(page, 2), "The circle is red.")
            finally:
                lab.end_kernel(page)
        at /= 2


def test_an_answer_grows_and_the_interrupt_button_keeps_it(page, kind):
    cell = lab.start(page, INTERRUPTED)
    wait_for_growth(page, INTERRUPTED)
    screenshot(page, f"{kind}-running")
    page.locator(INTERRUPT).first.click()
    lab.wait_for_prompt(page, INTERRUPTED)
    check_stopped(cell)
    screenshot(page, f"{kind}-interrupted")


def test_the_stop_button_stops_the_answer(page):
    cell = lab.start(page, CLICKED)
    wait_for_growth(page, CLICKED)
    stop_button(cell).click()
    lab.wait_for_prompt(page, CLICKED)
    check_stopped(cell)


def test_the_stop_button_can_be_reached_and_pressed_with_the_keyboard(page):
    cell = lab.start(page, BY_KEYS)
    wait_for_growth(page, BY_KEYS)
    focused = "() => document.activeElement.textContent.trim()"
    for _ in range(20):
        if page.evaluate(focused) == "Stop":
            break
        page.keyboard.press("Shift+Tab")
    assert page.evaluate(focused) == "Stop"
    page.keyboard.press("Enter")
    lab.wait_for_prompt(page, BY_KEYS)
    check_stopped(cell)


def test_the_stop_button_stops_many_rows_and_the_table_stays(page, kind):
    cell = lab.start(page, MANY)
    cell.get_by_text(re.compile(r"\b1?[1-9] of 20 rows")).first.wait_for()
    told = cell.get_by_role("status").inner_text()
    assert re.search(r" is answering 20 rows(, (a quarter|half|three quarters) done)?…", told)
    screenshot(page, f"{kind}-rows-running")
    stop_button(cell).click()
    lab.wait_for_prompt(page, MANY)
    assert "Run the cell again to go on." in cell.inner_text()
    assert cell.get_by_role("table").get_by_text("stopped by you").count() == 1
    assert "not finished" in cell.get_by_role("status").inner_text()
    assert stop_button(cell).count() == 0
    assert cell.locator(".jupyter-widgets").count() == 0
    screenshot(page, f"{kind}-rows-stopped")


def test_a_polite_line_says_that_the_answer_comes_and_that_it_is_there(page):
    page.evaluate(
        """number => {
            const cell = document.querySelectorAll('.jp-Notebook .jp-CodeCell')[number];
            window.said = [];
            new MutationObserver(() => {
                for (const line of cell.querySelectorAll('[role=status]')) {
                    const text = line.getAttribute('aria-live') + ': ' + line.textContent;
                    if (window.said[window.said.length - 1] !== text) window.said.push(text);
                }
            }).observe(cell, {childList: true, subtree: true, characterData: true});
        }""",
        ANSWERED,
    )
    cell = lab.run(page, ANSWERED)
    cell.get_by_text("Answered.").wait_for(state="attached")
    first, *_, last = page.evaluate("() => window.said")
    assert re.fullmatch("polite: .*is answering…", first)
    assert last == "polite: Answered."
    assert cell.get_by_role("status").count() == 1
    box = cell.get_by_role("status").bounding_box()
    assert box["width"] <= 1  # read out, but not in the way


def test_the_image_has_its_name_and_size_as_text(page):
    cell = lab.run(page, ANSWERED)
    photo = cell.get_by_role("img", name="shapes.png, 360 x 360 px")
    assert photo.is_visible()
    assert "the model sees 56 x 56 px · 6 visual tokens" in cell.inner_text()


CONTRASTS = """() => {
    const rgba = text => {
        const parts = text.match(/[\\d.]+/g).map(Number);
        return parts.length < 4 ? [...parts, 1] : parts;
    };
    const over = (top, below) =>
        [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const luminance = colour => {
        const [r, g, b] = colour.map(part => {
            const s = part / 255;
            return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const backdrop = element => {
        const layers = [];
        for (let each = element; each; each = each.parentElement)
            layers.push(rgba(getComputedStyle(each).backgroundColor));
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
    };
    const found = [];
    for (const area of document.querySelectorAll('.jp-Notebook .jp-OutputArea-output')) {
        const walker = document.createTreeWalker(area, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            const text = walker.currentNode.textContent.trim();
            const element = walker.currentNode.parentElement;
            if (!text || !element.getClientRects().length) continue;
            const below = backdrop(element);
            const [high, low] = [over(rgba(getComputedStyle(element).color), below), below]
                .map(luminance).sort((a, b) => b - a);
            found.push([(high + 0.05) / (low + 0.05), text.slice(0, 200)]);
        }
    }
    return found;
}"""


def low_contrasts(page):
    """Texts that are hard to read on their ground."""
    contrasts = page.evaluate(CONTRASTS)
    texts = " ".join(text for _, text in contrasts)
    for part in ("the model sees", "14 text + 6", "no such file", "tokens"):
        assert part in texts
    return [(round(ratio, 2), text) for ratio, text in contrasts if ratio < 4.5]


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_everything_can_be_read_on_light_and_dark_pages(page, kind, theme):
    lab.run(page, ANSWERED)
    lab.run(page, SUMMARY)
    lab.run(page, REFUSED)
    lab.command(page, "apputils:change-theme", theme=theme)
    page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=theme)
    lab.cell(page, REFUSED).scroll_into_view_if_needed()
    end = time.monotonic() + SECONDS
    page.wait_for_timeout(300)  # the style sheet of the theme before it fades
    while (low := low_contrasts(page)) and time.monotonic() < end:
        page.wait_for_timeout(300)  # on a busy computer for longer
    screenshot(page, f"{kind}-{theme.split()[-1].lower()}")
    assert low == []


def test_copying_an_answer_copies_the_answer(page):
    lab.run(page, ANSWERED)
    expect_answer(lab.cell(page, ANSWERED), "12 tokens out")
    copied = page.evaluate(
        """area => {
            const range = document.createRange();
            range.selectNodeContents(area);
            getSelection().removeAllRanges();
            getSelection().addRange(range);
            return getSelection().toString();
        }""",
        answer_of(lab.cell(page, ANSWERED)).element_handle(),
    )
    assert copied.strip()
    assert "tokens out" not in copied


COMPLETER = ".jp-Completer:not(.lm-mod-hidden)"


def tab(page, line):
    """Type a line into an empty cell and press Tab; return what is offered, and as what."""
    lab.cell(page, TYPED).locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.type(line)
    page.keyboard.press("Tab")
    with suppress(Late):
        page.wait_for_selector(f"{COMPLETER} .jp-Completer-item", timeout=1500)
    offered = page.evaluate(
        """items => [...document.querySelectorAll(items)].map(each => [
            each.querySelector('.jp-Completer-match').textContent,
            each.querySelector('.jp-Completer-typeExtended').textContent])""",
        f"{COMPLETER} .jp-Completer-item",
    )
    page.keyboard.press("Escape")
    return offered


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("%glm4v lo", [["load", "command"]]),
        ("x = %glm4v ask sh", [["shapes.png", "image"]]),
        ("%%glm4v shaped.png -o wor", [["words", "variable"]]),
        ("%glm4v load --dt", [["--dtype", "option"]]),
        ("%glm4v load --dtype fl", [["float16", "value"], ["float32", "value"]]),
        ("%glm4v load --dtype ", [[dtype, "value"] for dtype in DTYPES]),
        ("%glm4v plan --gpus 2xRTX-309", [["2xRTX-3090", "gpu"], ["2xRTX-3090-Ti", "gpu"]]),
        ("%%glm4v imp", []),
        ("%%glm4v shapes.png\nIs it magenta? mag", []),
        ("print(gamma); gam", [["gamma", ""]]),  # not one of ours: JupyterLab's own word
    ],
)
def test_tab_offers_what_is_ours_with_its_type_and_nothing_else(page, line, found):
    assert tab(page, line) == found


def test_a_saved_notebook_shows_its_answers_without_a_kernel_or_widgets(front, page, kind):
    lab.run(page, ANSWERED)
    saved = front.saved(page)
    assert "widgets" not in saved.metadata
    for cell in saved.cells:
        assert not [output for output in cell.outputs if WIDGET in output.get("data", {})]
    asked = saved.cells[ANSWERED]
    assert [list(output.data) for output in asked.outputs] == [
        ["text/html", "text/plain"],
        ["text/markdown", "text/plain"],
    ]
    view = lab.LAB if kind == "lab" else lab.NOTEBOOK
    with front.open(nbformat.from_dict(saved), FILES, kind=view) as again:
        cell = lab.cell(again, ANSWERED)
        cell.scroll_into_view_if_needed()
        image = cell.get_by_role("img", name="shapes.png, 360 x 360 px")
        expect(image).to_be_visible(timeout=1000 * SECONDS)
        expect_answer(cell, "12 tokens out")
        assert "Error displaying widget" not in again.content()
        screenshot(again, f"{kind}-reopened")


MARKED = """
from IPython.display import display
from glm4v_magic.core.boxes import Box, Point
from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.images import to_images
display(Answer(
    "There.", "Where?", "model", Usage(1, 1, 1), "stop", images=to_images("shapes.png", "images"),
    boxes=(Box("circle <b>$x$", 28, 39, 166, 177), Box("a long label", 207, 71, 360, 182)),
    points=(Point("top", 173, 206),),
))
"""


def test_boxes_are_shown_and_a_notebook_that_is_not_trusted_keeps_them(front):
    with front.open(["%load_ext glm4v_magic", MARKED], FILES) as page:
        lab.run(page, 0)
        lab.run(page, 1)
        lab.wait_until_idle(page)
        saved = front.saved(page)
    # As from somebody else: what this user has not run is not trusted.
    saved.cells[1].outputs[0].data["text/markdown"] += "\n\n<b onclick=x>*more*</b>"
    with front.open(nbformat.from_dict(saved), FILES, width=800) as page:
        cell = lab.cell(page, 1)
        image = cell.get_by_role("img", name="shapes.png with 1 circle <b>$x$; 2 a long label")
        for side in ("naturalWidth", "naturalHeight"):  # both are 0 until the image is decoded
            expect(image).to_have_js_property(side, 360, timeout=1000 * SECONDS)
        assert image.bounding_box()["width"] <= 560
        cell.get_by_text("2 boxes, 1 point").click()
        assert cell.get_by_role("cell", name="(207, 71) to (360, 182) px").is_visible()
        assert cell.locator("b[onclick]").count() == 0
        screenshot(page, "boxes")


# What a model could say.

HARMLESS = {
    *("p", "br", "hr", "em", "strong", "del", "s", "ul", "ol", "li", "blockquote", "pre", "code"),
    *("span", "a", "table", "thead", "tbody", "tr", "th", "td", "div", "small", "dl", "dt", "dd"),
    *("details", "summary", "b", "i", "sup", "sub"),
    *(f"h{level}" for level in range(1, 7)),
}
SHOW_ALL = """
%load_ext glm4v_magic
import json
from pathlib import Path
from IPython.display import display
from glm4v_magic.core.conversation import Answer, Usage
usage = Usage(text_tokens=1, visual_tokens=0, new_tokens=1)
texts = json.loads(Path("attacks.json").read_text())
def show(some):
    for text in some:
        display(Answer(
            text=text, prompt="What?", model="hostile", usage=usage, finish_reason="stop",
            thinking=text,
        ))
"""
SHADE_ALL = """
from dataclasses import replace
from glm4v_magic.core.tokens import Alternative, Token
def tokens_of(text):
    other = (Alternative(text[:50], -1.0), Alternative(text[50::-1], -2.0))
    return tuple(
        Token(text[at : at + 3], -0.3 * (at % 7), at, min(at + 3, len(text)), alternatives=other)
        for at in range(0, len(text), 3)
    )
def shade(some):
    for text in some:
        display(Answer(text, "What?", "hostile", usage, "stop", tokens=tokens_of(text)))
"""
AT_ONCE = 40  # JupyterLab hides all but the first 50 outputs of a cell
LINKS = "See [the page](https://a.example/x?y=1), costs $5 and $6, and $x^2$."
ELEMENTS = """selector => [...document.querySelectorAll(selector)].map(area =>
    [...area.querySelectorAll('*')].filter(each => !each.closest('mjx-container')).map(each =>
        [each.localName, [...each.attributes].map(one => [one.name, one.value])]))"""


def watched(page):
    """Collect what must not happen: dialogs, and requests to any other computer."""
    happened = []

    def refuse(route):
        happened.append(route.request.url)
        route.abort()

    page.on("dialog", lambda dialog: (happened.append(dialog.message), dialog.dismiss()))
    page.context.route(re.compile(r"^(?!data:|blob:|file:|http://127\.0\.0\.1:)"), refuse)
    return happened


def check_harmless(page, selector, allowed=HARMLESS):
    areas = page.evaluate(ELEMENTS, selector)
    assert len(areas) == len(ATTACKS) + 1
    for text, elements in zip([*ATTACKS, LINKS], areas, strict=True):
        for name, attributes in elements:
            assert name in allowed, (text[:80], name)
            for attribute, value in attributes:
                assert not attribute.startswith("on"), (text[:80], attribute, value)
                assert attribute not in {"src", "srcset", "srcdoc", "action", "formaction"}, text
                if attribute == "href":
                    assert re.match(r"https?://|#", value), (text[:80], value)
                if attribute == "style":
                    assert "url(" not in value, (text[:80], value)


@pytest.fixture(scope="module")
def hostile(front, tmp_path_factory):
    """A page of JupyterLab that shows every attack, what it did, and the saved notebook."""
    file = tmp_path_factory.mktemp("attacks") / "attacks.json"
    file.write_text(json.dumps([*ATTACKS, LINKS]))
    firsts = range(0, len(ATTACKS) + 1, AT_ONCE)
    cells = [SHOW_ALL, *(f"show(texts[{first}:{first + AT_ONCE}])" for first in firsts)]
    with front.open(cells, [file]) as page:
        happened = watched(page)
        for number in range(len(cells)):
            lab.run(page, number)
        lab.wait_until_idle(page)
        answers = page.locator(".jp-OutputArea-output.jp-RenderedMarkdown")
        answers.last.locator("mjx-container").wait_for(state="attached")
        page.wait_for_timeout(500)  # for what an image or a formula would do later
        yield page, happened, front.saved(page)
        page.context.unroute_all()


def test_nothing_a_model_says_acts_on_jupyterlab(hostile):
    page, happened, _ = hostile
    check_harmless(page, ".jp-Notebook .jp-OutputArea-output.jp-RenderedMarkdown")
    assert happened == []
    page.locator(".jp-OutputArea-output").last.scroll_into_view_if_needed()
    screenshot(page, "hostile")


def test_no_shaded_answer_acts_on_jupyterlab(front, tmp_path):
    file = tmp_path / "attacks.json"
    file.write_text(json.dumps([*ATTACKS, LINKS]))
    firsts = range(0, len(ATTACKS) + 1, AT_ONCE)
    shown = [f"shade(texts[{first}:{first + AT_ONCE}])" for first in firsts]
    with front.open([SHOW_ALL + SHADE_ALL, *shown], [file]) as page:
        happened = watched(page)
        for number in range(len(shown) + 1):
            lab.run(page, number)
        lab.wait_until_idle(page)
        page.wait_for_timeout(500)
        areas = ".jp-Notebook .jp-OutputArea-output.jp-RenderedMarkdown"
        check_harmless(page, areas, HARMLESS | {"mark"})
        assert happened == []
        last = page.locator(areas).last
        assert last.locator("div").first.inner_text() == LINKS
        assert last.locator("mjx-container").count() == 0
        (title,) = {each.get_attribute("title") for each in last.locator("mark").all()[:1]}
        assert f'likeliest: "{LINKS[:50]}" 36.8%, "{LINKS[50::-1]}" 13.5%' in title
        screenshot(page, "shaded")
        page.context.unroute_all()


def test_links_money_and_maths_in_jupyterlab(hostile):
    page, _, _ = hostile
    last = page.locator(".jp-OutputArea-output.jp-RenderedMarkdown").last
    assert last.get_by_role("link", name="the page").get_attribute("href") == (
        "https://a.example/x?y=1"
    )
    assert "costs $5 and $6" in last.inner_text()
    assert last.locator("mjx-container").count() == 1


def test_nothing_a_model_says_acts_on_an_exported_page(hostile, front, tmp_path):
    *_, saved = hostile
    html, _ = HTMLExporter(embed_images=True).from_notebook_node(saved)
    file = tmp_path / "exported.html"
    file.write_text(html, encoding="utf-8")
    page = front.browser.new_page()
    try:
        happened = watched(page)
        page.goto(file.as_uri(), wait_until="domcontentloaded")
        page.wait_for_timeout(500)
        check_harmless(page, ".jp-OutputArea-output.jp-RenderedMarkdown")
        # nbconvert itself asks for these; without them, the page shows formulas as typed.
        own = ("https://cdnjs.cloudflare.com/", "https://cdn.jsdelivr.net/npm/mathjax")
        assert [url for url in happened if not url.startswith(own)] == []
        assert page.get_by_role("link", name="the page").count() == 1
        screenshot(page, "exported")
    finally:
        page.close()
