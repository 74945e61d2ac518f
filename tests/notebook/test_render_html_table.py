"""Tables in HTML, as models that read documents write them."""

from __future__ import annotations

import re

import pytest
from attacks import ATTACKS
from markdown_it import MarkdownIt
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from test_render_markdown import PARSERS

from glm4v_magic.notebook.render.markdown import safe_markdown

TAGS = {"table", "caption", "tbody", "tr", "th", "td", "br", "b", "i", "sup", "sub"}
AROUND = {
    "div",
    "p",
    "span",
    "code",
    "em",
    "a",
    "strong",
    "pre",
    "ul",
    "ol",
    "li",
    "blockquote",
    "h1",
}


def test_a_table_is_one_with_merged_cells():
    text = """Prices:
<table border="1" class='x' onclick=alert(1)>
<thead><tr><th colspan="2" style="color:red">Fruit &amp; more</th></tr></thead>
<tbody>
  <tr><td rowspan=2>Apple<br/>red</td><td>1 &lt; 2</td></tr>

  <tr><td>a_b *c*
d</td></tr>
</tbody></table>
*After.*"""
    safe = safe_markdown(text)
    assert (
        '<table><tbody><tr><th colspan="2">Fruit &#38; more</th></tr>'
        '<tr><td rowspan="2">Apple<br>red</td><td>1 &#60; 2</td></tr>'
        "<tr><td>a&#95;b &#42;c&#42; d</td></tr></tbody></table>"
    ) in safe
    for parse in PARSERS:
        tags = [tag for tag, _ in parse(safe).tags]
        assert tags == [
            *(
                "p",
                "div",
                "a",
                "table",
                "tbody",
                "tr",
                "th",
                "tr",
                "td",
                "br",
                "td",
                "tr",
                "td",
                "p",
                "em",
            )
        ]
        assert "a_b *c* d" in parse(safe).text


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("5 m<sup>2</sup> of H<SUB>2</SUB>O", "5 m<sup>2</sup> of H<sub>2</sub>O"),
        ("<b>a<br>b</b>", "&#60;b&#62;a<br>b&#60;&#47;b&#62;"),
        ("<b>bold <i>x</i></b>", "&#60;b&#62;bold <i>x</i>&#60;&#47;b&#62;"),
        ("<b></b>", "&#60;b&#62;&#60;&#47;b&#62;"),
        ("<b onclick=x>1</b>", "&#60;b onclick&#61;x&#62;1&#60;&#47;b&#62;"),
        ("<b>&lt;i&gt;</b>&lt;b&gt;x&lt;/b&gt;", "<b>&#60;i&#62;</b>&#60;b&#62;x&#60;&#47;b&#62;"),
        ("&#xe000;sup&#xe000;x\ue000", "supx"),
    ],
)  # fmt: skip
def test_a_line_of_a_cell_keeps_how_it_is_set(cell, expected):
    assert f"<td>{expected}</td>" in safe_markdown(f"<table><tr><td>{cell}</td></tr></table>")


def test_formulas_in_cells_are_kept_and_safe():
    safe = safe_markdown("<table><tr><td>$a < b$</td><td>$\\href{javascript:x}{y}$ \\(c\\)</table>")
    first, second = re.findall("<td>(.*?)</td>", safe)
    assert first == "$a \\lt  b$"
    assert second.endswith(" $c$")
    assert "\\" not in second
    assert second.count("$") == 2
    assert safe_markdown("<table><tr><td>$a & b$").count("$a &amp; b$") == 1


