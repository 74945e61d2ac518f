"""The pages in docs/ say what the code says: options, settings, messages, links."""

from __future__ import annotations

import html
import json
import pkgutil
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import yaml

import glm4v_magic
from glm4v_magic.checkpoints import hub
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.names import PUBLISHED, REPOSITORIES
from glm4v_magic.core import errors, events
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.wording import printable
from glm4v_magic.images import to_image
from glm4v_magic.images.crop import parse_crop
from glm4v_magic.mapping.items import items_of
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import ANSWER_OPTIONS, options_in, parse, split
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.magics import Glm4vMagics
from glm4v_magic.notebook.next_steps import in_cell
from glm4v_magic.notebook.settings import Glm4v
from glm4v_magic.notebook.web_planner import WebPlanner, models_json
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.planning.plan import plan
from glm4v_magic.server.command import parser as server_parser
from glm4v_magic.session.session import Session

pytest.importorskip("mkdocs")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
HOOKS = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
PLANNER = runpy.run_path(str(ROOT / "docs" / "planner.py"))
FIGURES = runpy.run_path(str(ROOT / "docs" / "figures.py"))
MESSAGES = runpy.run_path(str(ROOT / "docs" / "messages.py"))
COMMANDS_PAGE = HOOKS["commands_page"]()
CELL = Glm4vMagics.glm4v

CLASSES = HOOKS["error_classes"]()
# Options of a cell that need nothing but an image and a question, or a file with one.
RUN_BY_THEMSELVES = (
    "--out", "--max-tokens", "--temperature", "--top-p", "--top-k", "--min-p",
    "--repetition-penalty", "--seed", "--system", "--file", "--page", "--crop", "--raw", "--quiet",
    "--preview", "--debug",
)  # fmt: skip
EXAMPLE = re.compile(
    r'^```(?:text|python) title="cell"\n(?P<cell>.*?)\n```\n\n'
    r'```text title="what it says"\n(?P<said>.*?)\n```$',
    re.MULTILINE | re.DOTALL,
)


def section(name):
    """The part of the page about a command; the empty name is the cell magic."""
    anchor = name or "cell"
    _, _, rest = COMMANDS_PAGE.partition(f"{{ #{anchor} }}")
    return rest.partition("\n## ")[0]


