"""The strip of thumbnails."""

from __future__ import annotations

import base64
import io
import re

from PIL import Image

from glm4v_magic.core.model import EngineInfo
from glm4v_magic.images import SourcedImage
from glm4v_magic.notebook.render.answers.image import THUMBNAIL_SIDE, make_thumbnail, strip_bundle

INFO = EngineInfo(
    model="demo",
    notice="",
    max_images=1,
    image_size=(1120, 1120),
    visual_tokens=1602,
    context=8192,
    parameters=1,
    dtype="float32",
    devices=("cpu",),
)


def sourced(width=640, height=480, source="cat.png"):
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    return SourcedImage(image=image, source=source, original_size=(width, height))


def test_a_thumbnail_is_small_and_keeps_the_proportions():
    photo = sourced()
    thumbnail = make_thumbnail(photo, INFO)
    assert thumbnail.size == (THUMBNAIL_SIDE, THUMBNAIL_SIDE * 3 // 4)
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", thumbnail.data_uri).groups()
    with Image.open(io.BytesIO(base64.b64decode(data))) as decoded:
        assert decoded.format.lower() == kind
        assert decoded.size == thumbnail.size
    assert photo.image.size == (640, 480)


def test_a_drawing_becomes_png_and_a_photograph_jpeg():
    drawing = SourcedImage(Image.new("RGB", (300, 300), "red"), "red", (300, 300))
    noise = Image.effect_noise((300, 300), 80).convert("RGB")
    assert "image/png" in make_thumbnail(drawing, INFO).data_uri
    assert "image/jpeg" in make_thumbnail(SourcedImage(noise, "n", noise.size), INFO).data_uri


def test_a_small_image_is_not_enlarged():
    assert make_thumbnail(sourced(20, 10), INFO).size == (20, 10)


def test_caption_tells_both_sizes_and_the_tokens():
    assert make_thumbnail(sourced(), INFO).caption == (
        "cat.png, 640 x 480 px · the model sees 1120 x 1120 px · 1,602 visual tokens"
    )


def test_the_strip_keeps_the_order_and_has_alt_text():
    thumbnails = [make_thumbnail(sourced(source=name), INFO) for name in ("b.png", "a.png")]
    bundle = strip_bundle(thumbnails)
    assert re.findall(r'alt="(.*?)"', bundle["text/html"]) == [
        "b.png, 640 x 480 px",
        "a.png, 640 x 480 px",
    ]
    assert [line[:5] for line in bundle["text/plain"].splitlines()] == ["b.png", "a.png"]


def test_a_name_cannot_become_markup():
    html = strip_bundle([make_thumbnail(sourced(source='"><script>\x1b[2J'), INFO)])["text/html"]
    assert "<script>" not in html
    assert '"">' not in html
    assert "\x1b" not in html
