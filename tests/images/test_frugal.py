"""Reading an image takes little memory, and gives what Pillow alone would give."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
from photos import RED, colours, encoded, error_of
from PIL import Image, ImageChops

from glm4v_magic.images import Limits, frugal, libwebp, openjpeg, to_image
from glm4v_magic.images.avif import layers
from glm4v_magic.images.bundled import library
from glm4v_magic.images.frugal import areas_of, copy_plain, reduce

PEAKS = Path(__file__).parents[1] / "decode_peaks.py"
CHEAP = (
    "clear PNG", "16-bit PNG", "palette PNG", "CMYK JPEG", "TIFF of floats", "clear GIF", "BMP",
    "16-bit PGM", "clear AVIF", "clear moving AVIF", "multiplied AVIF", "clear WebP",
    "lossless WebP", "clear lossless WebP", "animated WebP", "JPEG 2000", "tiled JPEG 2000",
)  # fmt: skip
SMALL = ("JPEG 2000", "clear JPEG 2000", "grey JPEG 2000", "tiled JPEG 2000")
WITH_AVIF = pytest.mark.skipif(
    importlib.util.find_spec("PIL._avif") is None, reason="Pillow has none before 11.3"
)
KINDS = ["WEBP", pytest.param("AVIF", marks=WITH_AVIF)]
MOVING = {"animated WebP": 0.1}
"""Strips, and what the interpreter takes meanwhile, beside what is 4 times the pixels already."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss counts KiB in Linux")
@pytest.mark.parametrize(
    ("side", "kinds"),
    [(3000, CHEAP), (1500, SMALL), pytest.param(5200, (), marks=pytest.mark.nightly)],
)
def test_reading_takes_at_most_four_times_the_pixels(side, kinds):
    done = subprocess.run(
        [sys.executable, PEAKS, str(side), *kinds], capture_output=True, text=True, check=True
    )
    peaks = json.loads(done.stdout)
    assert set(kinds or CHEAP) <= peaks.keys()
    little = frugal.LITTLE / (3 * side**2)
    most = {kind: max(4 + MOVING.get(kind, 0), little) for kind in peaks}
    assert {kind: peak for kind, peak in peaks.items() if peak > most[kind]} == {}