def examples(text):
    """Cells and lines in fenced blocks that are for a notebook."""
    for block in re.findall(r"^ *```text\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            found = re.match(r" *(?:In \[\d+\]: )?(?:\w+ = )?(%%?glm4v.*)", line)
            if found:
                yield found[1]


every_command = pytest.mark.parametrize("name", ["", *COMMANDS])


@every_command
def test_every_option_is_on_the_page_with_an_example_that_uses_it(name):
    command = COMMANDS.get(name, CELL)
    text = section(name)
    lines = list(examples(text))
    for option in options_in(ARGUMENTS.get(name, ANSWER_OPTIONS)):
        assert re.search(rf"`{option}[ `]", text), option
    for action in HOOKS["options"](command):
        if action.option_strings:
            option = action.option_strings[-1]
            assert any(option in split(line) for line in lines), option


@every_command
def test_examples_parse(name):
    parsed = 0
    for line in examples(section(name)):
        words = split(line)
        magic, *words = words
        if magic == "%%glm4v":
            parse(CELL, words)
        elif name:  # the cell's own page has a synopsis of the others, with words to fill in
            command, *words = words or ["status"]
            parse(COMMANDS[command], words)
        parsed += 1
    assert parsed or not list(HOOKS["options"](COMMANDS[name]))


@pytest.mark.parametrize("name", RUN_BY_THEMSELVES)
def test_an_example_of_the_cell_magic_runs(run, name):
    shutil.copy(NOTEBOOKS / "shapes.png", "shapes.png")
    Path("question.txt").write_text(HOOKS["QUESTION"], encoding="utf-8")
    example = HOOKS["option_example"]("", options_in(ANSWER_OPTIONS)[name])
    if "\n" not in example:
        example += "\n "  # IPython wants a cell below the line
    run(example)


def test_a_value_for_every_kind_of_option():
    """No example shows the word that stands in for a value nobody thought of."""
    for name in ("", *COMMANDS):
        for line in examples(section(name)):
            assert "value" not in split(line), line


def test_the_server_is_on_the_page_with_its_options():
    text = section("server")
    for option in server_parser()._option_string_actions:
        assert re.search(rf"{option}\b", text), option


def test_every_setting_is_on_its_page():
    page = HOOKS["settings_page"]()
    for name in Glm4v.names():
        assert f"| `{name}` |" in page
        assert f"`GLM4V_{name.upper()}`" in page


def test_every_error_has_a_page_and_every_page_an_error():
    names = {each.__name__ for each in CLASSES}
    assert {path.stem for path in (ROOT / "docs" / "errors").glob("*.md")} == names
    index = HOOKS["errors_page"]()
    for name in names:
        assert f"({name}.md)" in index


@pytest.mark.parametrize("error", CLASSES, ids=lambda each: each.__name__)
def test_the_page_of_an_error_quotes_what_the_code_says(error, shell, run):
    text = (ROOT / "docs" / "errors" / f"{error.__name__}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {error.__name__}\n")
    assert "\n## Cause\n" in text
    assert "\n## Cure\n" in text
    found = list(EXAMPLE.finditer(text))
    assert len(found) == text.count('title="what it says"')
    assert found
    for name in ("shapes.png", "night.png"):
        shutil.copy(NOTEBOOKS / name, name)
    run("%config Glm4v.debug = True")  # so that the class itself is raised
    try:
        for example in found:
            result = shell.run_cell(example["cell"])
            assert isinstance(result.error_in_exec, error), example["cell"]
            kind, _, quoted = example["said"].partition(": ")
            if kind == "UsageError":
                message = in_cell(result.error_in_exec)
            else:
                message = " ".join(printable(str(result.error_in_exec)).split())
            assert quoted == message.replace(str(Path.cwd()), "~/notebooks")
            assert kind in ("UsageError", type(result.error_in_exec).__name__)
    finally:
        run("%config Glm4v.debug = False")
        run("%glm4v unload")


@pytest.mark.parametrize("page", ["architecture", "python"])
def test_an_example_in_python_prints_a_plan(page, capsys):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (example,) = (block for block in blocks if "plan" in block)
    exec(example.replace("GLM-4V-9B", "demo"), {})
    assert re.search(r"^cuda:0 GPU .* vision", capsys.readouterr().out, re.MULTILINE)


def test_the_page_has_every_member_of_a_session():
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"session\.Session\n.*\n.*\n +members:\n((?: +- .*\n)+)", text)
    ours = set(dir(Session)) - set(dir(object))  # nnsight gives every object a `save`
    public = sorted(name for name in ours if not name.startswith("_"))
    assert sorted(re.findall(r"\w+", listed)) == public


