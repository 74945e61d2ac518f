"""Boxes and points found in answers, whatever stands in them."""

from __future__ import annotations

import json
import math
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glm4v_magic.calls.boxes import Frames, marks, marks_of
from glm4v_magic.core.boxes import BOX_TAGS, Box, Point
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.video import SourcedVideo

OPEN, CLOSE = BOX_TAGS
SIZE = (2000, 500)  # so that a thousandth is 2 pixels across and half a pixel down


def tagged(text):
    return f"It is {OPEN}{text}{CLOSE}."


@pytest.mark.parametrize(
    "text",
    ["[[100,200,300,400]]", "[100, 200, 300, 400]", "100, 200, 300, 400", " 100 200\n300 400 ",
     "[[100.0, 2e2, 300, 400]]"],
)  # fmt: skip
def test_four_numbers_between_the_tags_are_a_box(text):
    assert marks(tagged(text), [SIZE]).boxes == (Box("", 200, 100, 600, 200),)


@pytest.mark.parametrize("text", ["42", "[1, 2, 3]", "1, 2", "(100, 200)", "A", "", "[]", "1e999"])
def test_other_answers_between_the_tags_are_no_boxes(text):
    found = marks(tagged(text), [SIZE])
    assert (found.boxes, found.points, found.fault) == ((), (), "")


def test_several_boxes_and_points_keep_their_order():
    found = marks(tagged("[[0,0,10,10],[10,0,20,10]] and [[500,500]], [1, 2]"), [SIZE])
    assert [box.x0 for box in found.boxes] == [0, 20]
    assert found.points == (Point("", 1000, 250), Point("", 2, 1))
    assert found.all == (*found.boxes, *found.points)


def test_a_box_that_was_cut_off_is_whole_or_none():
    assert marks(f"{OPEN}[[1,2,3,4],[5,6", [SIZE]).boxes == (Box("", 2, 1, 6, 2),)


@pytest.mark.parametrize(
    "given",
    [
        '{"bbox_2d": [100, 200, 300, 400], "label": "a {cat}"}',
        '```json\n[{"label": "a {cat}", "bbox_2d": [100, 200, 300, 400]}]\n```',
        '{"found": [{"name": "a {cat}", "bbox": [[100, 200, 300, 400]], "sure": true}]}',
        OPEN + '[{"bbox_2d": [100,200,300,400], "label": "a\\n{cat}"}]' + CLOSE,
    ],
)
@pytest.mark.parametrize("lists", [True, False])
def test_json_has_labels(given, lists):
    assert marks(given, [SIZE], lists=lists).boxes == (Box("a {cat}", 200, 100, 600, 200),)


def test_points_of_json():
    said = (
        '[{"point_2d": [500, 500], "label": 7}, {"point": [[0, 0], [1000, 1000]], "label": null}]'
    )
    expected = (Point("7", 1000, 250), Point("", 0, 0), Point("", 2000, 500))
    assert marks(said, [SIZE]).points == expected


@pytest.mark.parametrize(
    "said",
    ['{"bbox_2d": [1, 2, 3], "label": "x"}', '{"bbox_2d": [1, 2, true, 4]}', '{"bbox_2d": "1"}',
     '{"bbox_2d": {}}', '{"bbox_2d": [1,2,3,4}', '{"a": [1,2,3,4]}',
     '{"bbox_2d": ' + "[" * 1500 + "}"],
)  # fmt: skip
def test_json_that_is_no_box(said):
    assert marks(said, [SIZE]).all == ()


def test_prose_has_lists_of_lists_that_can_be_boxes():
    boxes = (Box("", 200, 100, 600, 200), Box("", 2, 1, 6, 2))
    assert marks("At [[100,200,300,400], [1,2,3,4]].", [SIZE]).boxes == boxes
    assert marks("At [[100,200,300,400]].", [SIZE], lists=False).boxes == ()
    for other in ("[100,200,300,400]", "[[1,0],[0,1]]", "[[4,3,2,1]]", "[[1,2,3,4],[1,2,3,2000]]"):
        found = marks(f"The matrix {other}", [SIZE])
        assert (found.boxes, found.points, found.fault) == ((), (), "")


def test_without_an_image_there_is_nothing_to_mark():
    assert marks(tagged("[[100,200,300,400]]"), []).all == ()


@pytest.mark.parametrize("sizes", [[], [SIZE]])
def test_boxes_in_a_video_are_of_no_known_frame(sizes):
    found = marks(tagged("[[1,2,3,4]]") + " [[500,500]]", sizes, frames=SEEN)
    assert found.all == ()
    assert found.fault == "Boxes and points: 1 in a video, of a frame that is not told, left out."


def test_beside_a_video_an_image_is_named():
    said = "Image 1: " + tagged("[[100,200,300,400]]")
    assert marks(said, [SIZE], frames=SEEN).boxes == marks(said, [SIZE]).boxes != ()


CLIP = (100, 200)
SEEN = Frames((0.0, 0.5, 1.0, 1.5), CLIP)


