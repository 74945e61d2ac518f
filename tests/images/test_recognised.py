"""What Tab calls an image is what a question takes as one."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.display import HTML
from IPython.display import Image as Shown
from matplotlib.figure import Figure
from photos import RED, data_uri, fill, png
from PIL import Image

from glm4v_magic.core.errors import ImageError
from glm4v_magic.images import to_images
from glm4v_magic.images.recognised import may_be_images

PNG, IMAGE = png(), Image.new("RGB", (4, 3), RED)
TEXT = base64.b64encode(png(size=(40, 30))).decode()
NUMBERS = np.linspace(0, 255, 5 * 6 * 3).reshape(5, 6, 3)
FILE = {"name": "a.png", "content": memoryview(PNG)}
STORED = {"bytes": PNG, "path": None}


def polars():
    import polars as pl

    return [
        pl.DataFrame({"image": [STORED], "n": [1]}),
        pl.Series([PNG]),
        pl.Series(["red.png"]),
        pl.Series([1, 2]),
        pl.DataFrame({"n": [1]}),
    ]


def arrow():
    import pyarrow as pa

    table = pa.table({"image": [STORED], "n": [1]})
    return [
        table,
        table["image"],
        table["image"][0],
        table["n"],
        table["n"][0],
        table.select(["n"]),
        table.to_batches()[0],
        pa.array(["red.png"]),
        pa.array(["red.png"])[0],
        pa.array([PNG])[0],
    ]


def datasets():
    import datasets as ds

    stored = ds.Dataset.from_dict({"image": [STORED], "n": [1], "name": ["red.png"]})
    images = stored.cast(
        ds.Features(image=ds.Image(), n=ds.Value("int64"), name=ds.Value("string"))
    )
    names = stored.select_columns(["n", "name"])
    two = ds.Dataset.from_dict({"a": [STORED], "b": [STORED]})
    return [
        images,
        images[0],
        images["image"],
        images["n"],
        images["name"],
        images[:1],
        names,
        names.select_columns(["n"]),
        ds.DatasetDict(train=images),
        two.cast(ds.Features(a=ds.Image(), b=ds.Image())),
    ]


def tables():
    frame = pd.DataFrame({"image": [IMAGE, PNG], "n": [1, 2]})
    rows = frame.to_dict("records")
    return [
        frame,
        frame["image"],
        frame["n"],
        frame.iloc[0],
        rows,
        rows[0],
        frame[["n"]],
        frame["n"].astype(str),
        pd.Series(["red.png"]),
        pd.Index(["red.png"]),
        pd.concat([frame] * 60),
        pd.Series({"a": 1, "b": "x"}),
    ]


def arrays():
    objects = np.empty(2, object)
    objects[:] = [IMAGE, IMAGE]
    normal = NUMBERS / 20 - 5
    plain = [
        NUMBERS.astype(np.uint8),
        NUMBERS / 255,
        NUMBERS > 9,
        NUMBERS,
        normal,
        NUMBERS.astype(int),
        NUMBERS.astype(complex),
        NUMBERS[0, 0],
        NUMBERS[:, :0],
        NUMBERS.astype(np.uint16) * 200,
        np.zeros((5, 6, 7)),
        np.full((4, 4), np.nan),
        np.str_("red.png"),
        np.float64(3),
        np.array([]),
    ]
    tensors = [
        torch.rand(3, 4, 5),
        torch.rand(3, 4, 5).bfloat16(),
        torch.rand(3, 4, 5) * 9,
        torch.rand(3, 4, 5, device="meta"),
        torch.rand(4, 4).to_sparse(),
        torch.rand(4),
        torch.uint8,
        torch.rand(3, 4, 5, dtype=torch.complex64),
        torch.rand(3, 4, 5, requires_grad=True),
    ]
    held = [objects, np.array([IMAGE, IMAGE], object), np.array(["red.png"]), np.array([{}, 1])]
    return [*plain, *tensors, *held]


def others():
    figure = Figure()
    empty = ipywidgets.Image(value=b"")
    return [
        IMAGE,
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        b"text",
        b"",
        TEXT,
        TEXT.encode(),
        "red.png",
        data_uri(PNG),
        "data:text/plain,a",
        "words",
        "x" * 5000,
        Path("red.png"),
        b"red.png",
        3,
        None,
        io.BytesIO(PNG),
        io.BytesIO(b"text"),
        io.StringIO("red.png"),
        figure,
        figure.subplots(2),
        figure.axes[0],
        figure.subfigures(1, 2)[0],
        Shown(PNG),
        HTML("a"),
        ipywidgets.Image(value=PNG),
        empty,
        ipywidgets.FileUpload(),
        [IMAGE, "red.png"],
        (IMAGE, 3),
        [[IMAGE]],
        [],
        [IMAGE] * 101,
        {"a.png": PNG},
        {"a.png": PNG, "b.png": PNG},
        {"a.png": {"content": PNG}},
        FILE,
        (FILE,),
        STORED,
        {"bytes": None, "path": None},
        {"images": [IMAGE, IMAGE]},
        {"a": IMAGE, "b": IMAGE},
        {"a": 1},
        {},
        {3},
        SimpleNamespace(read=None),
        Image,
        Image.Image,
        json,
        iter([IMAGE]),
        b"P5 1 1 255\n0",
        b"GIF89a",
        b"%!PS",
        b"\0\0\0\x20ftypisom" + bytes(90),
    ]


@pytest.mark.filterwarnings("ignore")  # of dill, about PyArrow
@pytest.mark.parametrize("made", [polars, arrow, datasets, tables, arrays, others])
def test_it_is_what_a_question_takes(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    wrong = []
    for number, value in enumerate(made()):
        try:
            is_taken = bool(to_images(value, "x"))
        except ImageError as error:
            is_taken = "cut short or damaged" in str(error)  # Tab does not decode
        if may_be_images(value) != is_taken:
            wrong.append((number, type(value).__name__, is_taken))
    assert not wrong


def test_open_files_stay_where_they_are(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    with (tmp_path / "a.png").open("rb") as binary, (tmp_path / "a.png").open() as text:
        binary.seek(7)
        assert may_be_images(binary)
        assert binary.tell() == 7
        assert not may_be_images(text)
    assert not may_be_images(binary)


def test_nothing_is_read_whole():
    class Large(bytearray):
        def __getitem__(self, part):
            assert len(range(*part.indices(len(self)))) < 5000
            return super().__getitem__(part)

    class Long(list):
        def __iter__(self):
            raise AssertionError

    assert may_be_images(Large(PNG * 100))
    assert not may_be_images({"a": 1, "b": Long(["red.png"] * 200)})
    assert not may_be_images(Long(["red.png"] * 200))
