"""`%glm4v inspect`: words, images and layers of the latest answer."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html import unescape
from urllib.parse import unquote

import numpy as np
import pytest
from attacks import ATTACKS
from clips import write_clip
from html_tree import Tree
from PIL import Image, ImageDraw

from glm4v_magic.core.wording import printable
from glm4v_magic.inspect.grids import ImageMap
from glm4v_magic.inspect.labelled import Labelled
from glm4v_magic.notebook.render.answers.comparison import comparison_bundle
from glm4v_magic.notebook.render.answers.heat import map_figure, map_figures
from glm4v_magic.notebook.render.answers.inspection import inspection_bundle, telling_tokens
from glm4v_magic.notebook.widgets.inspection import InspectionWidget
from glm4v_magic.notebook.widgets.looks import OneAnswer, TwoAnswers
from glm4v_magic.session.session import Session

HARMLESS = {
    *("div", "span", "mark", "br", "details", "summary", "small", "b", "img"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
QUESTION = "What colour is the circle?"


@pytest.fixture(scope="module")
def session():
    return Session().load("demo")


@pytest.fixture(scope="module")
def answer(session):
    image = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(image).ellipse((20, 30, 100, 110), fill="red")
    return session.ask(QUESTION, image.rotate(3))


RED = 4  # The circle is red.


@pytest.fixture(scope="module")
def look(answer):
    return answer.inspect()


@pytest.fixture(scope="module")
def widget(look):
    widget = InspectionWidget(None, OneAnswer(look))
    yield widget
    widget.close()


def choose(widget, **values):
    for name, value in values.items():
        widget.controls[name].value = value
    return widget.html


def test_telling_words_have_images_and_each_opens_to_its_layers(look):
    bundle = inspection_bundle(look)
    html, text = bundle["text/html"], bundle["text/plain"]
    tree = Tree(html)
    drops = look.occlusions().values.values
    assert len(tree.all("img")) == sum(each.max() >= 0.1 for each in drops) > 0
    assert html.count("<table>") == 7 + 2  # and those of the probabilities and layers
    assert "covering row 2, column 1 of 4x4 costs most" in text
    assert "no part matters by itself" in text
    assert "covering row 2, column 1 of 4x4 costs most" in html
    assert "<script" not in html
    assert "<style" not in html
    assert "layer 4: ' red' 98%" in text
    assert "said: rank 1" in text
    most = drops[RED].max()
    assert f"{most:.1f}" in {part for line in text.splitlines() for part in line.split()}


def test_what_is_larger_than_a_part_is_covered_in_larger_ones(session):
    image = Image.new("RGB", (300, 300), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 280, 280), fill="red")
    look = session.ask(QUESTION, image).inspect()
    found, parts = telling_tokens(look, len(look.tokens))
    drops = look.occlusions().values.values
    assert (parts == 4) == bool((drops >= 0.1).any())
    assert all(look.on_image(at, parts=parts).values.values.max() >= 0.1 for at in found)


def test_a_word_is_chosen_by_menu_and_button(widget, look):
    assert widget.choice.word == RED  # it depends on the image most
    assert "covering row 2, column 1" in choose(widget, word=RED)
    widget.buttons[0].click()
    assert widget.controls["word"].value == 0
    assert widget.html.count("no part matters") == 2  # in words, and for who cannot see
    assert [each.description for each in widget.buttons[1:6]] == ["The", "circle", "is", "red", "."]
    assert len({each.tooltip for each in widget.buttons}) == 7


def test_a_map_is_computed_only_when_it_is_chosen(widget, look):
    assert not look.has_on_image(RED, method="attention")
    assert "of the attention falls on it" in choose(widget, word=RED, method="attention")
    assert look.has_on_image(RED, method="attention")
    every = widget.html
    assert choose(widget, layer=3) != every
    one_layer = widget.html
    assert choose(widget, head=2) != one_layer
    assert (widget.choice.layer, widget.choice.head) == (3, 2)
    assert "of the rollout falls on it" in choose(widget, method="rollout")
    assert "strongest on row" in choose(widget, method="gradient")
    assert (widget.choice.layer, widget.choice.head) == (None, None)
    weak = choose(widget, method="occlusion", strength=0.4)
    assert choose(widget, strength=0.9) != weak
    assert "of 2x2" in choose(widget, parts=2)
    choose(widget, parts=4, strength=0.7)


def test_words_of_layers_are_read_without_colour(widget):
    table = choose(widget, word=RED, layers=True)
    assert "' red' ✓" in unescape(table)
    assert "98%" in table
    assert 'tabindex="0"' in table  # the keyboard scrolls it
    assert "✓" not in choose(widget, layers=False)


def test_what_was_chosen_last_is_what_stays(widget, look):
    choose(widget, word=RED, method="occlusion", parts=4)
    assert widget.static == inspection_bundle(look)
    choose(widget, method="attention")
    assert "of the attention falls on it" in widget.static["text/plain"].split("\n")[1]
    assert widget.static["text/html"].endswith(inspection_bundle(look)["text/html"])
    choose(widget, method="occlusion")


def test_two_answers_side_by_side(session, look):
    image = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(image).ellipse((20, 30, 100, 110), fill="blue")
    both = look.against(session.ask(QUESTION, image).inspect())
    bundle = comparison_bundle(both)
    assert re.search(r'" red" .*" blue"  [+-]\d.\d\d \*', bundle["text/plain"])
    assert "answer depends more on row 2, column 1 of 4x4, by " in bundle["text/plain"]
    assert '" red" / " blue"' in bundle["text/plain"]
    assert {tag for tag, _ in Tree(bundle["text/html"]).found} <= HARMLESS
    widget = InspectionWidget(None, TwoAnswers(both))
    assert widget.buttons[RED].description == "red / blue"
    assert widget.choice.word == RED
    assert widget.html.count("<img ") == 3  # one, the other, and what differs
    assert "of the attention falls on it" in choose(widget, method="attention", layer=-1)
    widget.close()


def darkness(uri):
    """Return how dark each part of a figure is, from 0 to 255."""
    mask = re.findall('href="data:image/png;base64,([^"]+)"', unquote(uri))[-1]
    return [*Image.open(io.BytesIO(base64.b64decode(mask))).getchannel("A").tobytes()]


@pytest.mark.parametrize("strength", [0.4, 0.9])
def test_parts_that_do_not_matter_are_dark(look, strength):
    white = look.on_image(RED).image
    found = ImageMap(white, Labelled(np.eye(2), ("row", "column"), name="drop"))
    uri = map_figure(found, strength).uri
    dark = round(255 * strength)
    assert darkness(uri) == [0, dark, dark, 0]
    against = ImageMap(white, Labelled(-np.eye(2), ("row", "column"), name="input_x_gradient"))
    assert map_figure(against).uri.count("url%28%23against%29") == 2
    assert "speaks against it" in map_figure(against).words


def test_a_question_without_an_image(session):
    bundle = inspection_bundle(session.ask("What is it?", max_tokens=2).inspect())
    assert "<img" not in bundle["text/html"]
    assert "layer 1" in bundle["text/plain"]


def test_images_of_a_word_have_one_scale(look):
    white = look.on_image(RED).image
    maps = [
        ImageMap(white, Labelled(most * np.eye(2), ("row", "column"), name="drop"))
        for most in (1, 4)
    ]
    weak, strong = map_figures(maps, 0.5)
    assert darkness(strong.uri) == [0, 128, 128, 0]
    assert darkness(weak.uri) == [96, 128, 128, 96]
    nothing = ImageMap(white, Labelled(0.01 * np.eye(2), ("row", "column"), name="drop"))
    assert darkness(map_figure(nothing, 0.5, always=True).uri) == [128] * 4
    assert map_figure(nothing).uri == ""


@pytest.mark.parametrize("attack", ATTACKS[:4])
def test_names_of_images_are_escaped(answer, attack):
    conversation = answer.origin.request.conversation
    message = conversation.messages[-1]
    image = replace(message.images[0], source=attack)
    message = replace(message, images=(image,))
    origin = answer.origin
    request = replace(origin.request, conversation=replace(conversation, messages=(message,)))
    hostile = replace(answer, origin=replace(origin, request=request, ids=origin.ids[:1]))
    bundle = inspection_bundle(hostile.inspect())
    tags = Tree(bundle["text/html"]).found
    assert {tag for tag, _ in tags} <= HARMLESS
    for _, attributes in tags:
        known = {"style", "title", "scope", "src", "alt", "width", "colspan", "open"}
        assert {*attributes} <= known | {"aria-label", "role", "tabindex"}
        assert attributes.get("src", "data:image/svg+xml,").startswith("data:image/svg+xml,")
    assert printable(attack) in bundle["text/plain"]
    widget = InspectionWidget(None, OneAnswer(hostile.inspect()))
    assert {tag for tag, _ in Tree(widget.html).found} <= HARMLESS
    widget.close()


def test_the_command(run, tiny, photo):
    run(f"%glm4v ask {photo} 'What is it?' --chat cats")
    said = run("%glm4v inspect")
    assert "layer 1" in said
    # Rows of a map, and columns of a comparison, are in no chat: this is of the cell before.
    assert said.startswith("Asked was 'What is it?'.")
    assert run("%glm4v inspect cats") == said
    assert "There is no chat 'dogs'" in run("%glm4v inspect dogs", fails=True)
    run(f"%glm4v ask {photo} 'What colour is it?' --chat birds")
    said = run("%glm4v inspect cats --against birds")
    assert said.startswith("Asked was 'What is it?' and 'What colour is it?'.")
    assert "*" in said
    assert "There is no chat 'dogs'" in run("%glm4v inspect cats --against dogs", fails=True)
    run(f"answer = %glm4v ask {photo} 'What is it?' -q")
    assert "layer 1" in run("answer.inspect()")
    run("look = answer.inspect()")
    assert "layer 1" in run("look")
    assert "Inspection of" in run("[look]")
    assert '"' in run("look.against(look)")
    run("%glm4v export cats cats.json")
    run("%glm4v reset cats")
    run("%glm4v import cats.json")
    assert "it was imported" in run("%glm4v inspect", fails=True)
    run("%glm4v unload")
    said = run("look")
    assert "Inspection of" in said
    assert "no longer loaded" in said


@pytest.mark.parametrize(("with_image", "offered"), [(False, False), (True, True)])
def test_a_look_at_a_clip_begins_with_a_method_for_frames(tmp_path, with_image, offered):
    session = Session().load("demo-4.6v")
    images = [Image.new("RGB", (60, 40), "red")] if with_image else []
    answer = session.ask("What moves?", images, video=write_clip(tmp_path / "a.mp4"), max_tokens=2)
    widget = InspectionWidget(None, OneAnswer(answer.inspect()))
    assert widget.html.count("<img") == len(answer.inspect().images)
    assert "cannot be covered" not in widget.html
    methods = {value for _, value in widget.controls["method"].options}
    assert methods == {"attention", "rollout", "gradient", *(["occlusion"] if offered else [])}
    widget.close()