@pytest.mark.parametrize(
    ("said", "frames"),
    [
        ('{"bbox_2d": [100, 200, 300, 400], "frame": 2}', [2]),
        ('{"bbox_2d": [100, 200, 300, 400], "time": 0.9}', [2]),
        ('{"bbox_2d": [100, 200, 300, 400], "timestamp": "1.5 seconds"}', [3]),
        ('{"0": [{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6, 7, 8]}], "3": [{"bbox_2d": '
         '[1, 2, 3, 4]}]}', [0, 0, 3]),
        (f"0.5 seconds: {tagged('[[100,200,300,400]]')}\n1 s: [[1, 2, 3, 4]]", [1, 2]),
        (f"At 99 s {tagged('[[500,500]]')}", [3]),
        ('{"bbox_2d": [100, 200, 300, 400], "frame": 4}', []),
        ('{"bbox_2d": [100, 200, 300, 400], "frame": true}', []),
        ('{"bbox_2d": [100, 200, 300, 400], "time": "soon"}', []),
        ('{"bbox_2d": [100, 200, 300, 400], "time": NaN}', []),
    ],
)  # fmt: skip
def test_a_box_is_on_the_frame_that_is_named(said, frames):
    found = marks(said, [], frames=SEEN).all
    assert [each.frame for each in found] == frames
    if '"frame": 2' in said:
        assert found == (Box("", 10, 40, 30, 80, frame=2),)


def test_frames_of_several_videos_are_not_told_apart():
    two = (SourcedVideo("a.mp4", CLIP, 2, 1.0, lambda *_: iter(())),) * 2
    assert Frames.of(two) == Frames((), CLIP)
    assert Frames.of(()) is None
    assert marks('{"bbox_2d": [1, 2, 3, 4], "frame": 0}', [], frames=Frames.of(two)).all == ()


def test_what_is_wrong_is_put_right_or_left_out_and_said():
    numbers = "[[300,400,100,200], [-5,0,10,1200], [1100,0,1200,10], [5,5,5,9], [nan,1,2,inf]]"
    found = marks(tagged(numbers), [SIZE])
    assert found.boxes == (Box("", 200, 100, 600, 200), Box("", 0, 0, 20, 500))
    assert found.fault == (
        "Boxes and points: 1 turned round, 1 cut at the edge of the image, "
        "3 outside of the image or empty left out."
    )
    assert marks(tagged("[1001, 5]"), [SIZE]).fault.endswith(
        "1 outside of the image or empty left out."
    )
    huge = f'{{"bbox_2d": [1, 1, 1{"0" * 400}, 1e999]}}'
    assert marks(huge, [SIZE]).all == ()
    for digits in ("9" * 100, "9" * 5000, f"1.{'0' * 30}", "1e99999", "-" + "9" * 30):
        odd = marks(tagged(f"[[{digits}, 2000, 3000, 2000], [1, 2, 3, 4]]"), [SIZE])
        assert odd.boxes == (Box("", 2, 1, 6, 2),)
        assert "1 outside of the image" in odd.fault
    assert marks(tagged("[[1,2,3,4]]"), [SIZE]).fault == ""


@pytest.mark.parametrize(
    "written",
    [
        tagged("[[0.1, 0.2, 0.5, 1.0]]"),
        tagged("0.1 0.2 0.5 1"),
        '{"bbox_2d": [0.1, 0.2, 0.5, 1], "label": ""}',
        "It is at [[0.1, 0.2, 0.5, 1]].",
    ],
)
def test_fractions_of_the_image_are_taken_for_such_and_it_is_said(written):
    found = marks(written, [(200, 100)])
    assert found.boxes == (Box("", 20, 20, 100, 100),)
    assert found.fault == ("Boxes and points: 1 taken for fractions from 0 to 1, not thousandths.")


def test_points_may_be_fractions_and_thousandths_stay_what_they_are():
    found = marks(tagged("[0.25, 0.5]"), [(200, 100)])
    assert found.points == (Point("", 50, 50),)
    for thousandths in ("[[0, 0, 1, 1]]", "[[0.5, 0.5, 1.5, 2]]", "[[0.1, 0.2, 0.5, 400]]"):
        found = marks(tagged(thousandths), [(1000, 1000)])
        assert "fractions" not in found.fault
        assert found.boxes[0].x1 < 2


def test_of_many_boxes_the_first_are_kept():
    found = marks(tagged(f"[{', '.join(['[1,2,3,4]'] * 1200)}]"), [SIZE])
    assert len(found.boxes) == 1000
    assert "200 more than 1,000 left out" in found.fault