@pytest.mark.parametrize(
    "text",
    [
        "<table",
        "<table>",
        "<table><tr",
        "<table><tr><td>1",
        "<table><td>1</td></table",
        "<table></tr></td><td>x<tr></table></table>",
        "<table><tr><td><table><tr><td>in</td></tr></table></td></tr></table>x",
        "<table><caption>A <b>c</b></caption>loose<tr><td>1</tr></tbody></table><table><tr><td>2",
        '<table><tr><td colspan="99999" rowspan=0 colspan=-1>x</td></tr></table>',
        "<table>\n\n\n<tr>\n\n<td>\n\n# no\n\n- list\n\n</td></tr></table>\n\n# yes",
    ],
)
@pytest.mark.parametrize("parse", PARSERS)
def test_whatever_is_written_the_tags_are_balanced(text, parse):
    safe = safe_markdown(f"{text}\n\n*After.*" if "</table>" in text else text)
    stack = []
    for end, name in re.findall(r"<(/?)(\w+)", re.sub("<br>", "", safe)):
        if end:
            assert stack.pop() == name
        else:
            stack.append(name)
    assert stack == []
    assert {tag for tag, _ in parse(safe).tags} <= TAGS | AROUND
    for tag, attributes in parse(safe).tags:
        if tag in TAGS:
            assert set(attributes) <= {"colspan", "rowspan"}
            assert all(1 <= int(value) <= 100 for value in attributes.values())


def test_a_table_within_a_table_is_text():
    inner = "<table><tr><td>in</td></tr></table>"
    safe = safe_markdown(f"<table><tr><td>a {inner} b</td><td>c</td></tr></table>")
    assert (safe.count("<table>"), safe.count("<td>")) == (1, 2)
    for parse in PARSERS:
        assert f"a {inner} b" in parse(safe).text


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_in_or_around_a_table_becomes_text(attack):
    parsers = [
        markdown2html_mistune,
        MarkdownIt("commonmark", {"html": True}).enable("table").render,
    ]
    for text in (
        f"<table><tr><td>{attack}</td></tr></table>",
        f"<table {attack}><tr><td>x</td></tr></table>",
        f"<table><tr><td {attack}>x</td></tr></table>",
        f"<table>{attack}<tr {attack}>{attack}",
        f"{attack}\n<table><tr><td>{attack}",
        f"<table><caption>{attack}</caption></table>{attack}",
    ):
        safe = safe_markdown(text)
        for parse in parsers:
            page = parse(safe)
            tags = {tag.lower() for tag in re.findall(r"<\s*([a-zA-Z!?]\w*)", page)}
            assert not tags & {"script", "img", "svg", "iframe", "style", "input", "form", "base"}
            assert not re.search(
                r"<[^>]*\s(on\w+|style|src|srcdoc)\s*=(?!\"(text-align|display:block;overflow-x))",
                page,
            )
            links = re.findall(r'href="([^"]*)"', page)
            assert all(re.match("https?://|#", link) for link in links)
        for cell in re.findall("<t[dh][^>]*>(.*?)</t[dh]>", safe):
            assert set(re.findall(r"<(/?\w+)", cell)) <= {"span", "/span", "br"}


@pytest.mark.parametrize(
    "text",
    ["`<table><tr>`", "<table> is a tag of HTML.", "<tables><tr>", "a <table><tr><td>1</td>"],
)
def test_what_speaks_of_tables_is_none(text):
    safe = safe_markdown(text)
    assert "<table" not in safe.replace("`<table><tr>`", "")
    for parse in PARSERS:
        assert text.strip("`") in parse(safe).text


def test_what_is_in_code_stays_code():
    text = "```html\n<table><tr><td>1</td></tr></table>\n```"
    assert safe_markdown(text) == text


def test_pieces_before_stay_as_they_were():
    text = (
        "A\n\n<table><tr><td>1</td></tr></table>\n\nB *c*\n\n<table><tr><td>2</td></tr>\n</table>"
    )
    whole = safe_markdown(text)
    for end in range(text.index("B"), len(text)):
        safe = safe_markdown(text[:end])
        assert safe.startswith(whole[: whole.index("B")])


@pytest.mark.parametrize("opener", ["<table>", "<table><tr>", "<tr><td>", "<td colspan=", "<"])
def test_many_openers_stay_cheap(opener):
    safe = safe_markdown("<table><tr><td>" + opener * 3000)
    assert len(safe) <= 3000 * len(opener) * len("<span>&#36;</span>") + 1000
