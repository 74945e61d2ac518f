"""Maps of words on images by each method, and two answers side by side."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from glm4v_magic.core.errors import OptionError
from glm4v_magic.inspect.comparison import TokenPair
from glm4v_magic.session.session import Session

RED = 4  # The circle is red.


def drawn(colour):
    image = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(image).ellipse((20, 30, 100, 110), fill=colour)
    return image


@pytest.fixture(scope="module")
def session():
    return Session().load("demo")


@pytest.fixture(scope="module")
def red(session):
    return session.ask("What colour is the circle?", drawn("red")).inspect()


@pytest.fixture(scope="module")
def blue(session):
    return session.ask("What colour is the circle?", drawn("blue")).inspect()


def test_a_map_is_that_of_its_method_and_kept(red):
    attention = red.attention(RED).on_image().values.values
    of_a_head = red.on_image(RED, method="attention", layer=2, head=1)
    assert np.allclose(of_a_head.values.values, attention[1, 1])
    every = red.on_image(RED, method="attention").values
    assert np.allclose(every.values, attention.mean((0, 1)))
    assert every.dims == ("row", "column")
    own = red.on_image(RED, method="rollout").values.values
    assert np.allclose(own, red.rollout(RED).on_image().values.values)
    gradient = red.on_image(RED, method="gradient").values.values
    assert np.allclose(gradient, red.gradient(RED).on_image().values.values)
    assert np.allclose(red.on_image(RED).values.values, red.occlusion(RED).values.values, atol=1e-4)
    assert red.on_image(RED) is red.on_image(RED)
    assert red.on_image(0).values.values is not red.on_image(RED).values.values


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method": "occlusoin"}, "Did you mean occlusion"),
        ({"layer": 1}, "are those of attention"),
        ({"method": "attention", "layer": 9}, "no layer 9 with attention: there are 1 to 4"),
        ({"method": "attention", "head": True}, "no head True"),
        ({"image": 1}, "no image 1"),
        ({"image": "first"}, "no image 'first'"),
        ({"token": 7}, "no token 7"),
    ],
)
def test_what_there_is_not_is_named(red, wrong, said):
    with pytest.raises(OptionError, match=said):
        red.on_image(**{"token": RED, **wrong})


def test_two_images_side_by_side(red, blue):
    both = red.against(blue)
    assert both.pairs == tuple(TokenPair(at, at) for at in range(7))
    table = both.to_dataframe()
    assert list(table.text[3:5]) == [" is", " red"]
    assert list(table.other_text[3:5]) == [" is", " blue"]
    one, other = red.tokens[RED].token, blue.tokens[RED].token
    assert table.difference[RED] == pytest.approx(one.logprob - other.logprob)
    maps = both.maps(RED)
    assert np.array_equal(maps.difference.values, maps.one.values.values - maps.other.values.values)
    assert maps.difference.values.max() > 0.3  # red hangs more on its circle
    back = blue.against(red).maps(RED).difference.values
    assert np.array_equal(back, -maps.difference.values)
    assert maps.other.image.image.size == (300, 200)


def test_answers_of_different_lengths(session, red):
    short = session.ask("What colour is the circle?", drawn("red"), max_tokens=3).inspect()
    both = red.against(short)
    assert both.pairs[:3] == tuple(TokenPair(at, at) for at in range(3))
    assert both.pairs[3:] == tuple(TokenPair(at, None) for at in range(3, 7))
    maps = both.maps(RED)
    assert (maps.other, maps.difference) == (None, None)
    with pytest.raises(OptionError, match="no pair 7"):
        both.maps(7)
    with pytest.raises(OptionError, match="no image 1"):
        both.maps(0, 1)
    with pytest.raises(OptionError, match="inspection of another one, not 'red'"):
        red.against("red")