@pytest.mark.parametrize(
    ("said", "image"),
    [
        (tagged("[[1,2,3,4]]"), 2),
        (f"Image 1: {OPEN}[[1,2,3,4]]{CLOSE}", 0),
        (f"In image 2, not in Image #1: {OPEN}[[1,2,3,4]]{CLOSE}", 0),
        (f"Image 1 is empty.\nHere: {OPEN}[[1,2,3,4]]{CLOSE}", 2),
        (f"image 4: {OPEN}[[1,2,3,4]]{CLOSE}", 2),
        (f"image 0: {OPEN}[[1,2,3,4]]{CLOSE}", 2),
        ('{"bbox_2d": [1,2,3,4], "image": 2}', 1),
        ('{"bbox_2d": [1,2,3,4], "image": 9}', 2),
        ('{"bbox_2d": [1,2,3,4], "image": true}', 2),
        ('{"bbox_2d": [1,2,3,4], "image": "1"}', 2),
        ("In the first image: [[1,2,3,4]]", 0),
        ("First photo: a cat. The second picture: [[1,2,3,4]]", 1),
        ("the fourth image [[1,2,3,4]]", 2),
        ("图1: [[1,2,3,4]]", 0),
        ("图片 2：[[1,2,3,4]]", 1),
        ("第二张图中的猫 [[1,2,3,4]]", 1),
        ("第1张图片: [[1,2,3,4]]", 0),
        ("第一次 [[1,2,3,4]]", 2),
    ],
)
def test_the_image_that_is_named_or_the_last(said, image):
    (box,) = marks(said, [(1000, 1000), (1000, 1000), (1000, 1000)]).boxes
    assert box.image == image


@pytest.mark.parametrize(
    "said",
    ['{"bbox_2d": [100, 200, 300, 400], "image": 99}', "Image 3: " + tagged("[[100,200,300,400]]")],
)
def test_an_image_that_is_not_there_is_told(said):
    found = marks(said, [SIZE, SIZE])
    assert [box.image for box in found.boxes] == [1]
    told = "1 of an image that is not there, and shown on the last"
    assert found.fault == f"Boxes and points: {told}."


def test_a_box_is_in_pixels_of_its_own_image():
    said = f"Image 1: {OPEN}[[0,0,1000,1000]]{CLOSE}\nImage 2: {OPEN}[[0,0,1000,1000]]{CLOSE}"
    boxes = marks(said, [(10, 20), (3000, 4000)]).boxes
    assert boxes == (Box("", 0, 0, 10, 20, 0), Box("", 0, 0, 3000, 4000, 1))


def test_marks_of_a_turn_are_on_the_images_before_it(shapes):
    talk = Conversation((
        Message("user", "Where?", (shapes,)),
        Message("assistant", "[[1,2,3,4]]", written=tagged("[[0,0,500,500]]")),
        Message("user", tagged("[[0,0,1,1]]"), (shapes,)),
        Message("assistant", "[[0,0,1000,1000]]"),
    ))  # fmt: skip
    width, height = shapes.original_size
    assert marks_of(talk, 1).boxes == (Box("", 0, 0, width / 2, height / 2),)
    assert marks_of(talk, 2).all == ()
    assert marks_of(talk, 3).boxes == (Box("", 0, 0, width, height, 1),)


@pytest.fixture
def shapes():
    from PIL import Image

    from glm4v_magic.images import SourcedImage

    return SourcedImage(Image.new("RGB", (30, 20)), "shapes.png", (300, 200))


NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30), st.integers(0, 1000), st.floats(), st.floats(0, 1000)
)
ANYTHING = st.one_of(
    st.text(), st.sampled_from(BOX_TAGS), st.lists(NUMBERS, min_size=2, max_size=5).map(str),
    st.lists(st.lists(NUMBERS, min_size=4, max_size=4)).map(str),
    st.sampled_from(["{", "}", "[", "]", '"', "\\", ",", " image 2 ", '{"bbox_2d": [']),
    st.fixed_dictionaries(
        {"bbox_2d": st.lists(NUMBERS, min_size=4, max_size=4)},
        optional={"label": st.text(st.characters()), "image": NUMBERS},
    ).map(json.dumps),
)  # fmt: skip


@given(st.lists(ANYTHING, max_size=12).map("".join), st.booleans())
@example(f'{OPEN}{{"bbox_2d": [1, 2, 3, 4], "label": "\\ud800\\u0000\\ufffe"}}', True)
@example(f"{OPEN}[0, 0, 1E-322, 1]", False)  # empty once it is in pixels
def test_whatever_is_said_boxes_lie_on_their_images(said, lists):
    sizes = [(100, 7), (3, 4000)]
    found = marks(said, sizes, lists=lists)
    for box in found.boxes:
        width, height = sizes[box.image]
        assert 0 <= box.x0 < box.x1 <= width * (1 + 1e-9)
        assert 0 <= box.y0 < box.y1 <= height * (1 + 1e-9)
    for point in found.points:
        width, height = sizes[point.image]
        assert math.isfinite(point.x + point.y)
        assert 0 <= point.x <= width
        assert 0 <= point.y <= height
    for each in found.all:
        assert len(each.label) <= 203
        assert "\n" not in each.label
        each.label.encode()
    assert "\n" not in found.fault


@pytest.mark.parametrize(
    "repeated",
    ["[", "{", '{"', "[[1,2,3,4],", "[1,", OPEN, '{"bbox_2d":[', "1 ", "\\", "[[", "1,\n"],
)
def test_long_answers_take_no_time(repeated):
    said = OPEN + repeated * (200_000 // len(repeated))
    begin = time.process_time()
    marks(said, [SIZE])
    marks(said.removeprefix(OPEN), [SIZE])
    assert time.process_time() - begin < 20
