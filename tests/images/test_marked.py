"""Boxes drawn on images and cut out of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from glm4v_magic.core.boxes import Box, Point
from glm4v_magic.images import SourcedImage
from glm4v_magic.images.marked import cut_out, marked


def grey(size=(300, 200), original=None):
    return SourcedImage(Image.new("RGB", size, "gray"), "grey.png", original or size)


def changed(image, marks):
    """The rectangle in which drawing has changed anything."""
    return ImageChops.difference(marked(image, marks), image.image.convert("RGB")).getbbox()


def test_a_box_is_drawn_where_it_is():
    image = grey()
    drawn = marked(image, [("1", Box("", 100, 80, 250, 150))])
    assert drawn.getpixel((100, 120)) == (0, 0, 0)
    assert drawn.getpixel((101, 120)) == (255, 255, 255)
    assert drawn.getpixel((175, 115)) == (128, 128, 128)  # what is in it stays
    left, upper, right, lower = changed(image, [("1", Box("", 100, 80, 250, 150))])
    assert (left, right, lower) == (100, 251, 151)
    assert upper < 80  # the name above it
    assert image.image.getpixel((100, 120)) == (128, 128, 128)  # not the image itself


def test_the_edges_of_a_box_on_those_of_the_image_show():
    drawn = marked(grey(), [("1", Box("", 0, 0, 300, 200))])
    for corner in ((0, 100), (299, 100), (150, 199)):
        assert drawn.getpixel(corner) == (0, 0, 0)


def test_boxes_of_the_original_are_drawn_on_a_smaller_copy():
    image = grey((300, 200), (3000, 2000))
    assert changed(image, [("1", Box("", 1000, 800, 2500, 1500))])[2:] == (251, 151)
    assert cut_out(image, Box("", 1000, 800, 2500, 1500)).size == (150, 70)


def test_a_point_is_drawn_where_it_is():
    drawn = marked(grey(), [("1", Point("", 150, 100))])
    assert drawn.getpixel((150, 100)) == (0, 0, 0)
    assert drawn.getpixel((150, 103)) == (255, 255, 255)


def test_a_box_is_cut_out():
    image = grey((4, 4))
    image.image.putpixel((2, 1), (255, 0, 0))
    cut = cut_out(image, Box("", 1.5, 1, 3, 2))
    assert cut.size == (2, 1)
    assert cut.getpixel((1, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "1"])
def test_images_of_any_mode_can_be_drawn_on(mode):
    image = SourcedImage(Image.new(mode, (20, 20)), "x", (20, 20))
    assert marked(image, [("1", Box("", 1, 1, 5, 5))]).mode == "RGB"


@pytest.mark.parametrize("name", ["猫", "\ud800", "é\u202e", "", "\n", "x" * 5000, "\0"])
def test_any_name_can_be_written(name):
    assert changed(grey(), [(name, Box("", 50, 50, 100, 100))])


SIDES = st.integers(1, 40)


@given(SIDES, SIDES, SIDES, SIDES, st.tuples(*[st.floats(0, 1)] * 4))
def test_any_box_can_be_drawn_and_cut_out(width, height, across, down, edges):
    image = grey((width, height), (across, down))
    x0, x1 = sorted(edges[:2])
    y0, y1 = sorted(edges[2:])
    box = Box("a", x0 * across, y0 * down, x1 * across, y1 * down)
    assert marked(image, [("1 a", box), ("2", Point("", x0 * across, y0 * down))]).size == (
        width,
        height,
    )
    cut = cut_out(image, box)
    assert 1 <= cut.width <= width
    assert 1 <= cut.height <= height
