"""Occlusion finds the shape that a question is about, in scenes drawn at random."""

from __future__ import annotations

import pytest

from glm4v_magic.session.session import Session
from training.drawing import bounds, draw_scene
from training.scenes import rng_for, sample_scene

LEAST = 0.9


def scenes(count):
    """Scenes of two or three shapes with different outlines; the first one is asked about."""
    number = 0
    while count:
        scene = sample_scene(rng_for("occlusion", number), "shapes", (2, 3), aspect=1.0)
        number += 1
        if len({item.shape for item in scene.items}) == len(scene.items):
            count -= 1
            yield scene


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.nightly)])
def test_the_covered_shape_matters(count, record_property):
    session = Session().load("demo")
    found = asked = 0
    for scene in scenes(count):
        item, side = scene.items[0], 224
        image = draw_scene(scene, side)
        look = session.ask(f"What colour is the {item.shape}?", image).inspect()
        words = [each.text.strip() for each in look.tokens]
        if item.colour not in words:
            continue  # the demo errs; there is nothing to explain
        asked += 1
        boxes = [bounds(each, side, side) for each in scene.items]
        found += int(look.occlusion_of(words.index(item.colour), boxes).values.argmax() == 0)
    record_property("found", f"{found} of {asked}")
    assert asked >= 0.9 * count
    assert found >= LEAST * asked
