"""Everything that looks into a model shows on any split what it shows on one device.

Inside of `VirtualGPUs` an operation that mixes devices raises, wherever the parts are: each module
alone on a GPU, the text part whole on another one than the tower, anything in host memory.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw

from glm4v_magic.checkpoints import resolve
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

QUESTION = "What colour is the circle?"
EXACT = {"temperature": 0, "repetition_penalty": 1.0, "max_tokens": 6}
TEXT, HEAD = "model.language_model", "lm_head"
TOWERS = {"demo": "model.vision", "demo-4.6v": "model.visual"}
"""The tower of each kind: GLM-4V-9B of 2024, and the newer models."""
LAST = 4  # the colour, in "The circle is red."


def circle(colour):
    image = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(image).ellipse((40, 40, 120, 120), fill=colour)
    return image


def everything(session):
    """What each part of an inspection, a comparison, a trace and an evaluation finds, by its name.

    Gradients are refused on virtual GPUs.
    """
    pytest.importorskip("nnsight")
    look, other = (
        session.ask(QUESTION, circle(colour), **EXACT).inspect() for colour in ("red", "blue")
    )
    lens, both = look.lens(2), look.against(other)
    found = {
        "tokens": [each.token.logprob for each in look.tokens],
        "entropy": [each.entropy for each in look.tokens],
        "lens": lens.probabilities,
        "said": lens.said_probabilities,
        "hidden": look.hidden(2),
        "attention": look.attention(LAST).values,
        "rollout": look.rollout(LAST).values,
        "occlusion": look.occlusions(rows=2, columns=1).values,
        "box": look.occlusion_of(LAST, [(0, 0, 120, 120), (0, 0, 80, 80)]),
        "covered": both.maps(LAST, parts=2).difference,
        "attended": both.maps(LAST, method="attention").difference,
        "differs": both.to_dataframe()["difference"].fillna(0),
    }
    with session.trace(QUESTION, circle("red"), **EXACT) as trace:
        state = trace.layers[1].output.save()
        normed = trace.model.model.language_model.norm.output.save()
    found |= {"state": state.cpu(), "normed": normed.cpu()}
    rows = [{"image": circle(colour), "colour": colour} for colour in ("red", "blue")]
    prompt = f"{QUESTION} Answer red or blue."
    evaluation = session.evaluate(rows, prompt, answer="colour", choices=["red", "blue"])
    found["evaluation"] = [
        probability for row in evaluation.answers for probability in row.answer.choices.values()
    ]
    return {name: np.asarray(each, dtype=float) for name, each in found.items()}


@pytest.fixture(scope="module")
def expected():
    @cache
    def of_one_device(kind):
        found = everything(Session().load(kind, dtype="float32"))
        assert [name for name, each in found.items() if np.ptp(each) == 0] == []
        return found

    return of_one_device


def units(kind):
    return {each.name: each.modules for each in resolve(kind).architecture.shape().units}


def where(kind, place):
    """A map of every unit, by a function of its number and name."""
    return {
        module: place(at, name)
        for at, (name, modules) in enumerate(units(kind).items())
        for module in modules
    }


def maps(kind):
    """Maps by name; `True` for those that are not only tried at night."""
    tower, names = TOWERS[kind], [*units(kind)]
    whole = {"": 0}
    found = {
        # one entry for the text part: nothing inside of it has a hook
        "text apart": ({tower: 1, TEXT: 0, HEAD: 0}, True),
        "text apart, head alone": ({tower: 1, TEXT: 0, HEAD: 2}, True),
        "tower offloaded": ({tower: "cpu", TEXT: 0, HEAD: 0}, True),
        "text offloaded": ({tower: 0, TEXT: "cpu", HEAD: 0}, False),
        "head offloaded": ({tower: 1, TEXT: 0, HEAD: "cpu"}, False),
        "all but the head offloaded": ({tower: "cpu", TEXT: "cpu", HEAD: 0}, False),
        "head alone": (whole | {HEAD: 1}, False),
        "norm alone": (whole | {f"{TEXT}.norm": 1}, True),
        "norm offloaded": (whole | {f"{TEXT}.norm": "cpu"}, False),
        "embedding alone": (whole | {f"{TEXT}.embed_tokens": 1}, False),
        "tower alone": (whole | {tower: 1}, False),
    }
    for border, name in enumerate(names[1:], 1):
        found[f"from {name} on"] = where(kind, lambda at, _, b=border: int(at >= b)), False
    for name in names:
        found[f"only {name}"] = where(kind, lambda _, each, n=name: int(each == n)), False
        found[f"{name} offloaded"] = (
            where(kind, lambda _, each, n=name: "cpu" if each == n else 0),
            False,
        )
    return found


CASES = [
    pytest.param(
        kind, device_map, id=f"{kind}, {name}", marks=() if by_day else pytest.mark.nightly
    )
    for kind in TOWERS
    for name, (device_map, by_day) in maps(kind).items()
]


@pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids`")
@pytest.mark.parametrize(("kind", "device_map"), CASES)
def test_any_split_shows_what_one_device_shows(expected, kind, device_map):
    wanted = expected(kind)
    with VirtualGPUs("3x1GiB", available=True) as gpus:
        found = everything(Session().load(kind, device_map=device_map, dtype="float32"))
    assert gpus.problems == ()
    for name, values in wanted.items():
        assert np.allclose(found[name], values, atol=1e-4), name
