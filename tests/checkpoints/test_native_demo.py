"""The embedded checkpoint in the layout of GLM-4.6V: how it is found, and how often it is right.

The samples are seeded and small; `make eval-native-demo` measures more. Nothing of them was
trained on.
"""

from __future__ import annotations

import pytest

import glm4v_magic
from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.model import DEMOS, NATIVE_DEMO
from training.native.evaluate import cases, questions, scores

SAMPLE = 20

LEAST = {
    "shape": 0.95,
    "existence": 0.95,
    "count": 0.95,
    "colour": 0.95,
    "boxes": 0.85,
    "box": 0.8,
    "box in": 0.8,
    "difference": 0.75,
    "mover": 0.9,
    "colour in": 0.95,
    "count in": 0.9,
    "which image": 0.95,
    "more": 0.9,
    "motion": 0.9,
    "existence (Chinese)": 0.95,
}
"""Least score of a kind without thinking: of boxes the mean overlap, of others the share right."""


@pytest.fixture(scope="module")
def session():
    return glm4v_magic.load(NATIVE_DEMO, gpus="cpu")


def test_every_embedded_checkpoint_is_found_by_its_name():
    for name in DEMOS:
        checkpoint = resolve(name)
        assert checkpoint.name == checkpoint.folder.name == architecture(name).name == name
        assert checkpoint.notice
        with pytest.raises(OptionError):
            resolve(name, revision="main")


def test_it_has_what_its_family_has():
    checkpoint = resolve(NATIVE_DEMO)
    assert checkpoint.config["model_type"] == "glm46v"
    assert checkpoint.max_images is None
    assert checkpoint.thinks
    assert checkpoint.takes_video


@pytest.mark.parametrize("kind", LEAST)
def test_it_is_right_as_often_as_it_was_measured(session, kind):
    (case,) = (each for each in cases() if each.name == kind)
    asked = list(questions(case, SAMPLE, 1, "trained"))
    found = scores(session.engine, asked, thinking=False, is_boxed=case.is_boxed)
    assert sum(found) / SAMPLE >= LEAST[kind]


def test_its_thoughts_name_what_is_there_and_are_no_part_of_the_answer(session):
    (case,) = (each for each in cases() if each.name == "count")
    asked = list(questions(case, 20, 1, "trained"))
    right = 0
    for each in asked:
        answer = session.ask(
            each.exchange.question, images=list(each.images), thinking=True, temperature=0
        )
        assert answer.thinking.startswith("I see ")
        assert "think" not in answer.text
        right += answer.thinking == each.exchange.thought
    assert right >= 12


def test_json_that_it_writes_by_itself_it_writes_where_it_has_to(session):
    """A grammar that knows another layout of JSON leads it astray from the first colon on."""
    (case,) = (each for each in cases() if each.name == "boxes")
    for each in questions(case, SAMPLE, 1, "trained"):
        asked = {"images": list(each.images), "thinking": False, "temperature": 0}
        free = session.ask(each.exchange.question, **asked)
        held = session.ask(each.exchange.question, format="json", **asked)
        assert (held.text, held.boxes) == (free.text, free.boxes)
