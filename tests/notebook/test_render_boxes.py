"""Boxes in a cell: on their images, in a table, and harmless whatever a label is."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import pytest
from attacks import ATTACKS
from html_tree import SCROLLS, Tree
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from PIL import Image

from glm4v_magic.core.boxes import Box, Point
from glm4v_magic.core.conversation import Answer, Conversation, Message, Usage
from glm4v_magic.core.video import Frame, SourcedVideo
from glm4v_magic.core.wording import printable
from glm4v_magic.images import SourcedImage
from glm4v_magic.notebook.live.screen import TerminalScreen
from glm4v_magic.notebook.render.answers.answer import answer_bundle
from glm4v_magic.notebook.render.answers.boxes import boxes_html, boxes_text
from glm4v_magic.notebook.render.answers.chat import history_bundle

PAGES = {
    "mistune": markdown2html_mistune,
    "markdown-it": MarkdownIt("commonmark", {"html": True}).enable("table").render,
}
HARMLESS = {
    *("div", "span", "img", "details", "summary", "small", "p", "em"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
SVG = "{http://www.w3.org/2000/svg}"
CAT = Box("cat", 20, 30, 120, 90)
NOSE = Point("nose", 70, 40)


def answer(*boxes, points=(), images=1, size=(200, 100), source="photo.png", **more):
    image = SourcedImage(Image.new("RGB", size, "gray"), source, size)
    return Answer(
        "There.", "Where?", "m", Usage(3, 0, 1), "stop",
        **{"images": (image,) * images, "boxes": boxes, "points": tuple(points)} | more,
    )  # fmt: skip


def drawings(html):
    """The SVG of each image."""
    for attributes in Tree(html).all("img"):
        kind, _, svg = attributes["src"].partition(",")
        assert kind == "data:image/svg+xml"
        yield ET.fromstring(unquote(svg))


def names(drawing):
    return [text.text for text in drawing.iter(f"{SVG}text")]


def test_boxes_are_on_the_image_with_number_and_label():
    (drawing,) = drawings(boxes_html(answer(CAT, points=[NOSE])))
    assert names(drawing) == ["1 cat", "2 nose"]
    assert (drawing.get("width"), drawing.get("height")) == ("200", "100")
    black, white = drawing.iter(f"{SVG}rect")
    for rect in (black, white):
        assert [rect.get(each) for each in ("x", "y", "width", "height")] == [
            "20.0", "30.0", "100.0", "60.0",
        ]  # fmt: skip
    assert {black.get("stroke"), white.get("stroke")} == {"#000", "#fff"}
    assert {(dot.get("cx"), dot.get("cy")) for dot in drawing.iter(f"{SVG}circle")} == {
        ("70.0", "40.0")
    }
    (image,) = drawing.iter(f"{SVG}image")
    assert image.get("href").startswith("data:image/")


def test_a_large_image_is_shown_smaller():
    box = Box("x", 1000, 1000, 2000, 1500)
    (drawing,) = drawings(boxes_html(answer(box, size=(4000, 2000))))
    assert (drawing.get("width"), drawing.get("height")) == ("560", "280")
    assert next(drawing.iter(f"{SVG}rect")).get("x") == "140.0"


def test_the_edges_of_a_box_on_those_of_the_image_show():
    (drawing,) = drawings(boxes_html(answer(Box("x", 0, 0, 200, 100))))
    rect = next(drawing.iter(f"{SVG}rect"))
    assert [rect.get(each) for each in ("x", "y", "width", "height")] == [
        "2.0",
        "2.0",
        "196.0",
        "96.0",
    ]


def test_only_images_with_boxes_are_shown_and_the_table_names_theirs():
    html = boxes_html(answer(CAT, Box("dog", 1, 1, 9, 9, 2), images=3))
    first, third = drawings(html)
    assert (names(first), names(third)) == (["1 cat"], ["2 dog"])
    assert "image 1, photo.png" in "".join(Tree(html).text)
    assert "image 1" not in "".join(Tree(boxes_html(answer(CAT))).text)


def test_the_table_tells_everything():
    tree = Tree(boxes_html(answer(CAT, points=[NOSE])))
    text = " ".join(tree.text)
    for each in ("2 boxes", "1 cat", "(20, 30) to (120, 90) px", "boxes[0]", "points[0]"):
        assert (each in text) == (each != "2 boxes")
    assert "1 box, 1 point" in text
    assert tree.all("img")[0]["alt"] == "photo.png with 1 cat; 2 nose"


def test_long_names_end_within_the_image():
    (drawing,) = drawings(boxes_html(answer(Box("label " * 30, 150, 50, 199, 90))))
    (text,) = drawing.iter(f"{SVG}text")
    assert text.text.startswith("1 label")
    assert text.text.endswith("...")
    assert float(text.get("x")) + 0.65 * 13 * len(text.text) <= 200


def test_of_many_boxes_a_part_is_shown_and_the_rest_counted():
    many = answer(*[CAT] * 500)
    assert "and 300 more" in boxes_html(many)
    assert len(names(next(drawings(boxes_html(many))))) == 200
    assert boxes_text(many).splitlines()[-1] == "and 460 more"
    assert (
        len(
            list(
                drawings(
                    boxes_html(answer(*(Box("", 0, 0, 9, 9, n) for n in range(20)), images=20))
                )
            )
        )
        == 12
    )


def test_an_answer_shows_its_boxes_below_its_text():
    bundle = answer_bundle(answer(CAT, boxes_fault="Boxes and points: 1 turned round."))
    assert bundle["text/plain"].splitlines()[:2] == ["There.", "1 cat: (20, 30) to (120, 90) px"]
    assert bundle["text/plain"].endswith("1 turned round.")
    markdown = bundle["text/markdown"]
    assert re.match(r"There\.\n\n<div [^>]*><img src", markdown)
    assert markdown.index("boxes&#91;0]") < markdown.index("1 turned round.")
    assert "<img" not in answer_bundle(answer())["text/markdown"]
    plain = answer_bundle(answer(CAT, format="text"))
    assert list(plain) == ["text/plain"]
    assert "1 cat" in plain["text/plain"]


def test_a_terminal_prints_them(capsys):
    TerminalScreen("m").finish(answer(CAT))
    assert "1 cat: (20, 30) to (120, 90) px\n" in capsys.readouterr().out


def test_the_history_lists_them():
    image = answer().images[0]
    talk = Conversation((
        Message("user", "Where?", (image,)), Message("assistant", "[[100,300,600,900]]"),
    ))  # fmt: skip
    bundle = history_bundle(talk)
    assert bundle["text/plain"].endswith("[[100,300,600,900]]\n1: (20, 30) to (120, 90) px")
    assert "(20, 30) to (120, 90) px</small>" in bundle["text/markdown"]


@pytest.mark.parametrize("parse", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_label_acts_on_a_page(attack, parse):
    html = boxes_html(answer(Box(attack, 1, 1, 9, 9), images=2, source=attack))
    assert "\n" not in html
    for tag, attributes in Tree(parse(f"{html}\n\nThe *end*.")).found:
        assert tag in HARMLESS
        assert set(attributes) <= {"style", "scope", "src", "alt", "width"} | SCROLLS
        assert "url(" not in attributes.get("style", "")
        assert attributes.get("src", "data:image/svg+xml,").startswith("data:image/svg+xml,")
    assert "<em>end</em>" in parse(f"{html}\n\nThe *end*.")
    plain = re.sub(r'(src|alt)="[^"]*"', "", html)
    assert not re.search(r"(?<!<span>)[$\\]", plain.replace("&#36;", "$").replace("&#92;", "\\"))
    assert not re.search(r'(src|alt)="[^"]*[$\\`<*_~]', html.replace("<wbr>", ""))
    (drawing,) = drawings(html)
    assert {each.tag.removeprefix(SVG) for each in drawing.iter()} == {
        "svg", "image", "g", "rect", "text",
    }  # fmt: skip
    (name,) = names(drawing)
    assert (printable(f"1 {attack}").split()[0]).startswith(name.split()[0])


@given(st.text(st.characters(), max_size=60))
def test_any_label_is_well_formed(label):
    html = boxes_html(answer(Box(label, 1, 1, 9, 9), points=[Point(label, 0, 0)]))
    html.encode("utf-8", "surrogatepass")
    assert len(list(drawings(html))) == 1


def test_boxes_on_frames_of_a_video_are_drawn_on_these():
    gray = Image.new("RGB", (200, 100), "gray")
    frames = [Frame(SourcedImage(gray, f"clip at 0:0{n}", gray.size), n) for n in range(3)]
    clip = SourcedVideo.of_seen("clip.mp4", (200, 100), 1.0, frames)
    on_clip = [replace(CAT, frame=2), replace(CAT, frame=0), replace(CAT, label="dog", frame=2)]
    found = answer(*on_clip, images=0, videos=(clip,))
    html = str(boxes_html(found))
    assert [names(each) for each in drawings(html)] == [["2 cat"], ["1 cat", "3 dog"]]
    assert "frame 2, clip at 0:02" in Tree(html).text
    assert boxes_text(found).splitlines()[1].endswith("frame 0, clip at 0:00")
