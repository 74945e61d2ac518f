"""From the bytes of a file, and from any mode of PIL, to upright RGB."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from photos import BLACK, BLUE, GREEN, RED, WHITE, colours, encoded, error_of, fill, png
from PIL import Image

from glm4v_magic.core.errors import ImageError
from glm4v_magic.images import Limits, resolve_images, to_image, to_rgb


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with images in it."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    return tmp_path


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "x.png is empty (0 bytes)."),
            (b"hello\n  w\xc3\xb6rld", "not an image: it is text that starts with 'hello wörld'."),
            ("ü".encode() * 400, "it is text that starts with 'üüü"),
            (b"\x7fELF\x02\x01\x01\x00\x00", "it starts with the bytes 7f 45 4c 46 02 01 01 00."),
            (b"%PDF-1.7\n...", "a PDF document that is damaged or has no pages: "),
            (
                b"\xff\x0a....",
                "a JPEG XL image, which Pillow cannot read alone. Save it as PNG, or",
            ),
            (b"\0\0\0\x0cJXL \r\n", "install pillow-jxl-plugin and import pillow_jxl."),
            (b"II*\0\x10\0\0\0CR\x02\0", "a camera's raw image. Develop it: rawpy.imread(path)"),
            (b"\0\0\0\x18ftypcrx ....", "a camera's raw image."),
            (b"FUJIFILMCCD-RAW 0201", "pip install rawpy"),
            (bytes(128) + b"DICM\2\0", "a DICOM image. Read it with pydicom: pydicom.dcmread"),
            (b"v/1\x01\2\0\0\0", "an OpenEXR image. Read it with OpenEXR"),
            (b"#?RADIANCE\n", "a Radiance HDR image. Read it with OpenCV"),
            (b"\x93NUMPY\1\0", "an array of NumPy. Load it: numpy.load(path)."),
            (b"\x89HDF\r\n\x1a\n", "h5py"),
            (b"gimp xcf v011\0", "a GIMP drawing. Export it as a PNG first."),
            (b"8BPS\0\1....", "a Photoshop file but is cut short or damaged."),
            (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an OLE document"),
            (b"\xd7\xcd\xc6\x9a\0\0", "a Windows metafile. Save it as a PNG first."),
            (b"\xc5\xd0\xd3\xc6....", "a PostScript document."),
            (b"GRIB....", "a GRIB file of weather data. Read it with xarray: "),
            (b"BUFR....", "a BUFR file of weather observations. Draw its values"),
            (b"\x1f\x8b\x08\0", "a packed file. Unpack the image."),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript document."),
            (b"PK\x03\x04....", "a ZIP archive"),
            (b"\0\0\0\x18ftypheic....", "a HEIC image, which Pillow cannot read alone. Save it"),
            (b"\0\0\0\x18ftypmp42....", "a video."),
            (
                b"<svg xmlns='...'/>",
                "an SVG drawing. Save it as a PNG first, or draw it: resvg_py.",
            ),
            (b"<?xml version='1.0'?>\n<svg/>", "an SVG drawing."),
            (b"\n<!DOCTYPE html><title>", "a web page. Give the address"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
            (png()[:20], "is cut short or damaged: Truncated File Read"),
            (b"\0\0\1\0\1", "begins like an icon file but is cut short or damaged."),
            (b"GIF89a\x01", "begins like a GIF file but is cut short or damaged."),
            (b"\xff\xd8\xff\xe0..", "is cut short or damaged: "),
        ],
    )
    def test_what_is_not_an_image_is_named(self, folder, content, said):
        (folder / "x.png").write_bytes(content)
        message = error_of(resolve_images, ["x.png"], {})
        assert message.startswith("x.png ")
        assert said in message

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
    def test_a_truncated_image(self, folder, kind):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        content = encoded(Image.fromarray(noise), kind)
        (folder / "x.img").write_bytes(content[: len(content) // 2])
        message = error_of(resolve_images, ["x.img"], {})
        assert "cut short or damaged" in message
        assert "Error" not in message  # nor any other class

    def test_damaged_pixels(self, folder):
        content = bytearray(encoded(Image.effect_noise((64, 64), 50)))
        content[200:220] = bytes(20)
        (folder / "x.png").write_bytes(content)
        message = error_of(resolve_images, ["x.png"], {})
        assert "x.png is cut short or damaged: " in message
        assert "Error" not in message
        assert message.endswith(".")

    @pytest.mark.parametrize("side", [12_000, 30_000])
    def test_a_decompression_bomb_is_refused_by_its_header(self, folder, side):
        (folder / "bomb.png").write_bytes(png_header(side, side))
        assert error_of(resolve_images, ["bomb.png"], {}) == (
            f"bomb.png has {side * side // 1_000_000} megapixels; at most 128 are read. "
            "Make it smaller first: a model sees little more than one megapixel."
        )

    def test_between_the_warning_of_pillow_and_our_limit_nothing_leaks(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # warns from 41, refuses from 81
        assert to_image(png(size=(8, 6)), "x").original_size == (8, 6)

    def test_the_limit_can_be_set(self):
        small = Limits(megapixels=47e-6)
        assert "4.8e-05 megapixels; at most 4.7e-05" in error_of(to_image, png(), "x", limits=small)
        assert to_image(png(), "x", limits=Limits(megapixels=48e-6)).original_size == (8, 6)
        for value in (Image.new("RGB", (8, 6)), np.zeros((6, 8), np.uint8), torch.zeros(3, 6, 8)):
            assert "megapixels" in error_of(to_image, value, "x", limits=small)

    def test_ghostscript_is_never_started(self, folder):
        # A complete drawing that Pillow itself would hand to Ghostscript.
        Image.new("RGB", (4, 4), RED).save(folder / "x.eps")
        assert "a PostScript document" in error_of(resolve_images, ["x.eps"], {})

    def test_the_first_frame_of_several(self, folder):
        frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
        for name in ("x.gif", "x.tiff", "x.webp", "x.png"):
            frames[0].save(folder / name, save_all=True, append_images=frames[1:], lossless=True)
            assert colours(resolve_images([name], {})[0]) == [RED]

    def test_the_ending_does_not_matter(self, folder):
        (folder / "x.txt").write_bytes(png(BLUE))
        assert colours(resolve_images(["x.txt"], {})[0]) == [BLUE]

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_any_damage_gives_an_image_or_an_image_error(self, data):
        kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]))
        content = bytearray(encoded(Image.linear_gradient("L").resize((16, 16)), kind))
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        with contextlib.suppress(ImageError):
            to_image(bytes(content), "x")


def tiff(width, pixels, **tags):
    """An uncompressed TIFF of one row, with the tags of TIFF 6.0 that are given."""
    numbers = {
        "width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262,
        "strip": 273, "samples": 277, "rows": 278, "bytes": 279, "largest": 281, "form": 339,
    }  # fmt: skip
    usual = {"width": width, "height": 1, "bits": 8, "compression": 1, "photometric": 1,
             "samples": 1, "rows": 1, "bytes": len(pixels)}  # fmt: skip
    entries = {**usual, **tags}
    end = 8 + 2 + 12 * (len(entries) + 1) + 4
    entries["strip"] = end
    directory = b"".join(
        struct.pack("<HHIHH", numbers[name], 3, 1, entries[name], 0)
        for name in sorted(entries, key=numbers.get)
    )
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    return head + directory + bytes(4) + pixels


class TestDepth:
    """What is white is what the file says."""

    def test_twelve_bits(self):
        # 0, 2048, 4095 and 0 in 12 bits each, high ones first
        content = tiff(4, bytes.fromhex("000800fff000"), bits=12)
        photo = to_image(content, "x")
        assert colours(photo, (0, 0), (1, 0), (2, 0)) == [BLACK, "#808080", WHITE]

    def test_twelve_of_sixteen_bits(self):
        pixels = struct.pack("<3H", 0, 2048, 4095)
        assert colours(to_image(tiff(3, pixels, bits=16, largest=4095), "x"), (1, 0), (2, 0)) == [
            "#808080", WHITE,
        ]  # fmt: skip
        untold = to_image(tiff(3, pixels, bits=16), "x")
        assert colours(untold, (1, 0), (2, 0)) == ["#808080", WHITE]
        assert untold.source == "x, read as 12-bit"

    def test_colours_of_which_the_upper_bits_are_black_are_said(self):
        rows = zlib.compress(b"\0" + struct.pack(">3H", 0, 200, 0) * 4)
        header = struct.pack(">IIBBBBB", 4, 1, 16, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
        content = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(each)) + name + each + struct.pack(">I", zlib.crc32(name + each))
            for name, each in chunks
        )
        assert "near black: of the 16 bits" in to_image(content, "x").source

    def test_sixteen_bits_with_a_value_that_is_clear(self):
        image = Image.fromarray(np.array([[0, 300, 65535]], np.uint16))
        content = encoded(image, transparency=300)
        assert colours(to_image(content, "x"), (0, 0), (1, 0), (2, 0)) == [BLACK, WHITE, WHITE]
        assert colours(to_image(encoded(image), "x"), (1, 0)) == ["#010101"]

    @pytest.mark.parametrize(
        ("tags", "said"),
        [
            ({"samples": 5}, "5 bands of 8-bit integers, compression 1. Read it with tifffile"),
            ({"bits": 24, "form": 3}, "1 band of 24-bit floats, compression 1. Read it"),
            ({"bits": 64, "form": 6}, "1 band of 64-bit complex numbers"),
        ],
    )
    def test_a_tiff_that_pillow_does_not_read_is_not_called_damaged(self, tags, said):
        message = error_of(to_image, tiff(1, bytes(40), **tags), "x")
        assert message.startswith("x is a TIFF of a kind that Pillow does not read: ")
        assert said in message

    def test_bands_of_a_tiff_that_pillow_does_not_read_are_given_as_an_array(self):
        bands = np.arange(40, dtype=np.uint8).reshape(1, 8, 5)
        message = error_of(to_image, tiff(8, bands.tobytes(), samples=5), "x")
        assert "Read it with tifffile, and give three of its bands as an array." in message
        three = bands[..., [4, 2, 0]]
        assert np.array_equal(np.asarray(to_image(three, "x").image), three)


class TestProfiles:
    @pytest.fixture
    def swapped(self):
        """The profile of a screen whose red and blue are swapped."""
        from PIL import ImageCms

        content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        name = "sRGB".encode("utf-16-be")
        assert name in content
        content = content.replace(name, "mine".encode("utf-16-be"))
        return content.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_a_profile_is_applied(self, swapped, mode, kind):
        content = encoded(Image.new("RGB", (4, 4), RED).convert(mode), kind, icc_profile=swapped)
        photo = to_image(content, "x")
        assert colours(photo) == [BLUE]
        assert not photo.encoded  # a server would not apply it

    def test_that_of_srgb_is_none_by_what_it_does(self):
        from PIL import ImageCms

        content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
        photo = to_image(encoded(Image.new("RGB", (4, 4), "#3c3c3c"), icc_profile=content), "x")
        assert colours(photo) == ["#3c3c3c"]
        assert photo.encoded
        for at in range(132, 132 + 12 * struct.unpack_from(">I", content, 128)[0], 12):
            name, offset = struct.unpack_from(">4sI", content, at)
            if name in (b"rTRC", b"gTRC", b"bTRC"):  # ICC.1, 10.6: a curve of no points is linear
                content[offset : offset + 12] = b"curv" + bytes(8)
        content = bytes(content)
        description = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(content)))
        assert description.startswith("sRGB")
        linear = encoded(Image.new("RGB", (4, 4), "#3c3c3c"), icc_profile=content)
        assert colours(to_image(linear, "x")) == ["#858585"]

    def test_a_broken_profile_is_none(self):
        content = encoded(Image.new("RGB", (4, 4), RED), icc_profile=b"nonsense")
        assert colours(to_image(content, "x")) == [RED]

    def test_that_of_other_channels_is_none(self, swapped):
        content = encoded(Image.new("CMYK", (4, 4)), "TIFF", icc_profile=swapped)
        assert colours(to_image(content, "x")) == [WHITE]


class TestModes:
    def test_the_image_is_plain_rgb_in_memory(self, folder):
        (photo,) = resolve_images(["red.png"], {})
        (folder / "red.png").unlink()
        assert type(photo.image) is Image.Image
        assert photo.image.mode == "RGB"
        copy = pickle.loads(pickle.dumps(photo))
        assert copy == photo

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
    def test_transparent_pixels_are_white(self, mode):
        image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
        image.putpixel((1, 0), (0, 0, 0, 0))
        if mode == "PA":
            image = image.convert("P").convert("PA")
            image.putpixel((1, 0), (0, 0))
        elif mode == "La":
            image = image.convert("LA").convert("La")
        else:
            image = image.convert(mode)
        assert colours(to_image(image, "x"), (0, 0), (1, 0)) == [BLACK, WHITE]

    def test_half_transparent_pixels_are_mixed_with_white(self):
        image = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
        assert colours(to_image(image, "x"), (0, 0)) == ["#ff7f7f"]

    @pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
    def test_a_palette_with_a_transparent_entry(self, transparency):
        image = Image.new("P", (2, 1))
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.putpixel((1, 0), 1)
        content = encoded(image, transparency=transparency)
        assert colours(to_image(content, "x"), (0, 0), (1, 0)) == [WHITE, BLUE]

    def test_rgb_and_grey_with_a_transparent_colour(self):
        content = encoded(Image.new("RGB", (1, 1), RED), transparency=(255, 0, 0))
        assert colours(to_image(content, "x")) == [WHITE]
        content = encoded(Image.new("L", (1, 1), 9), transparency=9)
        assert colours(to_image(content, "x")) == [WHITE]

    def test_a_palette_without_transparency(self):
        image = Image.new("RGB", (2, 1), RED)
        image.putpixel((1, 0), (0, 0, 255))
        assert colours(to_image(image.quantize(2), "x"), (0, 0), (1, 0)) == [RED, BLUE]

    def test_cmyk(self):
        content = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
        assert colours(to_image(content, "x")) == [RED]

    @pytest.mark.parametrize(("mode", "pixel"), [("L", 128), ("1", 1), ("HSV", (0, 0, 128))])
    def test_other_modes(self, mode, pixel):
        expected = WHITE if mode == "1" else "#808080"
        assert colours(to_image(Image.new(mode, (1, 1), pixel), "x")) == [expected]

    @pytest.mark.parametrize("mode", ["YCbCr", "LAB", "RGBX", "I;16", "I;16B", "I;16L", "I", "F"])
    def test_every_mode_of_pillow_becomes_rgb(self, mode):
        assert to_image(Image.new(mode, (2, 2)), "x").image.mode == "RGB"

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    @pytest.mark.parametrize("byte_order", ["<", ">"])
    def test_16_bits_are_scaled_not_clipped(self, kind, byte_order):
        values = np.array([[0, 257, 128 * 257, 65535]], dtype=f"{byte_order}u2")
        content = encoded(Image.fromarray(values), kind)
        photo = to_image(content, "x")
        assert [photo.image.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]

    def test_32_bit_integers(self):
        def greys(values):
            image = Image.fromarray(np.array([values], dtype=np.int32))
            assert image.mode == "I"
            photo = to_image(image, "x")
            return [photo.image.getpixel((x, 0))[0] for x in range(len(values))]

        assert greys([0, 7, 255]) == [0, 7, 255]
        assert greys([0, 7 * 257, 65535]) == [0, 7, 255]
        for values in ([-1, 5], [0, 65536]):
            assert f"values from {min(values)} to {max(values)}" in error_of(greys, values)

    def test_floats(self):
        def greys(values):
            photo = to_image(Image.fromarray(np.array([values], dtype=np.float32)), "x")
            return [photo.image.getpixel((x, 0))[0] for x in range(len(values))]

        assert greys([0, 0.5, 1]) == [0, 128, 255]
        assert greys([0, 7, 255]) == [0, 7, 255]
        assert "floats from -3 to 900, not from 0 to 255" in error_of(greys, [-3, 900])
        assert "NaN" in error_of(greys, [0, float("nan")])
        assert "Scale its range to 0 to 1: (values - 0.3) / 9.4" in error_of(greys, [0.3, 9.7])

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_the_exif_orientation_is_applied(self, kind, orientation):
        upright = Image.new("RGB", (32, 16), WHITE)
        upright.paste(RED, (0, 0, 8, 8))
        undo = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }.get(orientation)
        stored = upright if undo is None else upright.transpose(undo)
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
        content = encoded(stored, kind, exif=exif, lossless=True, **options)
        photo = to_image(content, "x")
        assert photo.original_size == photo.image.size == (32, 16)
        assert photo.image.getpixel((3, 3))[1] < 40
        assert photo.image.getpixel((28, 12))[1] > 200
        # The same image, opened by the user.
        assert to_image(Image.open(io.BytesIO(content)), "x").image == photo.image

    def test_broken_exif_is_ignored(self):
        content = encoded(Image.new("RGB", (8, 6), RED), exif=b"Exif\0\0MM\0*\0\0\xff\xff nonsense")
        assert to_image(content, "x").original_size == (8, 6)

    def test_metadata_does_not_travel_with_the_image(self):
        exif = Image.Exif()
        exif[0x010E] = "taken at home"
        photo = to_image(encoded(Image.new("RGB", (8, 6)), "JPEG", exif=exif), "x")
        assert photo.image.info == {}
        assert not photo.image.getexif()
        assert b"home" not in pickle.dumps(photo)

    def test_the_users_own_image_is_left_as_it_is(self):
        image = Image.new("RGB", (2, 2), RED)
        image.info["note"] = "mine"
        photo = to_image(image, "x")
        image.putpixel((1, 1), (0, 0, 255))
        assert image.info == {"note": "mine"}
        assert colours(photo) == [RED]

    def test_the_current_frame_of_the_users_own_image(self):
        frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
        with Image.open(
            io.BytesIO(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
        ) as image:
            image.seek(1)
            assert colours(to_image(image, "x")) == [GREEN]
            assert image.tell() == 1

    def test_a_closed_or_empty_image(self, folder):
        image = Image.open(folder / "red.png")
        image.close()
        assert error_of(to_image, image, "x") == (
            "x was closed before it was read. Give a copy that was made before: image.copy()."
        )
        assert error_of(to_image, Image.new("RGB", (0, 5)), "x") == (
            "x is 0 x 5: it has no pixels."
        )

    def test_to_rgb_takes_any_image(self):
        image = Image.new("RGBA", (2, 1))
        assert colours(to_rgb(image)) == [WHITE]
        nan = Image.fromarray(np.full((1, 1), np.nan, np.float32))
        assert error_of(to_rgb, nan).startswith("The image holds NaN")


def png_header(width, height):
    """Return a valid PNG of this size whose pixels are missing."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