def test_the_example_of_forms_is_answered(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (example,) = (block for block in blocks if "choices=" in block)
    for name in ("shapes.png", "coin.png"):
        shutil.copy(NOTEBOOKS / "shapes.png", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(example, {"session": Session().load("demo")})
    assert re.search(r"^(red|blue)\Z", capsys.readouterr().out.strip(), re.MULTILINE)


def test_the_download_that_is_recommended_brings_what_is_read():
    cli = pytest.importorskip("huggingface_hub.cli.download")
    typer = pytest.importorskip("typer")
    app = typer.Typer()
    app.command()(cli.download)
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    lines = re.findall(r"^hf download (.*)$", text, re.MULTILINE)
    assert lines
    for line in lines:
        given = typer.main.get_command(app).make_context("download", shlex.split(line)).params
        assert given["repo_id"] == REPOSITORIES["glm-4v-9b"]
        assert sorted(given["include"]) == sorted(hub.NEEDED_FILES)
        assert not given["filenames"]


def test_what_fits_as_the_table_of_sizes_says():
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (GLM.*?) \| ([\d.]+) GiB \| (.*?) \|$", text, re.MULTILINE)
    named = [name for names, *_ in rows for name in names.split(", ")]
    assert sorted(named) == sorted(PUBLISHED)
    fitting = ""
    for names, size, given in rows:
        fitting = fitting if given == "the same" else given.partition(";")[0]
        specs = [re.sub(r"(\d+) × ", r"\1x", each).replace(" ", "") for each in fitting.split(", ")]
        for name in names.split(", "):
            shape = architecture(name).shape()
            assert f"{2 * shape.values / 2**30:.1f}" == size
            for spec in specs:
                plan(shape, parse_gpus(spec), Workload(context=8192))
    in_fp8, on = re.findall(r"in FP8 \(([\d.]+) GiB\) (\d × \w+) \|", text)[0]
    gpus = on.replace(" × ", "x")
    made = make_plan(architecture("GLM-5.3-Flash"), PlacementOptions(gpus=gpus, context=8192))
    assert made.workload.fp8
    weights = sum(stage.weight_bytes for stage in made.stages)
    assert f"{weights / 2**30:.1f}" == in_fp8


def test_a_message_is_found_on_the_page_of_messages():
    """Messages that the code makes, as somebody would look for them, and what to do next."""
    page = html.unescape(MESSAGES["page"]())
    found = [(MESSAGES["pattern"](each), each) for each in MESSAGES["messages"]()]
    for make, words, hint in (
        (lambda: to_image("nope.png", source="nope.png"), ": no such file", ""),
        (lambda: parse_gpus("24GiB@fast"), "bandwidth", "24GiB@936GB/s"),
        (lambda: architecture("glm-5v"), "", ""),
        (lambda: to_image(str(NOTEBOOKS), source="notebooks"), "folder", "--over"),
        (lambda: parse_gpus(""), "is empty", '"24+16+12GiB"'),  # a constant
        (lambda: parse_crop("1"), "four numbers", "x,y,width,height"),  # of a function
        (
            lambda: items_of([{"a": 1}], "rows", column="b"),
            "no column",
            "There are …. Or: It has none at all;",
        ),
    ):
        with pytest.raises(errors.Glm4vError) as caught:
            make()
        said = caught.value.what
        entries = [each for regex, each in found if regex.match(" ".join(said.split()))]
        assert any(f">{each.what}</h3>" in page for each in entries), said
        assert any(words in each.what and hint in each.hint for each in entries), said


def test_no_message_shows_what_stands_for_a_value():
    assert "object at 0x" not in MESSAGES["page"]()


def test_a_message_in_the_code_is_on_the_page():
    """No rough reading: nearly every error that is made with words has an entry."""
    source = "\n".join(each.read_text("utf-8") for each in (ROOT / "glm4v_magic").rglob("*.py"))
    made = len(re.findall(r"\braise \w+Error\(\s*f?\"", source))
    assert len(list(MESSAGES["messages"]())) > 0.9 * made > 300


def test_the_tree_of_errors_is_drawn_whole():
    for error in CLASSES:
        assert re.search(rf"\b{error.__name__}\b", errors.__doc__ or ""), error


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages. The build itself fails on a warning: a dead link, an unknown name."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


PAGES = sorted((*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
ROOMS = {each.name for each in pkgutil.iter_modules(glm4v_magic.__path__)}


def ours(text):
    """Names of our modules, and of what is in them, as pages write them."""
    for quoted in re.findall(r"`([\w./]+)`", text):
        name = quoted.removesuffix(".py").replace("/", ".").removeprefix("glm4v_magic.")
        room, _, rest = name.partition(".")
        if room in ROOMS and rest:
            yield f"glm4v_magic.{name.rstrip('.')}"


@pytest.mark.parametrize("page", PAGES, ids=lambda each: each.stem)
def test_what_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    now = re.sub(r"^\| [^|]* \|", "", text, flags=re.MULTILINE)  # after what was before
    for name in ours(now if page.name == "CHANGELOG.md" else text):
        try:
            pkgutil.resolve_name(name)
        except AttributeError:
            raise AssertionError(f"{page.name} names {name}, which is not there") from None


def test_names_of_ours_are_found():
    assert list(ours("`core/events` `notebook.live` `calls/prompt.py` `core`, `answer.text`")) == [
        "glm4v_magic.core.events", "glm4v_magic.notebook.live", "glm4v_magic.calls.prompt",
    ]  # fmt: skip


def test_the_architecture_page_names_every_event_of_a_session():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for event in get_args(events.Event):
        assert f"`{event.__name__}`" in text, event


def test_the_site_builds_and_asks_no_other_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(CLASSES)
    for page in pages:
        assert not HOOKS["REMOTE"].search(page.read_text(encoding="utf-8"))
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text(encoding="utf-8"))


def test_the_search_leads_to_each_message(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    titles = {each["title"] for each in index["docs"] if "errors/messages/#" in each["location"]}
    assert not {html.escape(each.what, quote=False) for each in MESSAGES["messages"]()} - {
        title.replace("&quot;", '"').replace("&#x27;", "'") for title in titles
    }


def test_the_first_screen_of_a_page_has_a_figure(site):
    """Of all pages but the list of changes and the rules for those who change the code."""
    listed = re.findall(r"^ +- .*: ([\w/-]+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(listed) > 15
    for name in set(listed) - {"changelog", "contributing"}:
        folder = name.removesuffix("index").rstrip("/")
        text = (site / folder / "index.html").read_text(encoding="utf-8")
        first = text.partition("<article")[2].partition("<h2")[0]
        assert re.search(r'<img|<svg viewBox|class="(?:plan|architecture|glm4v-devices)', first), (
            name
        )


def test_long_code_goes_on_behind_a_dot():
    allowed = FIGURES["on_page_content"]("<p><code>transformer.layers.0.query_key_value</code></p>")
    assert allowed == "<p><code>transformer.<wbr>layers.<wbr>0.<wbr>query_key_value</code></p>"


def test_a_plan_on_a_page_is_that_of_a_notebook():
    drawn = FIGURES["drawn"]("GLM-4V-9B --gpus 24+16GiB --context 8192")
    assert 'class="glm4v-bar' in drawn or "layers 17-39" in drawn
    assert "cuda:1" in drawn
    with pytest.raises(errors.GPUDescriptionError):
        FIGURES["drawn"]("GLM-4V-9B --gpus 4x")


def test_what_loads_from_elsewhere_is_found():
    for tag in ('<script src="https://a.b/c.js">', "<link rel=x href=//a.b/c.css>"):
        assert HOOKS["REMOTE"].search(tag)
    assert not HOOKS["REMOTE"].search('<a href="https://a.b"><img src="../a.png">')


def test_the_python_page_documents_every_public_name(site):
    page = (site / "python" / "index.html").read_text(encoding="utf-8")
    for name in set(glm4v_magic.__all__) - {"load_ipython_extension", "unload_ipython_extension"}:
        home = getattr(glm4v_magic, name).__module__
        assert f'id="{home}.{name}"' in page, name


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == glm4v_magic.__version__
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["dynamic"] == ["version"]
    ((folder, place),) = settings["tool"]["hatch"]["build"]["targets"]["wheel"][
        "shared-data"
    ].items()
    extension = json.loads((ROOT / folder / "package.json").read_text(encoding="utf-8"))
    assert extension["version"] == glm4v_magic.__version__
    assert place == f"share/jupyter/labextensions/{extension['name']}"  # where JupyterLab looks
    assert (ROOT / folder / extension["jupyterlab"]["_build"]["load"]).is_file()
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changes, re.MULTILINE)
    assert newest is not None
    assert newest[1] == glm4v_magic.__version__


# Last in this file: as long as Playwright runs, its thread has a running event loop.
SHARED = {"model": "GLM-4.1V-9B-Thinking", "gpus": "2xT4", "context": "8192", "images": "2"}
"""The plan whose address the browser is given first."""
HOSTILE = "<img src=x onerror=alert(1)>"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class PlannerPage:
    """The page of the planner in a browser without a network, and what it says there."""

    def __init__(self, page, site, address):
        self.page, self.address, self.elsewhere, self.faults = page, address, [], []
        page.route(lambda url: not url.startswith(f"{address}/"), self._refuse)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: (self.faults.append("a dialog"), dialog.dismiss()))
        self.planner = WebPlanner(models_json(map(architecture, PUBLISHED)))

    def _refuse(self, route):
        self.elsewhere.append(route.request.url)
        route.abort()

    @property
    def shown(self):
        return self.page.locator("#planner-view")

    def show(self, asked):
        """Come from another place in the history: the page stays, Python in it, too."""
        self.page.evaluate(
            """query => {
                history.pushState(null, "", "?" + query);
                dispatchEvent(new PopStateEvent("popstate"));
            }""",
            urlencode(asked),
        )
        self.wait()

    def wait(self):
        self.page.wait_for_selector("#planner-view:not([aria-busy]) .glm4v-devices")

    def asked(self):
        return dict(parse_qsl(urlsplit(self.page.url).query))

    def loads(self):
        line = self.page.locator("#planner-line")
        return line.text_content() if line.is_visible() else ""

    def is_as_here(self, asked):
        """Tell whether the page shows what Python here makes of the same choice."""
        here = json.loads(self.planner.answer(json.dumps(asked)))
        drawn = self.page.evaluate(
            """html => {
                const copy = document.createElement("div");
                copy.innerHTML = html;
                return copy.innerHTML === document.getElementById("planner-view").innerHTML;
            }""",
            here["html"],
        )
        return drawn and here["line"] == self.loads()


@pytest.fixture(scope="module")
def served(site):
    """A browser, and the address of the pages."""
    pytest.importorskip("playwright")
    import lab

    if lab.CHROMIUM is None:
        pytest.skip("there is no Chromium")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with lab.browsing(None) as front:
            yield front.browser, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# A page's width, and words of code that go on in a next line.
BROKEN = r"""() => {
    const broken = [];
    for (const code of document.querySelectorAll("article :not(pre) > code")) {
        const texts = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) {
            for (const word of texts.currentNode.data.matchAll(/[A-Za-z0-9]+/g)) {
                const range = document.createRange();
                range.setStart(texts.currentNode, word.index);
                range.setEnd(texts.currentNode, word.index + word[0].length);
                // where a line ends, an empty one stands in front of the word
                const shown = [...range.getClientRects()].filter(each => each.width > 0);
                const lines = new Set(shown.map(each => Math.round(each.top)));
                if (lines.size > 1) broken.push(code.textContent);
            }
        }
    }
    return [document.documentElement.scrollWidth, broken];
}"""


@pytest.mark.browser
def test_on_a_phone_no_page_is_too_wide_and_no_name_is_broken_within_a_word(served, site):
    browser, address = served
    page = browser.new_page(viewport={"width": 390, "height": 900}, java_script_enabled=False)
    try:
        found = {}
        for file in sorted(site.rglob("index.html")):
            name = file.parent.relative_to(site).as_posix()
            page.goto(f"{address}/{name}/", wait_until="load")
            found[name] = page.evaluate(BROKEN)
        assert len(found) > len(CLASSES)
        assert {name: each for name, each in found.items() if each != [390, []]} == {}
    finally:
        page.close()


# What the theme's worker of the search finds: the sections, the best first.
SEARCH = """async queries => {
    const config = JSON.parse(document.getElementById("__config").textContent);
    const worker = new Worker(new URL(config.search, location.href));
    const ask = message => new Promise((done, fail) => {
        worker.onmessage = event => done(event.data.data);
        worker.onerror = fail;
        worker.postMessage(message);
    });
    const base = new URL(`${config.base}/`, location.href);
    const index = await (await fetch(new URL("search/search_index.json", base))).json();
    await ask({type: 0, data: {...index, options: {suggest: false}}});
    const found = [];
    for (const query of queries) {
        const {items} = await ask({type: 2, data: query});
        const sections = items.flat().sort((one, other) => other.score - one.score);
        found.push(sections.map(each => [each.location, each.title.replace(/<[^>]+>/g, "")]));
    }
    worker.terminate();
    return found;
}"""
BEST = 5


@pytest.mark.browser
def test_the_search_finds_options_and_the_messages_that_name_them(served):
    browser, address = served
    page = browser.new_page()
    try:
        page.goto(f"{address}/errors/messages/")
        options = sorted(set(options_in(ANSWER_OPTIONS)) | {"-q", "-o", "--gpus", "--objective"})
        found = dict(zip(options, page.evaluate(SEARCH, options), strict=True))
        told = {"commands/", "options/", "planning/", "settings/"}
        lost = [
            option
            for option, sections in found.items()
            if not any(place.partition("#")[0] in told for place, _ in sections)
        ]
        assert len(found) > 20
        assert lost == []

        messages = [each for each in MESSAGES["messages"]() if "--" in each.what + each.hint]
        assert len(messages) > 30
        shown = [f"{each.what} {each.hint}" for each in messages]
        for message, sections in zip(messages, page.evaluate(SEARCH, shown), strict=True):
            titles = [html.unescape(title) for _, title in sections]
            best = titles[:BEST] if "--" in message.what else titles
            assert message.what in best, message
        (both,) = page.evaluate(SEARCH, ['"no such --gpus"'])
        assert len(both) < len(found["--gpus"])  # those that have all of the words
    finally:
        page.close()


@pytest.mark.browser
def test_the_first_plan_is_there_before_python_is(served, site):
    browser, address = served
    page = browser.new_page(java_script_enabled=False)
    try:
        page.goto(f"{address}/planner/")
        assert page.locator("#planner-view .glm4v-devices").is_visible()
        loads = page.locator("article code", has_text="%glm4v load GLM-4V-9B --gpus 2x24GiB")
        assert loads.is_visible()
    finally:
        page.close()


def test_no_entry_of_the_changelog_is_cut_or_stands_twice():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    entries = [
        " ".join(line.split())
        for part in re.split(r"\n\n+", text)
        for line in re.split(r"\n(?=- )", part)
        if line.startswith("- ")
    ]
    assert len(entries) > 100
    assert [each for each in entries if not re.search(r"[.:`][)*]*$", each)] == []
    assert [each for each in entries if re.search(r"\w\. (a|and|in|of|the|to) ", each)] == []
    begun = [each.partition(":")[0][:60] for each in entries]
    assert [each for each in begun if begun.count(each) > 1] == []


def test_without_npm_the_pages_say_what_they_lack_and_are_made(tmp_path):
    script = tmp_path / "docs" / "planner.py"
    script.parent.mkdir()
    shutil.copy(ROOT / "docs" / "planner.py", script)
    done = subprocess.run(
        [sys.executable, script], env={"PATH": ""}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stderr == (
        "The pages have no planner in the browser, and its tests are skipped: there is no npm.\n"
    )


STAND_IN = """
export async function loadPyodide() {
  const html = '<div class="glm4v-devices">planned</div>';
  const answer = () => JSON.stringify({ html, line: "", longest: null, most_images: null });
  return { unpackArchive() {}, runPython: () => ({ answer }) };
}
"""
"""Stands in for Python in the browser, which plans the same here."""


@pytest.mark.browser
def test_a_page_from_a_file_says_what_is_enough_and_that_is_enough(served, tmp_path):
    browser, _ = served
    (tmp_path / "js").mkdir()
    for name in ("planner.js", "planner_worker.js"):
        shutil.copy(ROOT / "docs" / "js" / name, tmp_path / "js" / name)
    pyodide = tmp_path / "planner" / "pyodide"
    pyodide.mkdir(parents=True)
    (pyodide / "pyodide.mjs").write_text(STAND_IN)
    (pyodide.parent / "planner.zip").write_bytes(PLANNER["sources"]())
    form = PLANNER["form"]("<div id='planner-view'></div>", "%glm4v load")
    (pyodide.parent / "index.html").write_text(f"<!doctype html><meta charset=utf-8>{form}")
    page = browser.new_page()
    try:
        page.goto((pyodide.parent / "index.html").as_uri())
        status = page.locator("#planner-status")
        page.wait_for_function(
            "!document.getElementById('planner-status').innerText.includes('...')"
        )
        assert status.text_content() == (
            "This page plans only when it comes from a web server: python -m http.server is enough."
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
            cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            for _ in range(200):
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            page.goto(f"http://127.0.0.1:{port}/planner/")
            page.wait_for_selector("#planner-view .glm4v-devices")
            assert status.text_content() == ""
        finally:
            server.kill()
            server.wait()
    finally:
        page.close()


def test_where_the_page_cannot_plan_a_notebook_makes_the_same_plan(run):
    """As the page says that was built without Python for the browser."""
    (line,) = re.findall(r"In a notebook the same is `(%glm4v [^`]+)`", PLANNER["MISSING"])
    view, loads = PLANNER["first_plan"](models_json(map(architecture, PUBLISHED)))
    shown = run(line)
    assert loads.split()[:5] == ["%glm4v", "load", *line.split()[2:5]]
    told = re.findall(r"cuda:\d[^<]*?(\d+(?:\.\d+)?) GiB", re.sub(r"<[^>]*>", " ", view))
    assert told
    assert set(told) <= set(re.findall(r"\d+(?:\.\d+)?", shown))


@pytest.fixture(scope="module")
def planner(served, site):
    """The page, after its first plan."""
    if not (site / "planner" / "pyodide").is_dir():
        pytest.skip("Pyodide is not in build/: python docs/planner.py fetches it, and needs npm")
    browser, address = served
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    found = PlannerPage(page, site, address)
    page.goto(f"{address}/planner/?{urlencode(SHARED)}")
    found.first = found.shown.text_content()
    found.wait()
    return found


@pytest.mark.browser
def test_a_shared_address_is_planned_as_in_a_notebook_and_offline(planner):
    assert planner.first.strip() == "" or "GLM-4.1V-9B-Thinking" in planner.first
    assert planner.is_as_here(SHARED)
    assert planner.loads().startswith("%glm4v load GLM-4.1V-9B-Thinking --gpus 2xT4 --context 8192")
    for name, value in SHARED.items():
        assert planner.page.locator(f"[name={name}]").input_value() == value
    assert planner.page.locator("#planner-status").text_content() == ""
    assert not planner.page.locator("#planner-progress").is_visible()
    assert planner.elsewhere == []


@pytest.mark.browser
def test_the_keyboard_is_enough_and_back_leads_back(planner):
    page = planner.page
    planner.show(SHARED)
    page.locator("[name=model]").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("3x12GiB")
    page.keyboard.press("Enter")
    planner.wait()
    changed = SHARED | {"gpus": "3x12GiB"}
    assert planner.asked() == changed
    assert planner.is_as_here(changed)
    for _ in range(4):  # to dtype
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    planner.wait()
    assert planner.asked() == changed | {"dtype": "bfloat16"}
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    planner.wait()
    assert planner.asked()["offload"] == "on"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "planner-copy":
            break
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('planner-status').textContent !== ''")
    for _ in range(3):
        page.go_back()
    planner.wait()
    assert planner.asked() == SHARED
    assert planner.is_as_here(SHARED)
    assert page.locator("[name=gpus]").input_value() == "2xT4"
    assert not page.locator("[name=offload]").is_checked()


@pytest.mark.browser
@pytest.mark.parametrize("name", ["model", "gpus", "context", "objective"])
def test_what_is_wrong_is_one_line_and_never_markup(planner, name):
    planner.show(SHARED)
    bars = planner.shown.locator(".glm4v-bar").count()
    planner.show(SHARED | {name: HOSTILE})
    said = planner.shown.get_by_role("status").inner_text()
    assert said.count("\n") == 0
    assert "img" in said
    assert planner.shown.locator("img").count() == 0
    assert planner.shown.locator(".glm4v-bar").count() == bars  # the last plan, faded
    assert planner.loads() == ""
    assert planner.faults == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["default", "slate"])
def test_everybody_can_read_the_planner(planner, width, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed"
    )
    page = planner.page
    page.set_viewport_size({"width": width, "height": 900})
    planner.show(SHARED)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    body = page.locator("body")
    if body.get_attribute("data-md-color-scheme") != scheme:
        page.locator("[data-md-component=palette] label:visible").click()
        assert body.get_attribute("data-md-color-scheme") == scheme
    found = axe.Axe().run(page, context="article").response["violations"]
    serious = [
        (each["id"], [node["html"][:200] for node in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []
