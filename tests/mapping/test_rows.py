"""What the rows of --over are, and what each of them is asked. Nothing is asked here."""

from __future__ import annotations

import _thread
import base64
import datetime as dt
import io
import re
import signal
from itertools import chain, count, repeat

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from datasets import Dataset
from ipywidgets import FileUpload
from PIL import Image

from glm4v_magic.calls.prompt import names_in
from glm4v_magic.core.errors import ImageError, OptionError, PromptError
from glm4v_magic.core.remarks import PYTHON, worded
from glm4v_magic.images.values import to_image
from glm4v_magic.mapping.items import are_images, items_of, plan


def test_names_are_found_without_evaluating():
    assert names_in(r"{{item}} {{[x for x in rows][0]}} \{{no}} {json}") >= {"item", "rows"}
    assert "no" not in names_in(r"\{{no}}")


def test_items_are_images_unless_the_prompt_uses_item():
    items = items_of(["a.png", "b.png"], "files")
    assert are_images("What is {{index}}?", items)
    assert not are_images("Is {{item}} a name?", items)
    assert are_images("Is {{item}} a name?", items, raw=True)
    records = items_of([{"name": "x"}], "records")
    assert not are_images("{{row.name}}", records)


def test_files_are_always_images_in_natural_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    for name in ("10.png", "2.PNG", "1.jpg", "note.txt", ".hidden.png"):
        (tmp_path / "p" / name).touch()
    folder, pattern = items_of("p", "p"), items_of("p/*.png", "p")
    assert folder.values == ("p/1.jpg", "p/2.PNG", "p/10.png")
    assert pattern.values == ("p/10.png",)
    assert are_images("{{item}}", folder)


def test_the_files_of_an_upload_are_items():
    upload = FileUpload(multiple=True)
    with pytest.raises(ImageError, match="up: nothing is uploaded yet"):
        items_of(upload, "up")
    when = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    upload.value = [
        {"name": name, "type": "", "size": 1, "content": memoryview(b"x"), "last_modified": when}
        for name in ("a.png", "b.png")
    ]
    of_colab = {"a.png": b"x", "b.png": b"x"}
    for value in (upload, upload.value, of_colab):
        items = items_of(value, "up")
        assert [row.prompt for row in plan("{{row.name}}", items, {})] == ["a.png", "b.png"]
        assert are_images("What is it?", items)


def test_rows_see_index_item_and_columns():
    frame = pd.DataFrame({"image": [1, 2], "two words": ["a", "b"], "items": [3, 4]})
    items = items_of(frame, "df", column="image")
    text = '{{index}} {{item}} {{row.items}} {{row["two words"]}} {{extra}}'
    assert [row.prompt for row in plan(text, items, {"extra": "!"})] == [
        "0 1 3 a !",
        "1 2 4 b !",
    ]


def test_some_failing_prompts_stay_in_their_rows():
    rows = plan("{{1 / item}}", items_of([1, 0], "numbers"), {})
    assert rows[0].prompt == "1.0"
    assert "division by zero" in worded(rows[1].failure, PYTHON)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("{{itm}}", "uses itm, which is not defined. Did you mean item?"),
        ("{{item", "is not closed"),
        ("{{row.nme}}", "row has no column nme. Did you mean name?"),
        ("{{row['nme']}}", "row has no column nme"),
        (" ", "empty"),
    ],
)
def test_prompts_that_fail_for_every_row_are_refused(prompt, said):
    items = items_of(pd.DataFrame({"name": ["a", "b"]}), "df", column="name")
    with pytest.raises(PromptError) as caught:
        plan(prompt, items, {})
    assert said in str(caught.value)


