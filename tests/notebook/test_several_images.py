"""Several images in one cell and over turns: named, counted, and shown as the model saw them."""

from __future__ import annotations

import pytest
import tiny_native
from IPython.utils.capture import capture_output
from PIL import Image

from glm4v_magic.core.errors import ConversationError, ImageError
from glm4v_magic.images import Limits, count_images, resolve_images, to_images
from glm4v_magic.session.session import Session

SMALL = "--max-tokens 2 --temperature 0"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A working folder with photos whose numbers sort otherwise as text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in (10, 9, 1):
        tiny_native.noise(60 + number, 60, number).save(tmp_path / f"photos/p{number}.png")
    tiny_native.noise(300, 200).save(tmp_path / "a.png")
    return tmp_path


def test_a_pattern_is_sorted_by_its_numbers(photos):
    found = resolve_images(["a.png", "photos/*.png"], {})
    names = [each.source for each in found]
    assert names == ["a.png", "photos/p1.png", "photos/p9.png", "photos/p10.png"]


@pytest.mark.parametrize("words", [["photos/*.png"], ["many"], ["a.png", "many[:]", "many"]])
def test_too_many_are_refused_before_any_is_decoded(photos, monkeypatch, words):
    (photos / "photos/p2.png").write_bytes(b"not an image")
    names = {"many": ["missing.png"] * 5}
    with pytest.raises(ImageError, match=r"\d images are more than the 3 that one question") as e:
        resolve_images(words, names, limits=Limits(images=3))
    assert "\n" not in str(e.value)


def test_a_list_of_500_is_refused():
    with pytest.raises(ImageError, match="500 images are more than the 100") as error:
        to_images([object()] * 500, "images")
    assert "session.map" in str(error.value)
    with pytest.raises(ImageError, match="500 images"):
        Session().ask("What is it?", images=[object()] * 500)


def test_what_is_counted_is_not_read(photos):
    names = {"one": object(), "three": ["a", "b", "c", 4], "f": lambda: 1 / 0}
    words = ["one", "three", "photos/*.png", "a.png", "f()", "https://x.invalid/a.png", "gone.*"]
    assert count_images(words, names) == 1 + 3 + 3 + 1 + 1 + 1 + 0


def test_a_name_that_is_missing_is_said_before_the_number_of_images(run, shell, photos):
    run("%glm4v load demo")
    (photos / "a.png").rename(photos / "my photo.png")
    said = run("%%glm4v my photo.png\nWhat is it?", fails=True)
    assert 'A name with spaces goes in quotes: "my photo.png".' in said


def test_more_than_the_model_takes_are_refused_before_any_is_decoded(run, shell, photos):
    run("%glm4v load demo")
    (photos / "photos/p1.png").write_bytes(b"not an image")
    said = run("%%glm4v photos/*.png\nWhat is it?", fails=True)
    assert "takes one image in a conversation, and this one has 3" in said
    session = Session().load("demo")
    with pytest.raises(ConversationError, match="and this one has 2"):
        session.ask("What is it?", images=["missing.png", "missing.png"])


def test_each_is_named_with_what_the_model_saw(run, shell, photos, native):
    run(f"%glm4v load {native('glm4v')}")
    with capture_output() as captured:
        shell.run_cell(f"%%glm4v a.png photos/*.png {SMALL} --chat c\nWhat do they show?")
    (strip,) = [each.data for each in captured.outputs if "a.png" in each.data["text/plain"]]
    lines = strip["text/plain"].splitlines()
    assert lines[0] == "a.png, 300 x 200 px · the model sees 252 x 168 px · 54 visual tokens"
    assert [line.split(",")[0] for line in lines[1:4]] == [
        f"photos/p{number}.png" for number in (1, 9, 10)
    ]
    seen = shell.user_ns["_"].seen
    for line, each in zip(lines, seen, strict=True):
        width, height = each.image_size
        assert f"sees {width} x {height} px · {each.visual_tokens} visual tokens" in line
    assert len({each.image_size for each in seen}) > 1
    assert strip["text/html"].count("<figure") == 4
    assert "flex-wrap:wrap" in strip["text/html"]
    said = run(f"%%glm4v photos/p1.png {SMALL} --continue\nAnd this?")
    assert said.count("a.png, 300 x 200 px · the model sees 252 x 168 px") == 1
    assert said.count("photos/p1.png, 61 x 60 px · the model sees") == 2


@pytest.mark.parametrize("kind", ["glm4v", "glm46v"])
def test_a_new_image_in_a_follow_up_is_answered_as_if_nothing_was_kept(native, kind):
    a, b, c = (tiny_native.image(90 + 40 * seed, 120, seed) for seed in range(3))
    options = {"temperature": 0, "max_tokens": 6, "repetition_penalty": 1.0}

    def answers(keep):
        session = Session().load(str(native(kind)), keep=keep)
        first = session.ask("Compare.", images=[a, b], chat="c", **options)
        second = session.ask("And this?", images=[c, a], chat="c", **options)
        kept = session.status().kept
        session.unload()
        return first, second, kept

    first, second, kept = answers(0.5)
    plain_first, plain_second, _ = answers(0)
    assert (first.text, second.text) == (plain_first.text, plain_second.text)
    assert second.seen[:2] == first.seen
    assert second.seen[3] == first.seen[0]
    assert kept.images == 3


@pytest.mark.parametrize("words", [["many"], ["photos/*.png"], ["a.png", "a.png"]])
def test_images_that_take_too_much_memory_together_are_refused(photos, monkeypatch, words):
    limits = Limits(total_megapixels=0.01 if "a.png" not in words else 0.1)
    names = {"many": [Image.new("RGB", (90, 90)), Image.new("RGB", (90, 90)), "missing.png"]}
    with pytest.raises(ImageError, match="megapixels together"):
        resolve_images(words, names, limits=limits)


def test_more_than_the_context_can_hold_are_refused_before_any_is_read(run, native, shell):
    run(f"%glm4v load {native('glm46v')}")  # 4,096 tokens, of which an image has at least 8
    shell.user_ns["many"] = ["gone.png"] * 513
    said = run("%%glm4v many\nWhat?", fails=True)
    assert "513 images take at least 4,104 tokens" in said
    assert "holds 4,096 with the answer" in said
    shell.user_ns["many"].pop()
    assert "512 images are more than the 100" in run("%%glm4v many\nWhat?", fails=True)
