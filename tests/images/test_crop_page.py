"""A rectangle of an image, and a page of a file."""

from __future__ import annotations

import io

import numpy as np
import pytest
from photos import BLUE, GREEN, RED, WHITE, colours, data_uri, encoded, error_of, png
from PIL import Image, ImageSequence

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.wording import narrowed
from glm4v_magic.images import Limits, SourcedImage, parse_crop, resolve_images, to_image, to_images

COLOURS = (RED, GREEN, BLUE)


def quarters(width=40, height=20) -> SourcedImage:
    """Red, green above blue, white."""
    image = Image.new("RGB", (2, 2))
    for place, colour in zip(((0, 0), (1, 0), (0, 1), (1, 1)), (*COLOURS, WHITE), strict=True):
        image.putpixel(place, tuple(bytes.fromhex(colour[1:])))
    return to_image(image.resize((width, height), Image.Resampling.NEAREST), "four.png")


def pages(kind: str, sizes=((8, 6), (10, 4), (4, 4))) -> bytes:
    """A file of three pages, each of one colour."""
    first, *rest = (
        Image.new("RGB", size, colour) for size, colour in zip(sizes, COLOURS, strict=True)
    )
    return encoded(first, kind, save_all=True, append_images=rest)


SAME = ((8, 6),) * 3


@pytest.mark.parametrize(
    ("text", "size", "middle"),
    [
        ("0,0,20,10", (20, 10), RED),
        ("20,10,20,10", (20, 10), WHITE),
        (" 20, 0 ,20,10 ", (20, 10), GREEN),
        ("0,0,1,1", (1, 1), RED),
        ("0.5,0,0.5,0.5", (20, 10), GREEN),
        ("0,.5,.5,.5", (20, 10), BLUE),
        ("0.5,0.5,0.01,0.05", (0, 1), None),
        ("0,0,1.0,1", (40, 20), WHITE),
        ("50%,50%,50%,50%", (20, 10), WHITE),
        ("0,50%,12.5%,10%", (5, 2), BLUE),
        ("２０，１０，20，１０", (20, 10), WHITE),
        ("0，５０％、12.5%，10％", (5, 2), BLUE),
    ],
)
def test_how_numbers_are_written_says_what_they_count(text, size, middle):
    crop = parse_crop(text)
    if middle is None:
        assert "holds no pixel of four.png" in error_of(crop.of, quarters())
        return
    cut = crop.of(quarters())
    assert cut.image.size == cut.original_size == size
    assert colours(cut) == [middle]
    assert cut.source == f"four.png, crop {narrowed(text).replace(' ', '')}"


@pytest.mark.parametrize(
    "text",
    ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,3,--4", "1;2;3;4", "1,2,3,", "1e1,0,1,1", "١,0,1,1"],
)
def test_what_is_not_four_numbers(text):
    with pytest.raises(OptionError, match=r"is not four numbers\. Write x,y,width,height"):
        parse_crop(text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("10,10,50%,50%", "has a % behind some numbers only"),
        ("0.5,0,20,10", "has a decimal point, so it is fractions, but 20 is above 1"),
        ("1.,0,0,1", "has no width"),
        ("1,2,3,-4", "has a number below 0"),
        ("-5%,0,5%,5%", "has a number below 0"),
        ("0,0,5,0", "has no height"),
        ("0,0,0%,5%", "has no width"),
    ],
)
def test_what_is_no_rectangle(text, part):
    with pytest.raises(OptionError, match=part):
        parse_crop(text)


@pytest.mark.parametrize(
    ("text", "reach"),
    [
        ("30,0,20,10", "x 50, y 10"),
        ("0,11,20,10", "x 20, y 21"),
        ("0.6,0,0.5,1", "x 44, y 20"),
        ("0,0,120%,50%", "x 48, y 10"),
    ],
)
def test_what_reaches_beyond_the_image(text, reach):
    message = error_of(parse_crop(text).of, quarters())
    assert message == (f"The crop {text} reaches to {reach} of four.png, which is 40 x 20 pixels.")


