"""HTML comes from templates, and from constant text that `Html.fill` fills: no tag is put together.

Both escape what they are filled with, so nothing unescaped can stand beside a tag.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from glm4v_magic.notebook.render import Html, joined

PACKAGE = Path(__file__).parents[2] / "glm4v_magic"
TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(?=[\s/>]|$)")

TAGS_OF_MODELS = {"<think>", "</think>", "<answer>", "</answer>", "<sop>", "<eop>"}
NO_HTML = {
    "checkpoints/places.py": "named groups of expressions",
    "calls/prompt.py": "what Python calls code without a file",
    "core/plan_text.py": "a repr",
    "notebook/interrupts.py": "what Python calls a module of its own",
    "session/chat_file.py": "a Markdown file of the user's own, with the model's Markdown as it is",
    "virtual_gpus/trace.py": "what Python calls its own modules",
}
"""Files whose tags reach no page, and why."""

TRUSTED = {
    "notebook/render/__init__.py": "`fill` and `joined`, which escape",
    "notebook/render/templates.py": "what Jinja2 has escaped, and the filters that escape more",
    "notebook/render/markdown.py": "character references, and formulas that are safe",
    "notebook/widgets/live.py": "the HTML of a MIME bundle, which `render` made",
}
"""Files that declare text to be HTML that is not constant, and why it is."""


def built(source):
    """Lines of constant strings with a tag that is no argument of ``Html`` and no pattern."""
    tree = ast.parse(source)
    fine = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Html", "re.compile"):
            is_pattern = ast.unparse(node.func) != "Html"
            parts = (each for argument in node.args for each in ast.walk(argument))
            fine |= {id(each) for each in (parts if is_pattern else node.args)}
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            fine.add(id(node.value))  # a docstring
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in fine:
            text = node.value
            for known in TAGS_OF_MODELS:
                text = text.replace(known, "")
            if TAG.search(text):
                yield node.lineno


def declared(source):
    """Lines where ``Html`` is made of what is no constant."""
    for node in ast.walk(ast.parse(source)):
        is_made = isinstance(node, ast.Call) and ast.unparse(node.func) == "Html"
        if is_made and not all(isinstance(each, ast.Constant) for each in node.args):
            yield node.lineno


def sources():
    for file in PACKAGE.rglob("*.py"):
        yield str(file.relative_to(PACKAGE)), file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('f"<b>{x}</b>"', True),
        ('f"<td {x}>"', True),
        ('"<b>" + x + "</b>"', True),
        ('"<b>%s</b>" % x', True),
        ('"".join(["<p>", x])', True),
        ('"<br>".join(x)', True),
        ('Html(f"<b>{x}</b>")', True),
        ('Html("<b>{}</b>").fill(x)', False),
        ('Html("<b>" "{}" "</b>")', False),
        ('re.compile(r"<table>")', False),
        ('text.removeprefix("<think>")', False),
        ('"a < b or b > c"', False),
        ('"""Doc <b>string</b>."""', False),
    ],
)
def test_tags_that_are_put_together_are_found(source, found):
    assert bool([*built(source)]) is found


def test_text_that_is_declared_to_be_html_is_found():
    assert [*declared('Html("<b>")')] == []
    assert [*declared('Html(text)\nHtml("<b>" + text)\nHtml(f"<b>{text}")')] == [1, 2, 3]


def test_no_tag_is_put_together():
    found = {name: [*built(source)] for name, source in sources() if TAG.search(source)}
    assert {name: lines for name, lines in found.items() if lines and name not in NO_HTML} == {}


def test_only_what_escapes_declares_text_to_be_html():
    makers = ((name, source) for name, source in sources() if "Html(" in source)
    assert {name for name, source in makers if [*declared(source)]} == {*TRUSTED}


@pytest.mark.parametrize("hostile", ["<script>", "\"' onload=x", "a&b", "\x1b[31m", "{}{0}"])
def test_what_is_filled_in_is_escaped(hostile):
    whole = Html('<b title="{}">{}</b>').fill(hostile, joined([hostile, Html("<i>")]))
    assert isinstance(whole, Html)
    inner = whole.removeprefix('<b title="').removesuffix("<i></b>")
    attribute, _, text = inner.partition('">')
    assert attribute == text
    assert not re.search("[<>\"'\x1b]|&(?!amp;|lt;|gt;|quot;|#x27;)", text)
