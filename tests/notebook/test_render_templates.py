"""The templates escape what they print, and a plan is drawn without them."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources

import jinja2
import pytest
from html_tree import Tree

from glm4v_magic.notebook.render import Html, breaking, scrolling
from glm4v_magic.notebook.render.templates import fill

DRAWN_ALONE = """
import sys
before = set(sys.modules)
from glm4v_magic.core.plan import Plan, Workload
from glm4v_magic.core.stage import Stage
from glm4v_magic.notebook.render.plans.device_map import device_map_html
from glm4v_magic.notebook.render.plans.plan import plan_html
from glm4v_magic.planning.occupancy import Occupancy, OccupiedGPU, Part
gpu = OccupiedGPU("cuda:0", "GPU", 10, 10, (Part("layers", "layers", 5, ("a",), "bfloat16"),))
assert "layers" in device_map_html(Occupancy("m", "w", (gpu,)))
assert "cuda:0" in plan_html(Plan("m", Workload(), "balance", (Stage(0, "cuda:0", 10, ("a",)),)))
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - sys.stdlib_module_names))
"""


def test_values_are_escaped_and_lose_their_control_characters():
    assert fill("line", line="<b>\"'&\x1b[31m") == "<div>&lt;b&gt;&quot;&#x27;&amp;[31m</div>"


def test_html_is_printed_as_it_is():
    assert fill("line", line=Html("<b>")) == "<div><b></div>"


def test_a_subclass_of_str_is_not_html():
    class Name(str):
        __slots__ = ()

    assert fill("line", line=Name("<b>\x07")) == "<div>&lt;b&gt;</div>"


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="line"):
        fill("line")


def test_templates_are_pieces_of_a_page_that_mark_nothing_as_safe():
    folder = resources.files("glm4v_magic.notebook.render") / "templates"
    sources = {each.name: each.read_text("utf-8") for each in folder.iterdir()}
    assert "answer_facts.html" in sources
    for name, source in sources.items():
        assert name.endswith(".html")
        assert "safe" not in source
        assert "autoescape" not in source


def test_a_plan_is_drawn_by_the_standard_library_alone():
    done = subprocess.run([sys.executable, "-c", DRAWN_ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["glm4v_magic"]


def test_lines_may_end_within_long_names_and_nothing_else_is_changed():
    name = "model.language_model.layers.12.self_attn"
    assert breaking(f"in {name}").replace("<wbr>", "") == f"in {name}"
    longest = max(breaking(name).split("<wbr>"), key=len)
    assert len(longest) <= 20
    assert breaking("x" * 50).count("<wbr>") == 3
    for short in ("a short text", "\u5f20" * 60, "layers 12-26", ""):
        assert breaking(short) == short
    assert breaking("&" * 30).replace("<wbr>", "") == "&amp;" * 30
    assert breaking(Html("<b>")) == "<b>"
    attack = "<script>" + "a" * 40
    assert breaking(attack).replace("<wbr>", "") == "&lt;script&gt;" + "a" * 40


def test_what_scrolls_can_be_reached_and_holds_no_link():
    tree = Tree(scrolling('a "name"', Html("<table><tr><td>1</td></tr></table>")))
    (holds,) = tree.scrolling
    assert (holds["tabindex"], holds["role"], holds["aria-label"]) == ("0", "region", 'a "name"')
    assert "overflow-x:auto" in holds["style"]
    for template in (resources.files("glm4v_magic.notebook.render") / "templates").iterdir():
        assert "<a " not in template.read_text(encoding="utf-8"), template.name