@pytest.mark.parametrize(
    ("kind", "sizes"), [("TIFF", None), ("GIF", SAME), ("PNG", SAME), ("WEBP", SAME)]
)
def test_pages_of_a_file(tmp_path, monkeypatch, kind, sizes):
    monkeypatch.chdir(tmp_path)
    content = pages(kind, sizes or ((8, 6), (10, 4), (4, 4)))
    (tmp_path / "many").write_bytes(content)
    for number, colour in enumerate(COLOURS, start=1):
        (photo,) = resolve_images(["many"], {}, page=number)
        (red, green, blue) = photo.image.getpixel((1, 1))
        seen = "#{:02x}{:02x}{:02x}".format(*(255 * (v > 200) for v in (red, green, blue)))
        assert (seen == colour) or (colour == GREEN and green > max(red, blue))
        assert photo.source == f"many, page {number}"
    assert to_image("many", "x").source == "many"
    assert error_of(resolve_images, ["many"], {}, page=4) == "many has 3 pages, and no page 4."
    assert error_of(resolve_images, ["many"], {}, page=0) == "many has 3 pages, and no page 0."


def test_pages_have_sizes_of_their_own():
    photo = to_image(pages("TIFF"), "scan.tif", page=2)
    assert photo.original_size == (10, 4)
    small = Limits(megapixels=40e-6)
    assert "megapixels" in error_of(to_image, pages("TIFF"), "scan.tif", limits=small, page=3)
    sizes = ((4, 4), (8, 6), (4, 4))
    assert to_image(pages("TIFF", sizes), "s", limits=small, page=3).original_size == (4, 4)
    assert "megapixels" in error_of(to_image, pages("TIFF", sizes), "s", limits=small, page=2)


@pytest.mark.parametrize(
    "value",
    [
        png(),
        io.BytesIO(png()),
        Image.new("RGB", (4, 4)),
        np.zeros((4, 4, 3), np.uint8),
        data_uri(png()),
    ],
    ids=["bytes", "stream", "PIL", "array", "URI"],
)
def test_one_page_is_page_one(value):
    assert to_image(value, "it", page=1).source.startswith(("it", "data: URI"))
    assert "has only 1 page, and no page 2." in error_of(to_image, value, "it", page=2)


def test_images_that_were_read_before_have_one_page():
    cat = to_image(png(), "cat")
    assert to_image(cat, "cat", page=1) is cat
    assert "only 1 page" in error_of(to_image, cat, "cat", page=2)


def test_pages_of_variables_and_lists():
    space = {"scan": pages("TIFF"), "both": [pages("GIF", SAME), pages("TIFF")]}
    assert colours(resolve_images(["scan"], space, page=3)[0]) == [BLUE]
    found = resolve_images(["both"], space, page=3)
    assert [photo.source for photo in found] == ["both[0], page 3", "both[1], page 3"]
    assert colours(resolve_images(["both[1]"], space, page=3)[0]) == [BLUE]
    assert [each.source for each in to_images([pages("TIFF")], "l", page=1)] == ["l[0], page 1"]


def test_an_image_of_the_user_stays_where_it_was():
    image = Image.open(io.BytesIO(pages("TIFF")))
    image.seek(1)
    assert colours(to_image(image, "scan")) == [GREEN]
    assert colours(to_image(image, "scan", page=3)) == [BLUE]
    assert image.tell() == 1
    assert len(list(ImageSequence.Iterator(image))) == 3


def test_a_damaged_page_is_one_line():
    content = pages("TIFF")
    assert "damaged" in error_of(to_image, content[: len(content) // 2], "scan.tif", page=3)


def test_a_crop_of_a_page():
    photo = parse_crop("0,0,50%,100%").of(to_image(pages("TIFF"), "scan.tif", page=2))
    assert photo.source == "scan.tif, page 2, crop 0,0,50%,100%"
    assert photo.original_size == (5, 4)


def test_a_crop_is_of_the_upright_image():
    image = quarters().image
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = to_image(encoded(image, "PNG", exif=exif), "phone.png")
    assert turned.original_size == (20, 40)
    assert colours(parse_crop("0,0,10,20").of(turned)) == [BLUE]
