"""Values in memory: bytes, streams, arrays, tensors, figures, IPython's images."""

from __future__ import annotations

import base64
import datetime as dt
import io
import os
import pathlib
import subprocess
import sys

import IPython.display
import ipywidgets
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from photos import BLACK, BLUE, GREEN, RED, WHITE, colours, encoded, error_of, fill, png
from PIL import Image

from glm4v_magic.images import resolve_images, to_image, to_images
from glm4v_magic.images.recognised import may_be_images


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with images in it."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    return tmp_path


class TestValues:
    def test_a_sourced_image_is_kept(self):
        photo = to_image(png(), "x")
        assert to_image(photo, "y") is photo

    def test_to_images_takes_one_or_several(self):
        assert [colours(each) for each in to_images((png(RED), png(BLUE)), "x")] == [[RED], [BLUE]]
        assert [colours(each) for each in to_images(png(RED), "x")] == [[RED]]
        assert len(to_images("photos/*.png", "x")) == 2

    def test_to_image_takes_one(self):
        assert error_of(to_image, "photos/*.png", "x") == "x names 2 images, not one."
        assert "x is a list, not an image." in error_of(to_image, [png()], "x")

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_bytes(self, kind):
        photo = to_image(kind(png(GREEN)), "x")
        assert colours(photo) == [GREEN]
        assert photo.source == "x"

    def test_bytes_in_steps(self):
        content = bytearray(2 * len(png()))
        content[::2] = png()
        assert colours(to_image(memoryview(content)[::2], "x")) == [RED]

    @pytest.mark.parametrize("shape", [(-1,), (-1, 1), (1, -1)])
    @pytest.mark.parametrize("of", [np.asarray, torch.from_numpy])
    def test_bytes_in_an_array(self, of, shape):
        """As np.fromfile, cv2.imencode and torchvision.io.read_file give them."""
        content = np.frombuffer(png(GREEN), np.uint8).copy()
        value = of(content).reshape(shape)
        assert colours(to_image(value, "x")) == [GREEN]
        assert to_image(value, "x").source == "x"
        assert may_be_images(value)
        assert [colours(each) for each in to_images([value, png(RED)], "x")] == [[GREEN], [RED]]
        row = {"data": value, "n": 1}
        assert colours(to_image(row, "x")) == [GREEN]
        damaged = value.reshape(-1)[: len(content) // 2]
        assert "is cut short or damaged" in error_of(to_image, damaged, "x")

    def test_bytes_in_an_array_of_what_is_not_read_and_of_pixels(self):
        clip = np.frombuffer(b"\x1aE\xdf\xa3" + bytes(60), np.uint8)
        assert error_of(to_image, clip, "x") == error_of(to_image, clip.tobytes(), "x")
        assert not may_be_images(clip)
        grey = np.arange(64, dtype=np.uint8).reshape(64, 1)
        assert to_image(grey, "x").original_size == (1, 64)
        assert "(64,), which is not the shape" in error_of(to_image, grey[:, 0], "x")

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP"])
    @pytest.mark.parametrize("is_read", [False, True])
    def test_a_pillow_image_that_was_closed(self, folder, kind, is_read):
        Image.new("RGB", (32, 32), RED).save("it", kind)
        with open("it", "rb") as stream:
            of_file = Image.open(stream)
        with Image.open("it") as left:
            copy = left.copy() if is_read else None
        closed = Image.open("it")
        if is_read:
            closed.load()
        closed.close()
        for image in (closed,) if is_read else (of_file, left, closed):
            assert error_of(to_image, image, "x") == (
                "x was closed before it was read. Give a copy that was made before: image.copy()."
            )
        if copy is not None:
            assert to_image(copy, "x").original_size == (32, 32)

    def test_a_pillow_image_that_is_damaged_is_not_closed(self, folder):
        (folder / "half.png").write_bytes(encoded(Image.effect_noise((64, 64), 90))[:900])
        with Image.open("half.png") as image:
            assert "cut short or damaged" in error_of(to_image, image, "x")

    def test_paths(self):
        assert colours(to_image("red.png", "x")) == [RED]
        photo = to_image(pathlib.Path("photos") / "a.png", "x")
        assert colours(photo) == [GREEN]
        assert photo.source == "photos/a.png"

    def test_open_files(self, folder):
        with open("red.png", "rb") as stream:
            stream.seek(5)
            assert colours(to_image(stream, "x")) == [RED]
            assert stream.tell() == 5
        assert error_of(to_image, stream, "x").startswith("x cannot be read: ValueError")
        (folder / "text").write_text("abc")
        with open("text") as text:
            assert "x gives str, not bytes. Open the file in binary mode" in error_of(
                to_image, text, "x"
            )

    def test_a_buffer_that_stands_at_its_end(self):
        buffer = io.BytesIO()
        Image.new("RGB", (2, 2), BLUE).save(buffer, "PNG")
        assert colours(to_image(buffer, "x")) == [BLUE]
        assert colours(to_image(buffer, "x")) == [BLUE]

    def test_a_stream_that_cannot_seek(self):
        read, write = os.pipe()
        with os.fdopen(write, "wb") as stream:
            stream.write(png(BLUE))
        with os.fdopen(read, "rb") as stream:
            assert colours(to_image(stream, "x")) == [BLUE]

    def test_an_ipython_image(self, folder):
        assert colours(to_image(IPython.display.Image("red.png"), "x")) == [RED]
        assert colours(to_image(IPython.display.Image(png(BLUE)), "x")) == [BLUE]
        later = IPython.display.Image(filename=str(folder / "red.png"), embed=False)
        assert colours(to_image(later, "x")) == [RED]

    def test_wrong_types(self):
        for value in (None, 3, {}, object(), io.BytesIO):
            assert "not an image. Give a path" in error_of(to_image, value, "x")

    def test_libraries_are_not_imported_to_recognise_their_types(self):
        code = (
            "import sys\n"
            "from glm4v_magic.core.errors import ImageError\n"
            "from glm4v_magic.images import to_image\n"
            "try: to_image(object(), 'x')\n"
            "except ImageError: pass\n"
            "heavy = {'torch', 'numpy', 'matplotlib', 'PIL', 'IPython'} & set(sys.modules)\n"
            "sys.exit(' '.join(heavy) or None)\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class TestArrays:
    height, width = 5, 7

    def colour(self):
        array = np.zeros((self.height, self.width, 3), np.uint8)
        array[0, 0] = (255, 0, 0)
        array[:, -1] = (0, 0, 255)
        return array

    def check(self, value):
        photo = to_image(value, "x")
        assert photo.original_size == (self.width, self.height)
        assert colours(photo, (0, 0), (1, 0), (6, 4)) == [RED, BLACK, BLUE]

    @pytest.mark.parametrize(
        "change",
        [
            lambda a: a,
            lambda a: a[None],
            lambda a: a.transpose(2, 0, 1),
            lambda a: a.transpose(2, 0, 1)[None],
            lambda a: a / 255,
            lambda a: (a / 255).astype(np.float16),
            lambda a: a / 255 + 1e-4,
            lambda a: a.astype(np.int64),
            lambda a: a.astype(np.uint16) * 257,
            lambda a: a > 0,
            lambda a: np.asfortranarray(a),
            lambda a: np.flip(np.flip(a, 0).copy(), 0),
            lambda a: np.ma.masked_array(a),
            lambda a: np.dstack([a, np.full(a.shape[:2], 255, np.uint8)]),
        ],
    )
    def test_numpy(self, change):
        self.check(change(self.colour()))

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: t,
            lambda t: t[None],
            lambda t: t.permute(2, 0, 1),
            lambda t: t.permute(2, 0, 1)[None],
            lambda t: t / 255,
            lambda t: (t / 255).bfloat16(),
            lambda t: (t / 255).half(),
            lambda t: (t / 255).double(),
            lambda t: (t / 255).requires_grad_(),
            lambda t: t.int(),
            lambda t: t.bool(),
        ],
    )
    def test_torch(self, change):
        self.check(change(torch.from_numpy(self.colour())))

    @pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (1, 2, 3), (1, 2, 3, 1)])
    def test_grey(self, shape):
        values = np.array([0, 51, 102, 153, 204, 255], np.uint8).reshape(shape)
        if shape == (1, 2, 3):  # also a row of two RGB pixels, which is what numpy's users mean
            assert to_image(values, "x").original_size == (2, 1)
            values = torch.from_numpy(values)
        photo = to_image(values, "x")
        assert photo.original_size == (3, 2)
        assert colours(photo, (0, 0), (1, 0), (2, 1)) == [BLACK, "#333333", WHITE]

    def test_transparency(self):
        array = np.zeros((4, 2, 2), np.uint8)
        array[3, 0, 0] = 255
        assert colours(to_image(array, "x"), (0, 0), (1, 0)) == [BLACK, WHITE]

    def test_in_doubt_channels_are_last_for_numpy_and_first_for_torch(self):
        array = np.zeros((3, 5, 3), np.uint8)
        assert to_image(array, "x").original_size == (5, 3)
        assert to_image(torch.from_numpy(array), "x").original_size == (3, 5)

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (np.zeros((2, 4, 4, 3)), "x has shape (2, 4, 4, 3): 2 images. Choose one: x[0]."),
            (np.zeros((5, 6, 7)), "x has shape (5, 6, 7), which is not the shape of an image."),
            (np.zeros(5), "x has shape (5,), which is not the shape of an image."),
            (np.array(5.0), "x has shape (), which is not the shape of an image."),
            (np.zeros((1, 1, 1, 4, 4)), "which is not the shape of an image."),
            (np.zeros((0, 4, 3)), "x has shape (0, 4, 3): it has no pixels."),
            (np.full((2, 2), None), "x holds values of type object."),
            (np.zeros((2, 2), complex), "x holds values of type complex128."),
            (np.array([["a"]]), "x holds values of type <U1."),
            (np.array([[0.0, 255.0]]), "floats from 0 to 255, not from 0 to 1. Divide by 255."),
            (
                np.array([[0.3, 9.7]]),
                "0 to 1. Scale its range to 0 to 1: (values - 0.3) / 9.4",
            ),
            (np.array([[-2.1, 2.6]]), "floats from -2.1 to 2.6, not from 0 to 1. If it was norm"),
            (np.array([[-1e30, 1e300]]), "not from 0 to 1. Scale it to 0 to 1."),
            (np.array([[0.0, np.nan]]), "x holds NaN or infinite values."),
            (np.array([[0.0, np.inf]]), "x holds NaN or infinite values."),
            (np.array([[-1, 3]]), "x holds int64 values from -1 to 3. Integers must be"),
            (np.array([[0, 256]]), "x holds int64 values from 0 to 256."),
            (np.array([[0, 70000]], np.uint32), "x holds uint32 values from 0 to 70000."),
            (
                torch.zeros(3, 4, 4, device="meta"),
                "x is on the device meta, where tensors ha",
            ),
            (
                torch.nested.nested_tensor([torch.ones(2, 2)], layout=torch.jagged),
                "Give its parts: x.unbind()",
            ),
            (torch.ones(4, 4).to_sparse(), "x is a sparse tensor. Give all of its values: x.to_d"),
            (torch.zeros(2, 3, 4, 4), "x has shape (2, 3, 4, 4): 2 images."),
            (torch.full((3, 4, 4), 9.0), "floats from 9 to 9"),
            (torch.zeros(4, 4, dtype=torch.complex64), "values of type complex64"),
        ],
    )
    def test_what_is_no_image_is_explained(self, value, said):
        assert said in error_of(to_image, value, "x")

    @pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
    def test_quantised_tensors_have_values(self):
        quantised = torch.quantize_per_tensor(torch.full((1, 1), 0.2), 0.1, 0, torch.quint8)
        assert colours(to_image(quantised, "x")) == ["#333333"]

    @pytest.mark.parametrize(
        ("high", "said"),
        [
            (200, "read as 8-bit"),
            (1000, "read as 10-bit"),
            (4080, "read as 12-bit"),
            (16000, "read as 14-bit"),
            (64000, ""),
        ],
    )
    def test_bits_that_are_used_are_read_and_said(self, high, said):
        values = np.array([[0, high]], np.uint16)
        deep = [values, np.dstack([values] * 3), torch.from_numpy(values), Image.fromarray(values)]
        if high > 255:
            deep.append(Image.fromarray(values.astype(np.int32)))
        for kind in ("PNG", "TIFF"):
            deep.append(io.BytesIO())
            Image.fromarray(values).save(deep[-1], kind)
        for each in deep:
            read = to_image(each, "x")
            assert read.image.getpixel((0, 0))[0] == 0
            assert read.image.getpixel((1, 0))[0] >= 190
            assert read.source == (f"x, {said}" if said else "x")

    def test_what_is_near_black_is_said(self):
        labels = np.array([[0, 1, 3]], np.uint8)
        for each in (labels, Image.fromarray(labels), encoded(Image.fromarray(labels))):
            assert to_image(each, "x").source == "x, near black: no value is above 3 of 255"
        assert to_image(labels // 4, "x").source == "x"  # black, as a person would call it
        assert to_image(labels * 30, "x").source == "x"

    @given(st.integers(0, 65535))
    def test_uint16_is_scaled_to_the_nearest(self, value):
        array = np.array([[65535, value]], np.uint16)
        grey = to_image(array, "x").image.getpixel((1, 0))[0]
        assert abs(grey * 257 - value) <= 128

    @given(st.integers(0, 255))
    def test_floats_and_bytes_agree(self, value):
        grey = to_image(np.full((1, 1), value / 255), "x").image.getpixel((0, 0))[0]
        assert grey == value


class TestFigures:
    def figure(self):
        figure = Figure(figsize=(4, 2), dpi=50, facecolor="blue")
        left, right = figure.subplots(1, 2)
        left.set_facecolor("red")
        right.set_facecolor("lime")
        return figure, left, right

    def test_a_figure(self):
        figure, _, _ = self.figure()
        photo = to_image(figure, "figure")
        assert photo.original_size == (200, 100)
        assert colours(photo, (1, 1), (60, 50), (140, 50)) == [BLUE, RED, GREEN]
        assert figure.get_size_inches().tolist() == [4, 2]

    def test_axes_are_cut_out(self):
        _, left, right = self.figure()
        photo = to_image(left, "left")
        assert photo.original_size[0] < 120
        assert colours(photo) == [RED]
        assert colours(to_image(right, "right")) == [GREEN]

    def test_a_subfigure_is_drawn_with_its_figure(self):
        figure = Figure(figsize=(4, 2), dpi=50)
        part, _ = figure.subfigures(1, 2)
        axes = part.subplots()
        axes.set_facecolor("red")
        assert to_image(part, "part").original_size == (200, 100)
        assert colours(to_image(axes, "axes")) == [RED]

    def test_a_transparent_figure_is_on_white(self):
        figure = Figure(figsize=(1, 1), dpi=20, facecolor="none")
        assert colours(to_image(figure, "figure")) == [WHITE]

    def test_a_figure_that_cannot_be_drawn(self):
        figure = Figure(figsize=(1, 1), dpi=20)
        figure.text(0, 0, r"$\nonsense{$")
        assert "figure cannot be drawn: ValueError" in error_of(to_image, figure, "figure")

    def test_it_is_not_closed(self):
        with mpl.rc_context({"backend": "agg"}):
            from matplotlib import pyplot as plt

            figure, axes = plt.subplots()
            try:
                to_images([figure, axes], "x")
                assert plt.fignum_exists(figure.number)
            finally:
                plt.close(figure)


class TestOutputs:
    def test_an_object_that_shows_itself_as_png_or_jpeg(self):
        class Shown:
            def __init__(self, **forms):
                for name, value in forms.items():
                    setattr(self, f"_repr_{name}_", lambda value=value: value)

        assert colours(to_image(Shown(png=png(GREEN)), "x")) == [GREEN]
        assert colours(to_image(Shown(png=(png(BLUE), {"width": 8})), "x")) == [BLUE]
        assert colours(to_image(Shown(png=base64.b64encode(png(RED)).decode()), "x")) == [RED]
        assert colours(to_image(Shown(png=None, jpeg=png(WHITE)), "x")) == [WHITE]
        assert "x is a Shown, not an image." in error_of(to_image, Shown(png=None), "x")

        def fail():
            raise ValueError("no backend")

        broken = Shown()
        broken._repr_png_ = fail
        assert error_of(to_image, broken, "x") == "x cannot be drawn: ValueError: no backend"

    def test_a_cell_of_a_table(self):
        table = pd.DataFrame({"image": [png(RED), "photos/a.png", Image.new("RGB", (2, 2), BLUE)]})
        words = ["table.image[0]", "table.loc[1,'image']", "table.iloc[2].image"]
        photos = resolve_images(words, {"table": table})
        assert [colours(photo) for photo in photos] == [[RED], [GREEN], [BLUE]]
        photos = resolve_images(["table.image"], {"table": table})
        assert [colours(photo) for photo in photos] == [[RED], [GREEN], [BLUE]]

    def test_earlier_outputs(self):
        names = {"Out": {7: Image.new("RGB", (2, 2), BLUE)}, "_": IPython.display.Image(png(GREEN))}
        photos = resolve_images(["Out[7]", "_"], names)
        assert [colours(photo) for photo in photos] == [[BLUE], [GREEN]]


class TestUploads:
    def uploaded(self):
        files = [
            {"name": name, "type": "image/png", "size": 9, "content": memoryview(content),
             "last_modified": dt.datetime.now(dt.UTC)}
            for name, content in (("my cat.png", png(GREEN)), ("dog.png", png(BLUE)))
        ]  # fmt: skip
        upload = ipywidgets.FileUpload(multiple=True)
        upload.value = files
        return upload

    @pytest.mark.parametrize("word", ["upload", "upload.value"])
    def test_all_files(self, word):
        photos = resolve_images([word], {"upload": self.uploaded()})
        assert [colours(photo) for photo in photos] == [[GREEN], [BLUE]]
        assert [photo.source for photo in photos] == ["my cat.png", "dog.png"]

    def test_one_file(self):
        (photo,) = resolve_images(["upload.value[1]"], {"upload": self.uploaded()})
        assert colours(photo) == [BLUE]

    def test_nothing_uploaded_yet(self):
        names = {"upload": ipywidgets.FileUpload()}
        assert error_of(resolve_images, ["upload"], names) == (
            "upload: nothing is uploaded yet. Choose a file first."
        )


class TestClipboard:
    @pytest.fixture
    def copied(self, folder, monkeypatch):
        """A program that prints what is copied, as on a Linux desktop."""
        if not sys.platform.startswith("linux"):
            pytest.skip("here the system itself is asked")
        programs = folder / "bin"
        programs.mkdir()
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

        def copy(script):
            (programs / "xclip").write_text(f"#!/bin/sh\n{script}\n")
            (programs / "xclip").chmod(0o755)

        return copy

    def test_a_copied_image(self, copied):
        copied("cat photos/a.png")
        (photo,) = resolve_images(["clipboard"], {})
        assert colours(photo) == [GREEN]
        assert photo.source == "clipboard"

    def test_a_variable_or_a_file_of_that_name_comes_first(self, copied, folder):
        copied("cat photos/a.png")
        assert colours(resolve_images(["clipboard"], {"clipboard": png(RED)})[0]) == [RED]
        (folder / "clipboard").write_bytes(png(BLUE))
        assert colours(resolve_images(["clipboard"], {})[0]) == [BLUE]

    @pytest.mark.parametrize(
        ("script", "said"),
        [
            ("echo 'Error: target image/png not available' >&2; exit 1",
             "The clipboard holds no image. Copy one first."),
            ("echo \"Error: Can't open display: :0\" >&2; exit 1",
             "clipboard of the computer that runs Python cannot be read: ChildProcessError: xclip"),
            ("echo text", "runs Python cannot be read: UnidentifiedImageError"),
        ],
    )  # fmt: skip
    def test_no_image(self, copied, script, said):
        copied(script)
        assert said in error_of(resolve_images, ["clipboard"], {})
