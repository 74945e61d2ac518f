"""An evaluation in a cell: its drawings say what its tables say, and no name can break them."""

from __future__ import annotations

from urllib.parse import unquote
from xml.etree import ElementTree as ET

import pandas as pd
import pytest
from attacks import ATTACKS
from html_tree import Tree

from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.core.rows import AnsweredRow
from glm4v_magic.mapping.evaluation import Evaluation
from glm4v_magic.mapping.items import items_of
from glm4v_magic.mapping.scoring import evaluation_of, truth_of
from glm4v_magic.notebook.render.evaluation import evaluation_bundle

SVG = "{http://www.w3.org/2000/svg}"
GREEDY = "--temperature 0 --max-tokens 4"


def made(choices=("yes", "no"), kinds=("old", "new"), said="yes", name="a"):
    data = [
        {"q": f"{name}{at}", "label": choices[at % 2], "kind": kinds[at % len(kinds)]}
        for at in range(4)
    ]
    items = items_of(data, "rows", column="q")
    truth = truth_of(items, "label", "kind", choices=choices)
    rows = []
    for at in range(4):
        answer = Answer(
            said, "?", "m", Usage(1, 1, 1), "stop", choices={choices[0]: 0.7, choices[1]: 0.3}
        )
        rows.append(truth.scored(AnsweredRow(at, data[at]["q"], data[at]["q"], "?", answer)))
    return evaluation_of(rows, truth, "m")


def drawings(evaluation):
    """The SVG trees of an evaluation by their titles, and the images they are in."""
    found = {}
    for image in Tree(evaluation_bundle(evaluation)["text/html"]).all("img"):
        head, _, svg = image["src"].partition(",")
        assert head == "data:image/svg+xml"
        tree = ET.fromstring(unquote(svg))
        found[tree.find(f"{SVG}title").text] = tree, image
    return found


def texts(tree):
    return [each.text for each in tree.iter(f"{SVG}text")]


def test_every_number_is_drawn_and_said():
    found = drawings(made())
    assert [*found] == ["Accuracy by kind", "Expected and given answers", "Reliability, ECE 0.200"]
    kinds, confusion, reliability = (tree for tree, _ in found.values())
    assert {"all", "2 of 4, 50%", "old", "2 of 2, 100%", "new", "0 of 2, 0%"} <= {*texts(kinds)}
    assert texts(confusion)[1:] == ["expected", "yes", "no", "yes", "no", "2", "0", "2", "0"]
    bold = [each.text for each in confusion.iter(f"{SVG}text") if "font-weight" in each.attrib]
    assert bold[1:] == ["2", "0"]  # the diagonal, for which no colour is needed
    assert "4" in texts(reliability)
    for title, (tree, image) in found.items():
        described = tree.find(f"{SVG}desc").text
        assert image["alt"] == f"{title}: {described}"
        assert tree.attrib["role"] == "img"
        assert "prefers-color-scheme:dark" in tree.find(f"{SVG}style").text
    assert (
        "60% to 70%: mean probability 70%, right 50% of 4 rows"
        in found["Reliability, ECE 0.200"][1]["alt"]
    )


def test_bars_are_as_long_as_their_share():
    tree, _ = drawings(made(kinds=("old", "new", "old", "old")))["Accuracy by kind"]
    widths = [float(each.attrib["width"]) for each in tree.iter(f"{SVG}rect")]
    assert widths[1:] == [95, 95, 0, 0, 126.7, 126.7]  # 2 of 4, 0 of 1, 2 of 3 of 190 pixels
    tree, _ = drawings(made())["Reliability, ECE 0.200"]
    bar = [*tree.iter(f"{SVG}rect")][2]
    assert (bar.attrib["width"], bar.attrib["height"]) == ("22.0", "110.0")  # of 220 pixels


