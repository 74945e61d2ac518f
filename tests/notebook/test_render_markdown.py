"""What a model says can be read on a page and cannot act on it.

Every attack goes through the two parsers at hand: mistune inside nbconvert, which lets raw HTML
through, and markdown-it with HTML switched on.
"""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import nbformat
import pytest
from attacks import ATTACKS
from markdown_it import MarkdownIt
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.notebook.render.answers.answer import answer_bundle
from glm4v_magic.notebook.render.answers.thinking import folded, tail_html
from glm4v_magic.notebook.render.markdown import literal, safe_markdown

HARMLESS = {
    *("p", "br", "hr", "em", "strong", "del", "ul", "ol", "li", "blockquote", "pre", "code"),
    *("span", "a", "table", "thead", "tbody", "tr", "th", "td", "div", "dl", "dt", "dd"),
    *(f"h{level}" for level in range(1, 7)),
}


class Page(HTMLParser):
    """Collects what a page would do: elements, attributes, and the text people read."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def mistune(markdown):
    return Page(markdown2html_mistune(markdown))


def markdown_it(markdown):
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))


PARSERS = [mistune, markdown_it]


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_becomes_text(attack, parse):
    for text in (attack, f"before\n{attack}\nafter", f"- item\n\n  {attack}", attack[:-3]):
        for tag, attributes in parse(safe_markdown(text)).tags:
            assert tag in HARMLESS, (text, tag)
            for name, value in attributes.items():
                # nbconvert gives headings an id and a link to it, code a class.
                assert name in {"href", "id", "class", "start", "style"}, (text, name)
                if name == "href":
                    assert re.match(r"https?://|#", value or ""), (text, value)


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_in_the_thinking_becomes_text(attack, parse):
    text = f"Hm.\n\n{attack}\n\n{attack}"
    fold, tail = folded(text, "Thought <b>"), tail_html(text)
    assert "\n" not in fold + tail
    around = {"details", "summary", "small", "br", "div", "code"}
    for html in (fold, tail):
        page = parse(f"{html}\n\nThe *answer*.")
        tags = [tag for tag, _ in page.tags]
        assert set(tags) <= around | {"p", "em", "span"}
        assert "em" in tags  # what follows is Markdown again
        styles = ("user-select:none", "opacity:0.8", "margin-bottom:0.6em")
        ours = ({}, *({"style": style} for style in styles))
        assert all(attributes in ours for _, attributes in page.tags)
    # MathJax looks for these in the finished page, but not across elements.
    assert not re.search(r"(?<!<span>)[$\\]", fold.replace("&#36;", "$").replace("&#92;", "\\"))


def test_thinking_is_folded_and_harmless_in_exported_pages():
    usage = Usage(1, 0, 1, thinking_seconds=3.2)
    outputs = [
        nbformat.v4.new_output(
            "display_data",
            answer_bundle(Answer("Yes.", "What?", "m", usage, "stop", thinking=f"Hm.\n\n{attack}")),
        )
        for attack in ATTACKS
    ]
    page, _ = HTMLExporter().from_notebook_node(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outputs)])
    )
    folds = re.findall(
        r"<details style=[^>]+><summary style=[^>]+><small>Thought for 3.2 s, [^<]+<.*?</details>",
        page,
    )
    assert len(folds) == len(ATTACKS)
    for fold in folds:
        tags = {tag.partition(" ")[0] for tag in re.findall("<([^>]*)>", fold)} - {"br", "br/"}
        assert {tag.lstrip("/") for tag in tags} <= {"details", "summary", "small", "span"}
    assert page.count("<p>Yes.</p>") == len(ATTACKS)


@pytest.mark.parametrize("parse", PARSERS)
def test_raw_html_stays_readable(parse):
    assert "<b>bold</b> & <i>" in parse(safe_markdown("<b>bold</b> & <i>")).text


@pytest.mark.parametrize("parse", PARSERS)
def test_markdown_still_works(parse):
    page = parse(safe_markdown("# A\n\n* *x* and **y**\n\n1. z\n\n> q\n\n|a|b|\n|-|-|\n|1|2|"))
    tags = {tag for tag, _ in page.tags}
    assert tags >= {"h1", "ul", "em", "strong", "ol", "blockquote", "table", "td"}


@pytest.mark.parametrize("parse", PARSERS)
def test_code_is_shown_character_for_character(parse):
    code = 'if a < b and c["$x"] & 1:\n    print("`<b>`", \'\\n\')'
    page = parse(safe_markdown(f"So:\n\n```python\n{code}\n```\n\nand `a < b | c` or ``x`y``."))
    assert code in page.text
    assert "a < b | c" in page.text
    assert "x`y" in page.text
    tags = [tag for tag, _ in page.tags]
    assert tags.count("pre") == 1
    assert tags.count("code") >= 2


def test_code_in_a_list_loses_its_indent_and_nothing_else():
    assert "```py\nx = 1\n  y\n```" in safe_markdown("1. Do:\n   ```py\n   x = 1\n     y\n   ```")


def test_an_unfinished_code_block_is_closed():
    assert safe_markdown("```python\nx = 1").endswith("\n```")


def test_http_links_are_links():
    text = "see [the page](https://a.example/b_(c)?d=1&e=2)"
    for parse in PARSERS:
        page = parse(safe_markdown(text))
        assert [a.get("href") for tag, a in page.tags if tag == "a"] == [
            "https://a.example/b_(c)?d=1&e=2"
        ]
        assert "the page" in page.text


@pytest.mark.parametrize(
    "text",
    ["costs $5 and $6", "$5, not $6", "US$5 or A$6", "$HOME/$USER", "$5, not 6$", "a $ b $ c"],
)
def test_money_is_not_maths(text):
    safe = safe_markdown(text)
    assert "$" not in safe
    for parse in PARSERS:
        page = parse(safe)
        assert text in page.text
        # MathJax looks for dollars in the finished page, but not across elements.
        assert sum(tag == "span" for tag, _ in page.tags) == text.count("$")


LONG = f"$${'x + ' * 4000}y$$"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("$x^2$", "$x^2$"),
        ("is $2^{10}$.", "is $2^{10}$."),
        ("$$\\frac{a}{b}$$", "$$\\frac{a}{b}$$"),
        ("\\(x + y\\)", "$x + y$"),
        ("\\[\na = b\n\\]", "$$a = b$$"),
        ("$a<b>c$", "$a\\lt b\\gt c$"),
        ("$$ \\left\\{ a \\right. $$", "$$\\left\\{ a \\right.$$"),
        (
            "\\begin{align*}\na &= b \\\\\n\\end{align*}",
            "$$\\begin{align*}\na &= b \\\\\n\\end{align*}$$",
        ),
        (LONG, LONG),
    ],
)
def test_maths_is_kept(text, kept):
    assert safe_markdown(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "$\\href{https://a.b}{x}$",
        "$\\class{x}{y}$",
        "$\\require{a}$",
        "$\\href_{x}$",
        "$\\csname href\\endcsname{https://a.b}{x}$",
        "$\\DeclareMathOperator{\\sin}{x}$",
        "$\\renewenvironment{matrix}{x}{y}$",
        "$\\xdef\\x{y}$",
        "$${ \\} $$",
        "\\begin{align}\\href{https://a.b}{x}\\end{align}",
    ],
)
def test_maths_that_reaches_out_is_not_kept(text):
    assert "$" not in safe_markdown(text)
    assert "\\" not in safe_markdown(text)


@pytest.mark.parametrize("parse", PARSERS)
def test_literal_shows_every_character(parse):
    text = "~/my_models/*a* <b> `c` $d$ [e](https://f.g) #h | i & \\j"
    assert text in parse(literal(text)).text


@pytest.mark.parametrize(
    "opener", ["`", "``", "$", "$$", "\\[", "\\(", "[a](https://", "![", "\n\\begin{align}"]
)
def test_many_unclosed_openers_stay_cheap(opener):
    """A bound on work, counted in output and not in time: each opener is one character."""
    safe = safe_markdown(opener * 3000)
    assert len(safe) <= 3000 * len(opener) * len("<span>&#36;</span>")


def test_an_answer_of_exclamation_marks_takes_no_time():
    """Many checkpoints answer with them where float16 overflows."""
    begin = time.process_time()
    assert safe_markdown("!" * 100_000) == "!" * 100_000
    assert time.process_time() - begin < 10


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 50])
def test_no_number_of_exclamation_marks_makes_a_link_an_image(parse, count):
    shown = parse(safe_markdown("!" * count + "[x](https://a.b/c.png)"))
    assert shown.text.rstrip("\n") == "!" * (count - 1) + "x"
    assert "img" not in dict(shown.tags)