def gradients(mode, size=(40, 30)):
    first = Image.radial_gradient("L").resize(size)
    turned = [first, first.rotate(180), first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    turned.append(Image.linear_gradient("L").resize(size))
    channels = turned[-2:] if mode == "LA" else turned[: len(mode)]
    return Image.merge(mode, channels)


def assert_read_as_by_pillow(content, page=None, within=1):
    alone = Image.open(io.BytesIO(content))
    alone.seek((page or 1) - 1)
    white = Image.new("RGBA", alone.size, "white")
    white.alpha_composite(alone.convert("RGBA"))
    read = np.asarray(to_image(content, "x", page=page).image, int)
    assert abs(read - np.asarray(white.convert("RGB"), int)).max() <= within
    assert len(np.unique(read)) > 50


def assert_areas_are_as_by_pillow(path):
    alone = Image.open(io.BytesIO(path.read_bytes()))
    width, height = alone.size
    for stream in (path.open("rb"), io.BytesIO(path.read_bytes())):
        with stream:
            areas = areas_of(Image.open(stream), stream, little=0)
            assert areas is not None
            assert (areas.mode, areas.size) == (alone.mode, alone.size)
            for box in (
                (0, 0, width, min(height, 140)),
                (width // 3, height // 4, width, height),
                (0, height - 1, 1, height),
                (0, 0, width, height),
            ):
                assert ImageChops.difference(areas.crop(box), alone.crop(box)).getbbox() is None
            areas.close()
    assert max(most for _, most in alone.getextrema()) > 100


def _u24(value):
    return struct.pack("<I", value)[:3]


class TestFrugal:
    """What is read in less memory, or faster, is what Pillow reads."""

    @pytest.mark.parametrize("multiplied", [False, True])
    @pytest.mark.parametrize("page", [None, 1, 2])
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_frames(self, kind, mode, page, multiplied):
        image = gradients(mode)
        options = {"alpha_premultiplied": True} if multiplied else {}
        if page:
            options |= {"save_all": True, "append_images": [image.rotate(90)]}
        content = encoded(image, kind, **options)
        # Pillow divides colours by their transparency, which is multiplied with them again.
        assert_read_as_by_pillow(content, page, within=2 if multiplied else 1)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_lossless_webp(self, mode):
        assert_read_as_by_pillow(encoded(gradients(mode), "WEBP", lossless=True), within=0)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_a_single_frame_of_what_moves_may_lie_within_it(self, mode):
        content = encoded(gradients(mode), "WEBP", lossless=True)
        frame = b"ANMF" + struct.pack("<I", 16 + len(content) - 12)
        frame += _u24(5) + _u24(10) + _u24(39) + _u24(29) + _u24(100) + b"\2" + content[12:]
        flags = 0x02 | (0x10 if mode == "RGBA" else 0)
        canvas = b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + _u24(99) + _u24(79)
        moving = b"WEBP" + canvas + b"ANIM" + struct.pack("<IIH", 6, 0, 0) + frame
        assert_read_as_by_pillow(b"RIFF" + struct.pack("<I", len(moving)) + moving, within=0)

    @pytest.mark.parametrize("kind", KINDS)
    def test_with_a_pillow_whose_libraries_cannot_be_reached(self, kind, monkeypatch):
        monkeypatch.setattr(libwebp, "is_still", lambda head: False)
        assert_read_as_by_pillow(encoded(gradients("RGBA"), kind))

    @WITH_AVIF
    def test_avif_that_cannot_be_taken_apart(self):
        image = gradients("RGBA")
        content = encoded(image, "AVIF", save_all=True, append_images=[image.rotate(90)])
        assert layers(io.BytesIO(content)) is not None
        odd = content.replace(b"auxl", b"free", 1)
        assert layers(io.BytesIO(odd)) is None
        assert_read_as_by_pillow(odd, 2)
        image, limits = Image.new("RGBA", (1960, 1960)), Limits(megapixels=4)
        content = encoded(image, "AVIF", save_all=True, append_images=[image], speed=10)
        assert to_image(content, "x", limits=limits).original_size == (1960, 1960)
        said = error_of(to_image, content.replace(b"auxl", b"free", 1), "x", limits=limits)
        assert "of such files of AVIF" in said
        assert "at most 2.67 are read" in said

    @WITH_AVIF
    @pytest.mark.parametrize("at", range(0, 400, 7))
    def test_boxes_of_avif_that_are_damaged(self, at):
        content = bytearray(encoded(gradients("RGBA"), "AVIF"))
        content[at : at + 4] = b"\xff\xff\xff\xf1"
        for cut in (content, content[: at + 4]):
            layers(io.BytesIO(cut))  # raises nothing

    @pytest.mark.parametrize("kind", KINDS)
    def test_they_are_upright(self, kind):
        image, turned = Image.new("RGB", (40, 20), RED), Image.Exif()
        turned[0x0112] = 6
        assert to_image(encoded(image, kind, exif=turned), "x").original_size == (20, 40)

    @pytest.mark.parametrize("kind", [*KINDS, "DDS"])
    def test_cut_short(self, kind):
        content = encoded(Image.radial_gradient("L").convert("RGBA"), kind)
        assert "x " in error_of(to_image, content[: len(content) // 2], "x")

    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_dds(self, mode):
        content = encoded(Image.new(mode, (9, 5), (1, 2, 3, 255)[: len(mode)]), "DDS")
        opened = Image.open(io.BytesIO(content))
        copy_plain(opened)
        assert opened.tile[0][0] == "raw"  # Pillow's own takes a second for each megapixel
        assert colours(to_image(content, "x"), (0, 0), (8, 4)) == ["#010203", "#010203"]


class TestJpeg2000:
    """What is decoded in areas is what Pillow decodes as a whole."""

    @pytest.mark.parametrize("size", [(300, 200), (1400, 90), (90, 1400)])
    @pytest.mark.parametrize(
        ("mode", "options"),
        [
            ("RGB", {}),
            ("RGBA", {}),
            ("LA", {}),
            ("RGB", {"irreversible": True, "quality_layers": [20]}),
            ("RGB", {"no_jp2": True, "num_resolutions": 1}),
            ("RGB", {"codeblock_size": (16, 256)}),
        ],
    )
    def test_areas(self, mode, options, size, tmp_path):
        path = tmp_path / "x.jp2"
        path.write_bytes(encoded(gradients(mode, size), "JPEG2000", **options))
        assert_areas_are_as_by_pillow(path)

    @pytest.mark.parametrize(
        ("size", "tile"),
        [((300, 200), (256, 150)), ((300, 200), (1024, 128)), ((90, 1400), (1024, 1024))],
    )
    def test_areas_across_tiles(self, size, tile, tmp_path):
        path = tmp_path / "x.jp2"
        path.write_bytes(encoded(gradients("RGBA", size), "JPEG2000", tile_size=tile))
        assert_areas_are_as_by_pillow(path)

    def test_an_image_that_lies_elsewhere(self, tmp_path):
        content = bytearray(encoded(gradients("RGB", (200, 180)), "JPEG2000", no_jp2=True))
        sizes = content.index(b"\xff\x51") + 6
        width, height, *_ = struct.unpack_from(">6I", content, sizes)
        assert (width, height) == (200, 180)
        right, down = 1 << 13, 1 << 12
        moved = (width + right, height + down, right, down, width, height, right, down)
        struct.pack_into(">8I", content, sizes, *moved)
        path = tmp_path / "x.j2k"
        path.write_bytes(content)
        assert_areas_are_as_by_pillow(path)

    @pytest.mark.parametrize("deep", [b"\x0b", b"\x0f", b"\x87", b"\x04"])
    def test_depths_other_than_8_bits(self, deep, tmp_path):
        content = encoded(gradients("RGB", (200, 180)), "JPEG2000", no_jp2=True)
        sizes = content.index(b"\xff\x51") + 40
        assert content[sizes : sizes + 9] == b"\x07\1\1" * 3
        path = tmp_path / "x.j2k"
        path.write_bytes(content[:sizes] + (deep + b"\1\1") * 3 + content[sizes + 9 :])
        assert_areas_are_as_by_pillow(path)

    def test_the_brightest_value_is_not_rounded_to_black(self):
        values = np.array([0, 127, 128, 65535], np.int32)
        assert openjpeg.upper_bits(values, 16, is_signed=False).tolist() == [0, 0, 1, 255]

    @pytest.mark.parametrize(("mode", "space"), [("RGB", 18), ("RGBA", 12)])
    def test_other_colours(self, mode, space, tmp_path):
        content = encoded(gradients(mode, (200, 180)), "JPEG2000")
        srgb = b"colr\1\0\0" + struct.pack(">I", 16)
        assert srgb in content
        path = tmp_path / "x.jp2"
        path.write_bytes(content.replace(srgb, srgb[:-4] + struct.pack(">I", space)))
        if space == 12 and Image.open(io.BytesIO(path.read_bytes())).mode != "CMYK":
            pytest.skip("this Pillow takes inks for colours")
        assert_areas_are_as_by_pillow(path)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_a_whole_image(self, mode):
        content = encoded(gradients(mode, (2500, 1100)), "JPEG2000", num_resolutions=3)
        with contextlib.closing(areas_of(Image.open(io.BytesIO(content)), io.BytesIO(content))):
            pass  # not read by Pillow
        assert_read_as_by_pillow(content, within=len(mode) - 3)
        assert to_image(content, "x").source == "x"

    def test_cut_short(self):
        content = encoded(gradients("RGB", (2500, 1100)), "JPEG2000")
        for size in (len(content) // 2, len(content) - 100):
            assert "x is cut short or damaged" in error_of(to_image, content[:size], "x")

    def test_files_are_closed(self, tmp_path):
        path = tmp_path / "x.jp2"
        path.write_bytes(encoded(gradients("RGB", (2500, 1100)), "JPEG2000"))
        to_image(str(path), "x")
        before = len(os.listdir("/proc/self/fd"))
        to_image(str(path), "x")
        to_image(path.read_bytes(), "x")
        assert len(os.listdir("/proc/self/fd")) == before

    def test_little_and_large_files_are_left_to_pillow(self):
        stream = io.BytesIO(encoded(gradients("RGB", (64, 64)), "JPEG2000"))
        opened = Image.open(stream)
        assert areas_of(opened, stream) is None
        with contextlib.closing(areas_of(opened, stream, little=0)) as areas:
            assert areas.size == (64, 64)
        assert areas_of(opened, stream, little=0, enough=1024) is None  # half of it is enough
        opened.load()

    @pytest.mark.parametrize(
        ("options", "enough", "parts"),
        [
            ({}, 5000, 2),
            ({}, 1000, 2),
            ({}, 100, 4),
            ({"num_resolutions": 2}, 100, 2),
            ({"num_resolutions": 1}, 100, 1),
            ({"tile_size": (16, 16)}, 100, 1),
        ],
    )
    def test_it_is_read_smaller_as_far_as_it_can_be(self, options, enough, parts):
        stream = io.BytesIO(encoded(Image.new("RGB", (64, 64), RED), "JPEG2000", **options))
        opened = Image.open(stream)
        assert reduce(opened, stream, enough=enough) == 1
        assert reduce(opened, stream, enough=enough, little=0) == parts
        opened.load()
        assert opened.size == (64 // parts, 64 // parts)

    def test_where_nothing_decodes_areas_it_is_read_at_half_its_resolution(self, monkeypatch):
        monkeypatch.setattr(openjpeg, "opj", lambda: None)
        image = Image.new("RGB", (2500, 1100), RED)
        read = to_image(encoded(image, "JPEG2000", num_resolutions=2), "x")
        assert read.original_size == (1250, 550)
        assert read.source == "x, at 1/2 of its resolution (saved as PNG, all of it is read)"
        assert to_image(encoded(image, "PNG"), "x").original_size == (2500, 1100)
        content = encoded(image, "JPEG2000", num_resolutions=1)
        assert to_image(content, "x").original_size == (2500, 1100)
        said = error_of(to_image, content, "x", limits=Limits(megapixels=5))
        assert "x has 2.75 megapixels; of such files of JPEG 2000" in said
        assert "at most 2.31 are read" in said


@pytest.mark.skipif(
    not (Path(PIL.__file__).parents[1] / "pillow.libs").exists(), reason="not a wheel for Linux"
)
def test_the_libraries_of_pillow_are_found():
    assert openjpeg.opj() is not None
    assert libwebp.is_still(bytes(libwebp.HEAD))


def test_a_library_of_another_version_is_not_taken():
    functions = {"opj_version": (ctypes.c_char_p,)}
    assert library("openjp2", functions, lambda found: True) is not None
    assert library("openjp2", functions, lambda found: False) is None
    assert library("openjp2", {"no_such": (None,)}, lambda found: True) is None
