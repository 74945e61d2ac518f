"""Fonts of names on images: glyphs, never the boxes that stand for missing ones."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image, ImageFont

from glm4v_magic.calls.answer import ImageAnswer
from glm4v_magic.core.boxes import Box
from glm4v_magic.core.conversation import Usage
from glm4v_magic.images import to_image
from glm4v_magic.images.fonts import lettered

DEJAVU = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
WIDE = "\u2135 \N{CYRILLIC SMALL LETTER ZHE}"
NOWHERE = "\U000e0fff"


@pytest.fixture
def only(monkeypatch):
    """The only file of a font that the system has, of its own for each test."""
    load = ImageFont.truetype

    def set_to(file, size):
        def found(name=None, at=10, *rest, **more):
            if isinstance(name, str):
                if file is None or name != "DejaVuSans.ttf":
                    raise OSError("cannot open resource")
                return load(file, at, *rest, **more)
            return load(name, at, *rest, **more)  # Pillow's own font, from its memory

        monkeypatch.setattr(ImageFont, "truetype", found)
        return size

    return set_to


def test_pillows_own_font_is_used_where_it_is_enough(only):
    size = only(DEJAVU, 31)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ((name, font),) = lettered(["1 cat"], size)
    assert name == "1 cat"
    assert font.getname() == ImageFont.load_default(31).getname()


def test_a_font_of_the_system_is_used_where_it_is_not(only):
    size = only(DEJAVU, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (plain, own), (name, other) = lettered(["cat", WIDE], size)
    assert (plain, name) == ("cat", WIDE)
    assert other.getname()[0] == "DejaVu Sans" != own.getname()[0]


def test_what_no_font_has_is_escaped_and_said_once(only):
    size = only(None, 33)
    with pytest.warns(UserWarning, match=r"has U\+2135, U\+0436, U\+E0FFF: written as") as said:
        found = lettered([WIDE, f"a{NOWHERE}", "\u2135"], size)
    assert [name for name, _ in found] == ["\\u2135 \\u0436", "a\\U000e0fff", "\\u2135"]
    assert len(said) == 1


def test_a_font_such_as_noto_sans_cjk_is_used_once_it_is_installed(monkeypatch):
    """Found by the name of its file, where Pillow looks."""
    load, cat = ImageFont.truetype, "\N{CJK UNIFIED IDEOGRAPH-732B}"
    try:
        load("NotoSansCJK-Regular.ttc", 12)
    except OSError:
        pytest.skip("Noto Sans CJK is not here")
    installed = []

    def found(name=None, *rest, **more):
        if isinstance(name, str) and name not in installed:
            raise OSError("cannot open resource")
        return load(name, *rest, **more)

    monkeypatch.setattr(ImageFont, "truetype", found)
    with pytest.warns(UserWarning, match="A font such as Noto Sans CJK is used once it is insta"):
        assert lettered([cat], 37)[0][0] == "\\u732b"
    installed.append("NotoSansCJK-Regular.ttc")
    ((name, font),) = lettered([cat], 37)
    assert (name, font.getname()[0][:13]) == (cat, "Noto Sans CJK")


def test_an_answer_is_drawn_with_them_and_the_warning_is_of_the_users_line(only):
    only(None, 0)
    image = to_image(Image.new("RGB", (1530, 900)), "x.png")
    boxes = (Box("\u2135", 10, 200, 700, 800),)
    answer = ImageAnswer("", "", "m", Usage(1, 0, 1), "stop", images=(image,), boxes=boxes)
    with pytest.warns(UserWarning, match="U\\+2135") as said:
        escaped = answer.draw()
    assert said[0].filename == __file__
    only(DEJAVU, 0)
    taller = ImageAnswer(
        "", "", "m", Usage(1, 0, 1), "stop",
        images=(to_image(Image.new("RGB", (1890, 900)), "x.png"),), boxes=boxes,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taller.draw()
    assert escaped.getbbox() is not None
