"""Images in what other libraries hold them in: tables, columns, uploads, widgets, charts."""

from __future__ import annotations

import base64
import sys
from types import ModuleType

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from photos import BLUE, GREEN, RED, colours, encoded, error_of, fill, png
from PIL import Image

from glm4v_magic.images import resolve_images, to_image, to_images
from glm4v_magic.images.holders import columns_of_images
from glm4v_magic.images.recognised import may_be_images
from glm4v_magic.mapping.items import are_images, is_table, items_of


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with images in it."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    return tmp_path


def seen(value):
    return [colours(photo)[0] for photo in to_images(value, "x")]


def in_base64(colour):
    return base64.b64encode(png(colour, size=(40, 30))).decode()


URL = f"data:image/png;base64,{in_base64(RED)}"
PARTS = [
    {"type": "image_url", "image_url": {"url": URL, "detail": "high"}},
    {"type": "image_url", "image_url": {"url": "red.png"}},
    {"type": "input_image", "image_url": URL, "detail": "auto"},
    {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": in_base64(RED)},
        "cache_control": {"type": "ephemeral"},
    },
    {"type": "image", "source": {"type": "url", "url": URL}},
    {"type": "image", "image": Image.new("RGB", (2, 2), RED)},
    {"type": "image", "url": URL},
    {"type": "image", "path": "red.png"},
    {"type": "image", "base64": in_base64(RED), "mime_type": "image/png"},
]


class TestParts:
    """Parts of messages to chat models."""

    @pytest.mark.parametrize("part", PARTS)
    def test_each_is_read_alone_and_with_others(self, part):
        assert seen(part) == [RED]
        assert seen([part, png(BLUE)]) == [RED, BLUE]
        assert may_be_images(part)

    def test_each_is_an_item_of_a_map(self):
        nested = PARTS[:2] + PARTS[3:5]
        items = items_of(nested, "x")
        assert not is_table(nested)
        assert are_images("What?", items)
        assert seen({"photo": nested[0], "n": 1}) == [RED]
        assert columns_of_images({"n": [1, 2], "photo": nested[1:3]}) == ["photo"]
        assert [seen(each)[0] for each in items.values] == [RED] * 4

    def test_rows_with_such_columns_stay_rows(self):
        rows = [{"type": "image", "url": "red.png", "label": "a"}]
        assert seen(rows) == [RED]
        (record,) = items_of(rows, "x").records
        assert list(record) == ["type", "url", "label"]

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "image", "source": {"type": "file", "file_id": "f"}},
            {"type": "text", "text": "red"},
            {"type": "image_url", "image_url": {}},
        ],
    )
    def test_what_has_no_image_is_not_one(self, part):
        assert "x is a dict, not an image" in error_of(to_image, part, "x")
        assert not may_be_images(part)


STORED = [{"bytes": png(RED), "path": None}, {"bytes": None, "path": "photos/a.png"}]
ROWS = [{"image": png(RED), "label": "red"}, {"image": png(BLUE), "label": "blue"}]


class TestRows:
    @pytest.mark.parametrize("value", STORED)
    def test_an_image_as_datasets_stores_it(self, value):
        assert seen(value) == [RED if value["bytes"] else GREEN]

    def test_a_row_with_one_image(self):
        assert seen({"image": Image.new("RGB", (2, 2), BLUE), "label": 3}) == [BLUE]
        assert seen({"photo": STORED[1], "id": "a"}) == [GREEN]
        assert seen(ROWS) == [RED, BLUE]

    def test_a_row_with_one_path(self):
        assert seen({"name": "a", "image": "photos/a.png"}) == [GREEN]
        assert seen({"also": "photos/a.png", "image": png(BLUE)}) == [BLUE]

    def test_a_row_with_two_images(self):
        row = {"left": png(RED), "right": png(BLUE)}
        assert error_of(to_image, row, "row") == (
            "row is a row with several images: 'left', 'right'. Choose one: row['left']."
        )

    def test_a_row_without_images(self):
        assert "x is a dict, not an image." in error_of(to_image, {"label": 3}, "x")

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            ({"image": None, "label": 3}, "x is a row without an image: 'image' is None."),
            ({"image": float("nan"), "n": []}, "without an image: 'image' is NaN, 'n' is []."),
            (pd.Series({"image": pd.NA, "label": 3}), "x is a row without an image: 'image' is NA"),
            (np.nan, "x is missing (NaN)."),
            (np.float32("nan"), "x is missing (NaN)."),
            (pd.NA, "x is missing (NA)."),
            (pd.NaT, "x is missing (NaT)."),
            (None, "x is None, not an image."),
            (1.5, "x is a float, not an image."),
        ],
    )
    def test_what_is_missing_is_named(self, row, said):
        assert said in error_of(to_image, row, "x")

    def test_what_is_missing_in_several(self):
        gaps = [np.nan, "photos/a.png"]
        for several in (pd.Series(gaps), pd.DataFrame({"image": gaps}).image):
            assert "x[0] is missing (NaN)." in error_of(to_images, several, "x")
        assert "x[1] is None" in error_of(to_images, {"image": ["photos/a.png", None]}, "x")
        for table in (pd.DataFrame({"image": gaps}), [{"image": None}]):
            assert "x[0] is a row without an image: 'image' is" in error_of(to_images, table, "x")

    def test_text_of_a_drawing(self):
        for text in ("<svg xmlns='http://www.w3.org/2000/svg'/>", "<?xml version='1.0'?>\n<svg/>"):
            message = error_of(to_images, text, "x")
            assert (
                "is an SVG drawing. Save it as a PNG first, or draw it: resvg_py.svg_to_bytes("
                in message
            )
            assert "folder" not in message

    def test_masked_values(self):
        pixels = np.ma.masked_array(np.full((2, 2, 3), 255, np.uint8), mask=False)
        assert to_image(pixels, "x").image.getpixel((0, 0)) == (255, 255, 255)
        pixels[0, 0] = np.ma.masked
        assert "x has masked values, which are no pixels" in error_of(to_image, pixels, "x")


