"""`%glm4v inspect`: words, images and layers of the latest answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from attacks import ATTACKS
from html_tree import Tree
from PIL import Image, ImageDraw

from glm4v_magic.core.wording import printable
from glm4v_magic.notebook.render.answers.inspection import inspection_bundle
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


def test_each_token_opens_to_image_and_layers(answer):
    bundle = inspection_bundle(answer.inspect())
    html, text = bundle["text/html"], bundle["text/plain"]
    assert html.count("<img ") == len(answer.origin.ids) == 7
    assert html.count("<table>") == 7 + 1  # and that of the probabilities
    assert "covering row 2, column 1 of 4x4 costs most" in text
    assert "no part matters by itself" in text
    assert "covering row 2, column 1 of 4x4 costs most" in html
    assert "<script" not in html
    assert "<style" not in html
    assert "layer 4: ' red' 98%" in text
    assert "said: rank 1" in text


def test_a_question_without_an_image(session):
    bundle = inspection_bundle(session.ask("What is it?", max_tokens=2).inspect())
    assert "<img" not in bundle["text/html"]
    assert "layer 1" in bundle["text/plain"]


@pytest.mark.parametrize("attack", ATTACKS[:4])
def test_names_of_images_are_escaped(answer, attack, session):
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
        assert {*attributes} <= {"style", "title", "scope", "src", "alt", "width", "colspan"}
        assert attributes.get("src", "data:image/svg+xml,").startswith("data:image/svg+xml,")
    assert printable(attack) in bundle["text/plain"]


def test_the_command(run, tiny, photo):
    run(f"%glm4v ask {photo} 'What is it?' --chat cats")
    said = run("%glm4v inspect")
    assert "layer 1" in said
    assert run("%glm4v inspect cats") == said
    assert "There is no chat 'dogs'" in run("%glm4v inspect dogs", fails=True)
    run("%glm4v export cats cats.json")
    run("%glm4v reset cats")
    run("%glm4v import cats.json")
    assert "it was imported" in run("%glm4v inspect", fails=True)
    run("%glm4v unload")
