"""Small images, and what the tests of images ask about them."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from glm4v_magic.core.errors import ImageError
from glm4v_magic.images import SourcedImage

RED, GREEN, BLUE, WHITE, BLACK = "#ff0000", "#00ff00", "#0000ff", "#ffffff", "#000000"


def colours(photo, *places):
    """Return the colours at `places` (x, y), or at the centre."""
    image = photo.image if isinstance(photo, SourcedImage) else photo
    assert image.mode == "RGB"
    places = places or ((image.width // 2, image.height // 2),)
    return ["#{:02x}{:02x}{:02x}".format(*image.getpixel(place)) for place in places]


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(colour=RED, size=(8, 6)):
    return encoded(Image.new("RGB", size, colour))


def data_uri(content):
    return "data:image/png;base64," + base64.b64encode(content).decode()


def fill(folder):
    """Put ``red.png`` into `folder`, and into ``photos`` below it two PNGs and a JPEG."""
    (folder / "red.png").write_bytes(png(RED))
    (folder / "photos").mkdir()
    for name, colour in (("a.png", GREEN), ("b.png", BLUE), ("c.jpg", WHITE)):
        Image.new("RGB", (4, 4), colour).save(folder / "photos" / name)


def error_of(function, *arguments, **options):
    with pytest.raises(ImageError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