class TestTables:
    def check(self, table):
        assert seen(table) == [RED, BLUE]
        items = items_of(table, "table")
        assert [row.label for row in items.records] == ["red", "blue"]
        assert are_images("Is this {{row.label}}?", items)
        assert seen(list(items.values)) == [RED, BLUE]
        assert items.names == ("table[0]", "table[1]")

    @pytest.mark.filterwarnings("ignore")  # of dill, about PyArrow
    def test_datasets(self):
        import datasets
        import pyarrow as pa

        features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
        rows = [{**row, "image": {"bytes": row["image"], "path": None}} for row in ROWS]
        arrow = pa.Table.from_pylist(rows, features.arrow_schema)
        # Without one, a fingerprint is made, for which not every dill can pickle PyArrow.
        table = datasets.Dataset(datasets.table.InMemoryTable(arrow), fingerprint="rows")
        self.check(table)
        assert seen(table[1]) == [BLUE]
        assert seen(table["image"]) == [RED, BLUE]
        assert seen(table[:2]["image"]) == [RED, BLUE]
        assert isinstance(items_of(table, "x").values[0], dict)  # not decoded before its turn
        self.check(table.to_iterable_dataset())
        splits = datasets.DatasetDict(train=table)
        assert error_of(to_images, splits, "x") == "x has the splits train. Choose one: x['train']."

    @pytest.mark.parametrize("image", [png(GREEN), "photos/a.png", STORED[1]], ids=type)
    def test_pandas(self, image):
        table = pd.DataFrame({"image": [png(RED), image], "label": ["red", "green"]})
        assert seen(table.image) == [RED, GREEN]
        assert seen(table.set_index("label").image) == [RED, GREEN]
        assert seen(table.loc[1]) == [GREEN]
        assert seen(table) == [RED, GREEN]
        message = error_of(to_images, table.label, "x")
        assert message.startswith("x[0]: red: no such file")
        for other in (table.label.str.len(), table.set_axis(["x", "y"]).label):
            assert "x is a Series, not an image." in error_of(to_images, other, "x")
        twice = pd.Series({"left": image, "right": image, "label": 3})
        assert "is a row with several images: 'left', 'right'" in error_of(to_images, twice, "x")

    def test_polars(self):
        import polars as pl

        table = pl.DataFrame(ROWS)
        self.check(table)
        self.check(table.lazy())
        assert seen(table["image"]) == [RED, BLUE]
        assert seen(table["image"][1]) == [BLUE]
        assert seen(pl.Series("x", STORED)) == [RED, GREEN]

    def test_pyarrow(self):
        import pyarrow as pa

        table = pa.Table.from_pylist(ROWS)
        self.check(table)
        assert seen(table["image"]) == [RED, BLUE]
        assert seen(table["image"][1]) == [BLUE]
        assert seen(pa.array(STORED)[0]) == [RED]
        assert len(items_of(table["image"], "x")) == 2

    def test_a_table_without_images_is_one_of_values(self):
        import polars as pl

        items = items_of(pl.DataFrame({"label": ["a", "b"]}), "x")
        assert not are_images("Is this {{row.label}}?", items)

    def test_xarray(self):
        import xarray

        pixels = np.zeros((4, 5, 3), np.uint8)
        pixels[..., 1] = 255
        assert seen(xarray.DataArray(pixels, dims=("y", "x", "band"))) == [GREEN]

    def test_an_array_of_objects(self):
        array = np.empty(2, object)
        array[:] = [Image.new("RGB", (2, 2), RED), "photos/a.png"]
        assert seen(array) == [RED, GREEN]

    def test_an_array_that_numpy_makes_of_images(self):
        red, blue = (Image.new("RGB", (2, 3), colour) for colour in (RED, BLUE))
        array = np.array([red, blue], dtype=object)
        assert array.ndim == 4
        assert seen(array) == [RED, BLUE]
        assert seen(array[1]) == [BLUE]
        assert colours(to_image(array[:1], "x")) == [RED]

    def test_an_array_of_paths(self):
        assert seen(np.array(["photos/a.png", "photos/a.png"])) == [GREEN, GREEN]
        assert seen(np.array([b"photos/a.png"])) == [GREEN]

    @pytest.mark.parametrize(
        "row",
        [
            {"images": [Image.new("RGB", (2, 2), RED), Image.new("RGB", (2, 2), BLUE)], "n": 1},
            {"image": [{"bytes": png(RED), "path": None}, {"bytes": png(BLUE), "path": None}],
             "label": ["cat", "dog"]},
            {"files": ["red.png", "blue.png"], "n": [1, 2]},
        ],
        ids=["of several images", "a slice of rows", "of paths"],
    )  # fmt: skip
    def test_a_list_in_a_row(self, row):
        Image.new("RGB", (2, 2), BLUE).save("blue.png")
        assert seen(row) == [RED, BLUE]

    def test_two_lists_in_a_row(self):
        row = {"left": [png(RED)], "right": [png(BLUE)]}
        assert "x is a dict, not an image" in error_of(to_images, row, "x")

    def test_pixels_in_a_row(self):
        pixels = np.zeros((2, 2, 3), np.uint8)
        pixels[..., 2] = 255
        assert seen({"image": pixels, "label": 3}) == [BLUE]
        assert seen({"image": torch.from_numpy(pixels).permute(2, 0, 1), "n": torch.tensor(3)}) == [
            BLUE
        ]