def test_an_interrupt_ends_the_reading_of_an_iterator():
    rest = iter(range(1_000))
    interrupt = map(_thread.interrupt_main, [signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):
        items_of(chain(interrupt, rest), "things")
    assert list(rest)


def test_a_whole_dataframe_needs_a_prompt_that_differs():
    items = items_of(pd.DataFrame({"name": ["a", "b"]}), "df")
    assert [row.prompt for row in plan("A {{row.name}}?", items, {})] == ["A a?", "A b?"]
    with pytest.raises(PromptError, match="Every row of df would be asked the same"):
        plan("What?", items, {})


def test_the_advice_to_rows_that_are_alike_can_be_taken():
    with io.BytesIO() as file:
        Image.new("RGB", (4, 3)).save(file, "PNG")
        written = base64.b64encode(file.getvalue()).decode()
    frame = pd.DataFrame({"image": [written, written], "name": ["a", "b"]})
    with pytest.raises(PromptError) as caught:
        plan("What?", items_of(frame, "df"), {})
    advice = 'Name the column that holds the images (column="image"), or write {{row.name}} in the'
    assert advice in str(caught.value)
    for row in plan("What?", items_of(frame, "df", column="image"), {}):
        assert row.is_image
        assert to_image(row.item, "df").image.size == (4, 3)
    assert len(plan("Is it {{row.name}}?", items_of(frame, "df"), {})) == 2


def test_the_only_column_of_images_in_a_whole_table_is_its_items():
    image = Image.new("RGB", (4, 3))
    columns = {"shown": [None, image], "name": ["a", "b"], "count": [1, None]}
    for table in (pd.DataFrame(columns, index=["x", "y"]), Dataset.from_dict(columns)):
        items = items_of(table, "df")
        assert are_images("What?", items)
        assert items.values[0] is None
        assert to_image(items.values[1], "df").image.size == image.size
        prompts = [row.prompt for row in plan("Is it {{row.name}}?", items, {})]
        assert prompts == ["Is it a?", "Is it b?"]
    gaps = [{"name": "a"}, {"shown": image, "name": "b"}]
    assert items_of(gaps, "rows").values == (None, image)
    with pytest.raises(PromptError, match="Every row of df would be asked the same"):
        plan("What?", items_of(pd.DataFrame({"name": ["a"]}), "df"), {})


def tables(columns):
    """Return columns as the table of each library, and as a list of dictionaries."""
    made = [pd.DataFrame(columns), pl.DataFrame(columns), pa.table(columns)]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [*made, Dataset.from_dict(columns), rows]


PNG = io.BytesIO()
Image.new("RGB", (2, 2)).save(PNG, "PNG")


@pytest.mark.parametrize(
    "cells",
    [
        [None, "a.png"],
        ["a.PNG", "b/c.jpg?size=3"],
        [None, "clip.mp4"],
        ["", "a.png"],
        [["a.png", "b.png"], None],
        [None, PNG.getvalue()],
        [[PNG.getvalue()] * 2, []],
    ],
)
def test_what_a_column_holds_or_names_is_sent_whatever_the_prompt_says_of_the_row(cells):
    for table in tables({"n": [1, 2], "cell": cells, "name": ["a", "b"]}):
        items = items_of(table, "df")
        rows = plan("Is it {{row.name}}?", items, {})
        assert [row.is_image for row in rows] == [True, True], type(table)
        own = [None if isinstance(row.item, float) else row.item for row in rows]  # NaN
        assert own == cells, type(table)
        assert [row.prompt for row in rows] == ["Is it a?", "Is it b?"]


def test_the_name_of_an_image_may_be_put_into_the_text():
    for table in tables({"file": ["a.png", "b.png"], "name": ["a", "b"]}):
        rows = plan("Is {{item}} a name of {{row.name}}?", items_of(table, "df"), {})
        assert not any(row.is_image for row in rows)
        assert rows[1].prompt == "Is b.png a name of b?"


def test_columns_without_images_are_values():
    for table in tables({"file": ["a.png", "notes.txt"], "name": ["a", None]}):
        assert not are_images("Is it {{row.name}}?", items_of(table, "df"))
    stored = [{"bytes": PNG.getvalue(), "path": None}, {"bytes": None, "path": "a.png"}]
    assert list(items_of(stored, "x").values) == stored  # images themselves, not rows


def test_of_several_columns_of_images_one_is_chosen():
    for columns in (
        {"one": ["a.png"], "two words": ["b.png"], "name": ["a"]},
        {"one": [PNG.getvalue()], "two words": [PNG.getvalue()], "name": ["a"]},
    ):
        for table in tables(columns):
            for prompt in ("What?", "Is it {{row.name}}?"):
                with pytest.raises(OptionError) as caught:
                    plan(prompt, items_of(table, "df"), {})
                assert str(caught.value) == (
                    "df has several columns of images: one, two words. "
                    "Name the one to ask about: column='one'."
                )
            chosen = items_of(table, "df", column="two words")
            assert list(chosen.values) == columns["two words"]
            assert are_images("Is it {{row.name}}?", chosen)


def test_variables_of_an_expression_are_not_those_of_the_row():
    items = items_of(["a.png"], "files")
    for own in (
        "[item for item in x]",
        "{item: 1 for item in x if item}",
        "[a for item in x for a in item]",
        "(lambda item, *row: item)(1)",
        "sorted(x, key=lambda item: -item)",
        "x.item + x['item'] + f(item=1)",
    ):
        assert are_images(f"Is it {{{{{own}}}}}?", items), own
    for used in (
        "[item for item in item]",
        "[a for a in x if a == item]",
        "(lambda a=item: a)()",
        "(lambda a: a + item)(1)",
        "[item for item in x] + [item]",
        "f'{item}'",
        "{item: 1 for a in x}",
        "+".join(["x"] * 300 + ["item"]),
    ):
        assert not are_images(f"Is it {{{{{used}}}}}?", items), used


@pytest.mark.parametrize("rows", [[{}, {}], pd.DataFrame(index=[0, 1])])
def test_rows_without_columns_are_given_some(rows):
    with pytest.raises(OptionError, match="such as") as caught:
        items_of(rows, "rows", column="image")
    (written,) = re.findall(
        r"It has none at all; rows with columns are such as (.+)\.", str(caught.value)
    )
    assert items_of(eval(written), "rows", column="image").values == ("cat.png",)


@pytest.mark.parametrize(
    ("value", "column", "said"),
    [
        ([], None, "things is empty: there is nothing to ask about"),
        ({}, None, "things is empty"),
        ("", None, "things is empty"),
        (iter(()), None, "things is empty: there is nothing to ask about. An iterator gives its"),
        (pd.DataFrame(), None, "things is empty"),
        (pd.DataFrame({"image": []}), "image", "things is empty"),
        (pd.Series([], dtype=object), None, "things is empty"),
        (pd.DataFrame(), "image", "There is no column 'image'. It has none at all; rows"),
        (5, None, "is of type int, not a list"),
        (count(), None, "has more than 1,000,000 items. Take the first of them: list(itertools.is"),
        (repeat("file.png"), None, "has more than 1,000,000 items"),
        (b"png", None, "is one bytes"),
        ({"a": 1}, None, "things is one dict. For its values write things.values()."),
        (np.zeros((3, 4, 4)), None, "is one image; put it into a list"),
        ([1], "image", "is not a table, so it has no column"),
        ("nowhere", None, "nowhere: no such folder. Give a list of images or values"),
        (" ", None, "An empty name names no folder. The current one is called '.'."),
        ("*.nothing", None, "It holds *.png (1)."),
        ("empty/*.nothing", None, "no file matches"),
        ("file.png", None, "is one file"),
        ("empty", None, "holds no images and no clips. An image is a file such as *.png"),
        (pd.DataFrame({"image": [1]}), "imge", "no column 'imge'. Did you mean image?"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "a", "two columns of the same name"),
    ],
)  # fmt: skip
def test_what_holds_no_items(value, column, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.png").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError) as caught:
        items_of(value, "things", column=column)
    assert said in str(caught.value)


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(_folder):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "closed").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(OptionError, match="closed cannot be read: permission denied"):
        items_of("closed", "closed")


def test_a_folder_or_variable_with_a_similar_name_is_proposed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(OptionError, match=r"Did you mean photos\?"):
        items_of("fotos", "fotos")


def test_dictionaries_are_values_or_images_by_what_the_prompt_uses():
    items = items_of([{"name": "x"}, {"name": "y"}], "records")
    assert [row.prompt for row in plan("{{row.name}}?", items, {})] == ["x?", "y?"]
    assert not plan("{{row.name}}?", items, {})[0].is_image
    assert plan("{{index}}?", items, {})[0].is_image