def test_the_text_of_a_terminal_says_it_all():
    text = evaluation_bundle(made())["text/plain"]
    assert text.startswith("2 of 4 rows right: 50.0 % (95 % interval 0.0 % to 100.0 %).\n")
    assert "Expected calibration error 0.200, in 10 bins of 4 rows." in text
    assert "2 rows wrong:" in text
    assert "yes  2    0" in text


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_name_breaks_a_drawing_or_a_table(attack):
    hostile = attack.strip() or "x"
    evaluation = made((hostile, "no"), (hostile, "new"), hostile, hostile)
    bundle = evaluation_bundle(evaluation)
    tree = Tree(bundle["text/html"])
    assert {tag for tag, _ in tree.found} <= {
        *("div", "img", "details", "summary", "table", "thead", "tbody", "tr", "th", "td", "small")
    }
    assert not any(name.startswith("on") for _, found in tree.found for name in found)
    for svg, _ in drawings(evaluation).values():
        assert {each.tag.removeprefix(SVG) for each in svg.iter()} <= {
            *("svg", "title", "desc", "style", "rect", "text", "path", "circle")
        }
    assert "\x1b" not in bundle["text/plain"]


def test_many_kinds_and_choices_are_cut_and_counted():
    evaluation = made(tuple(f"c{at}" for at in range(30)), [f"k{at}" for at in range(4)])
    assert "Expected and given answers" not in drawings(evaluation)
    assert "and 10 more choices" in evaluation_bundle(evaluation)["text/plain"]


@pytest.fixture
def frame(tiny, shell):
    frame = pd.DataFrame(
        {"q": ["one", "two", "three"], "label": ["ja", "no", "ja"], "kind": ["x", "y", "x"]}
    )
    shell.user_ns["df"] = frame
    return frame


def evaluate(run, options, text="Is it {{row.q}}?", **kwargs):
    return run(f"%%glm4v --over df {GREEDY} --choices ja,no {options}\n{text}", **kwargs)


def test_a_cell_evaluates(frame, run, shell):
    said = evaluate(run, "--evaluate label --by kind --bins 4 -o scores")
    found = shell.user_ns["scores"]
    assert isinstance(found, Evaluation)
    assert found is shell.user_ns["_"]
    assert f"{found.score.right} of 3 rows right" in said
    assert "3 of 3 rows answered" in said
    assert len(found.calibration.bins) == 4
    assert [each.name for each in found.kinds] == ["x", "y"]
    again = evaluate(run, "--evaluate label --quiet")
    assert "right" not in again
    assert "3 of 3 rows answered, 3 of them from before" in evaluate(run, "--evaluate label")
    assert "data:image/svg+xml" in shell.display_formatter.format(found)[0]["text/html"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--evaluate labl", "There is no column 'labl'. Did you mean label?"),
        ("--evaluate label --by size", "There is no column 'size'."),
        ("--evaluate q", "Column 'q' holds 'one', 'two', 'three', which are none of the choices"),
        ("--by kind", "--by is about --evaluate, and there is no --evaluate."),
        ("--bins 3", "--bins is about --evaluate, and there is no --evaluate."),
        ("--evaluate label --bins 0", "--bins is 0, but must be a whole number from 1 to 100."),
    ],
)
def test_what_a_cell_cannot_evaluate(frame, run, options, said):
    assert said in evaluate(run, options, fails=True)


def test_bins_are_those_of_choices(frame, run):
    said = run("%%glm4v --over df --evaluate label --bins 3\nWhat?", fails=True)
    assert "--bins is about the probabilities of choices, and there are no choices." in said


def test_scores_are_those_of_rows(tiny, run):
    said = run('%glm4v ask "What?" --evaluate label', fails=True)
    assert "--evaluate is about the rows of --over, and there is no --over." in said
    said = run("%%glm4v --over [1,2] --evaluate label\n{{item}}?", fails=True)
    assert "[1,2] is not a table, so it has no column 'label'." in said