class TestUploads:
    def test_of_colab(self):
        assert seen({"a.png": png(RED), "b.png": png(BLUE)}) == [RED, BLUE]
        (photo,) = to_images({"my cat.png": png(RED)}, "uploaded")
        assert photo.source == "my cat.png"

    def test_of_ipywidgets_7(self):
        uploaded = {"a.png": {"metadata": {"name": "a.png"}, "content": png(GREEN)}}
        assert seen(uploaded) == [GREEN]

    def test_one_of_ipywidgets_8(self):
        assert seen({"name": "a.png", "type": "image/png", "content": memoryview(png(RED))}) == [
            RED
        ]


class TestWidgets:
    def test_an_image(self):
        assert seen(ipywidgets.Image(value=png(BLUE), format="png")) == [BLUE]

    def test_an_image_of_an_address(self):
        uri = "data:image/png;base64," + base64.b64encode(png(RED)).decode()
        assert seen(ipywidgets.Image(value=uri.encode(), format="url")) == [RED]


class TestBase64:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_text_of_an_image(self, kind):
        content = encoded(Image.new("RGB", (64, 64), "white"), kind)
        text = base64.b64encode(content).decode()
        wrapped = base64.encodebytes(content).decode()
        assert seen(text) == seen(wrapped) == ["#ffffff"]
        assert seen(text.encode()) == seen(text)
        of_urls = base64.urlsafe_b64encode(content).decode().rstrip("=")
        assert seen(of_urls) == ["#ffffff"]
        (photo,) = resolve_images(["text"], {"text": text})
        assert len(photo.source) < 100

    def test_text_of_something_else(self):
        text = base64.b64encode(bytes(3000)).decode()
        message = error_of(resolve_images, [text], {})
        assert "no such file" in message
        assert len(message) < 500


class TestCharts:
    @pytest.fixture
    def library(self, monkeypatch):
        """A stand-in of a library of charts, whose figures are drawn by `draw`."""

        def make(module, name, draw):
            method = "to_image" if module.startswith("plotly") else "save"
            cls = type(name, (), {method: draw})
            monkeypatch.setitem(sys.modules, module, ModuleType(module))
            monkeypatch.setattr(sys.modules[module], name, cls, raising=False)
            return cls()

        return make

    def test_they_are_drawn(self, library):
        figure = library("plotly.basedatatypes", "BaseFigure", lambda self, **_: png(RED))
        assert seen(figure) == [RED]

        def save(self, file, **_):
            file.write(png(BLUE))

        assert seen(library("altair", "TopLevelMixin", save)) == [BLUE]

    def test_what_draws_them_is_named(self, library):
        def fail(self, *arguments, **options):
            raise ValueError("Image export requires the kaleido package.\nSee https://x")

        figure = library("plotly.basedatatypes", "BaseFigure", fail)
        assert error_of(to_image, figure, "figure") == (
            "figure is a plotly figure, which needs the package kaleido to be drawn. "
            "Install it with: pip install --upgrade kaleido, and restart Python."
        )

    def test_a_chart_that_is_wrong_says_so(self, library):
        def fail(self, file, **_):
            raise ValueError("no such column")

        chart = library("altair", "TopLevelMixin", fail)
        assert error_of(to_image, chart, "x") == "x cannot be drawn: ValueError: no such column"

    def test_plotly_itself(self, monkeypatch):
        from plotly import graph_objects

        monkeypatch.setitem(sys.modules, "kaleido", None)
        figure = graph_objects.Figure(graph_objects.Scatter(x=[1, 2], y=[1, 2]))
        assert "needs the package kaleido" in error_of(to_image, figure, "figure")

    def test_altair_itself(self, monkeypatch):
        import altair as alt

        monkeypatch.setitem(sys.modules, "vl_convert", None)
        chart = alt.Chart(alt.Data(values=[{"a": 1}])).mark_bar()
        assert "needs the package vl-convert-python" in error_of(to_image, chart, "chart")
