"""An image that came as a JPEG or PNG file keeps it, without what it tells beside its pixels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from glm4v_magic.images import to_image

SECRET = b"here it was taken"


def photo(mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    return Image.fromarray(noise).resize((61, 41)).convert(mode)


def file(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def exif(orientation=1):
    made = Image.Exif()
    made[0x0112] = orientation
    made[0x010E] = SECRET.decode()
    return made


def text():
    made = PngInfo()
    made.add_text("where", SECRET.decode())
    return made


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    ("content", "is_shorter"),
    [
        (file(photo(), "jpeg"), False),
        (file(photo(), "jpeg", progressive=True, quality=30), False),
        (file(photo(), "jpeg", restart_marker_rows=1, subsampling=0), False),
        (file(photo("L"), "jpeg"), False),
        (file(photo(), "jpeg", exif=exif(), comment=SECRET, icc_profile=PROFILE), True),
        (file(photo(), "jpeg") + SECRET, True),  # such as the clip of a "motion photo"
        (file(photo(), "jpeg").replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1), False),
        (file(photo(), "png"), False),
        (file(photo("L"), "png"), False),
        (file(photo(), "png", pnginfo=text(), exif=exif(), icc_profile=PROFILE), True),
        (file(photo(), "png") + SECRET, True),
    ],
)
def test_the_same_pixels_and_no_more(content, is_shorter):
    image = to_image(content, "photo")
    assert image.encoded
    assert (len(image.encoded) < len(content)) == (is_shorter or b"\xff\xff\xff\xdb" in content)
    assert SECRET not in image.encoded
    assert b"ICC" not in image.encoded
    with Image.open(io.BytesIO(image.encoded)) as again:
        assert again.convert("RGB").tobytes() == image.image.tobytes()
        assert not again.getexif()


def sixteen_bits():
    """A PNG file of 16 bits per channel, which every decoder makes 8 of in its own way."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = (b"\0" + bytes(range(24))) * 4
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "content",
    [
        file(photo(), "jpeg", exif=exif(6)),  # turned: not every server does
        file(photo("CMYK"), "jpeg"),
        file(photo("RGBA"), "png"),
        file(photo("P"), "png"),
        file(photo("LA"), "png"),
        file(photo(), "png", save_all=True, append_images=[photo("L").convert("RGB")]),
        sixteen_bits(),
        file(photo("1"), "png"),
        file(photo(), "webp"),
        file(photo(), "tiff"),
        file(photo(), "bmp"),
        file(photo("P"), "gif"),
    ],
)
def test_what_others_might_read_otherwise_is_not_kept(content):
    assert to_image(content, "photo").encoded == b""


def test_neither_is_what_came_as_pixels(tmp_path):
    assert to_image(photo(), "photo").encoded == b""
    path = tmp_path / "photo.jpg"
    path.write_bytes(file(photo(), "jpeg"))
    assert to_image(path, "photo").encoded == path.read_bytes()
