"""Rows in a Parquet file: readable, resumed after any end, never lost, and not in memory."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq  # here, so that its import is no growth of memory
import pytest
from PIL import Image
from scripted_engine import ScriptedEngine

from glm4v_magic.core.errors import (
    ImageError,
    MapInterrupted,
    OptionError,
    SaveError,
)
from glm4v_magic.core.events import RowDone
from glm4v_magic.session.session import Session

PROMPT = "say {{item}}"


def session_with(said=str.upper):
    return Session(ScriptedEngine(said))


def items(count, start=0):
    return [f"item {number}" for number in range(start, count)]


def test_each_row_is_in_the_file(tmp_path):
    file = tmp_path / "rows.parquet"
    session = session_with(lambda text: '{"said": "' + text + '"}')
    rows = session.map(PROMPT, items(2500), format="json", save=file)
    frame = pd.read_parquet(file)
    assert list(frame["index"]) == list(range(2500))
    assert frame.answer[2499] == '{"said": "say item 2499"}'
    assert json.loads(frame.value[3]) == {"said": "say item 3"}
    assert frame.error.isna().all()
    assert set(frame.new_tokens) == {3}
    assert list(frame.prompt[:2]) == ["say item 0", "say item 1"]
    assert os.listdir(tmp_path) == ["rows.parquet"]
    assert len(rows) == 2500
    assert rows[7].value == {"said": "say item 7"}
    assert rows[7].item == "item 7"
    assert [row.index for row in rows[-2:]] == [2498, 2499]
    assert rows.path == file
    assert rows.read().equals(frame.drop(columns="key"))
    for column in ("answer", ["answer", "error"]):
        with pytest.raises(OptionError, match="their columns are not in memory") as caught:
            rows[column]
        assert caught.value.hint == "All of them as a DataFrame are .read(), which has columns."
        assert len(rows.read()[column]) == 2500  # as the message advises
    assert repr(rows) == f"<2,500 rows in {file}>"


def test_rows_of_a_file_that_was_changed_are_asked_again(tmp_path):
    file = tmp_path / "rows.parquet"
    session_with().map(PROMPT, items(3), save=file)
    table = pq.read_table(file)
    at, known = table.schema.get_field_index("finish_reason"), table.schema
    table = table.set_column(
        at, known.field(at), pa.array(["nonsense"] * 3).cast(known.field(at).type)
    )
    pq.write_table(table.replace_schema_metadata(known.metadata), file)
    with pytest.raises(OptionError, match=r"Give another name, or ask all rows again\."):
        session_with().map(PROMPT, items(3), save=file)[1]
    for way in ({"save": tmp_path / "others.parquet"}, {"save": file, "fresh": True}):
        again = session_with().map(PROMPT, items(3), **way)
        assert again[1].text == "SAY ITEM 1"


def test_a_saved_row_is_the_row(tmp_path):
    plain = session_with().map(PROMPT, items(3), choices=["SAY ITEM 0", "SAY ITEM 1"])
    saved = session_with().map(
        PROMPT, items(3), choices=["SAY ITEM 0", "SAY ITEM 1"], save=tmp_path / "rows.parquet"
    )
    for one, other in zip(plain, saved, strict=True):
        assert replace(one, failure=other.failure) == other
        assert one.error == other.error
    assert saved[2].error


def test_only_what_is_missing_is_asked_again(tmp_path):
    file = tmp_path / "rows.parquet"

    def said(text):
        if text.endswith("3"):
            raise ImageError("no such image")
        return text

    first = session_with(said)
    assert first.map(PROMPT, items(5), save=file)[3].error == "no such image"
    second = session_with()
    stream = second.stream_map(PROMPT, items(8), save=str(file))
    done = [event for event in stream if isinstance(event, RowDone)]
    rows = stream.result
    assert second.engine.asked == 4
    assert [row.text for row in rows] == [
        *("say item 0", "say item 1", "say item 2", "SAY ITEM 3", "say item 4"),
        *("SAY ITEM 5", "SAY ITEM 6", "SAY ITEM 7"),
    ]
    assert [row.reused for row in rows] == [True, True, True, False, True, False, False, False]
    assert (done[-1].progress.answered, done[-1].progress.reused) == (8, 4)
    assert list(pd.read_parquet(file).answer) == [row.text for row in rows]


def test_images_are_known_by_their_files_or_pixels(tmp_path):
    file, photo = tmp_path / "rows.parquet", tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(photo)

    def asked(*images):
        session = session_with()
        session.map("What?", list(images), save=file)
        return session.engine.asked

    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    assert asked(str(photo), red) == 2
    assert asked(photo, red.copy()) == 0
    assert asked(photo, blue) == 1
    Image.new("RGB", (19, 9)).save(photo)
    assert asked(photo, blue) == 1
    encoded = io.BytesIO()
    red.save(encoded, "png")
    assert asked(encoded.getvalue(), np.asarray(blue), str(photo)) == 0  # the same pixels
    assert asked(red, np.zeros((8, 8, 3), np.uint8)) == 1


def test_a_page_is_known_by_its_document(tmp_path):
    file, document = tmp_path / "rows.parquet", tmp_path / "a.pdf"

    def asked(colour=None):
        if colour is not None:
            Image.new("RGB", (9, 9), colour).save(document, save_all=True)
        session = session_with()
        session.map("What?", [f"{document}#page=1"], save=file)
        return session.engine.asked

    assert [asked("red"), asked(), asked("blue")] == [1, 0, 1]


def test_answers_to_something_else_are_not_replaced(tmp_path):
    file = tmp_path / "rows.parquet"
    session = session_with()
    session.map(PROMPT, items(3), save=file)
    with pytest.raises(
        OptionError, match=r"sampling options\. Give another name \(save\), or ask all rows again"
    ):
        session.map("tell {{item}}", items(3), temperature=0, save=file)
    session.map("tell {{item}}", items(3), temperature=0, save=tmp_path / "others.parquet")
    assert list(pd.read_parquet(file).answer) == ["SAY ITEM 0", "SAY ITEM 1", "SAY ITEM 2"]
    session.map("tell {{item}}", items(2), save=file, fresh=True)
    assert list(pd.read_parquet(file).answer) == ["TELL ITEM 0", "TELL ITEM 1"]


def asked_of(given, file, said=str.upper, **options):
    """Return the rows of a new session, and how many it had to ask."""
    session = session_with(said)
    rows = session.map(PROMPT, given, save=file, **options)
    return rows, session.engine.asked


@pytest.mark.parametrize(
    ("then", "asked", "besides"),
    [
        (["z", *"abcd"], 1, 0),
        ([*"dcba"], 0, 0),
        ([*"acd"], 0, 1),
        ([*"bxd"], 1, 2),
        ([*"aabcd"], 1, 0),
        ([*"xyz"], 3, 4),
    ],
    ids=str,
)
def test_rows_are_found_wherever_they_stand(tmp_path, then, asked, besides):
    file = tmp_path / "rows.parquet"
    asked_of([*"abcd"], file)
    before = pd.read_parquet(file).answer
    rows, count = asked_of(then, file, lambda text: text.upper() + "!")
    assert (count, rows.totals.besides) == (asked, besides)
    assert sum(row.reused for row in rows) == len(then) - asked
    assert [row.text[:5] for row in rows] == [f"SAY {each.upper()}" for each in then]
    frame = pd.read_parquet(file)
    assert list(frame.answer[: len(then)]) == [row.text for row in rows]
    assert set(before) <= set(frame.answer)  # what was answered is never overwritten
    assert [*frame["index"][: len(then)]] == [*range(len(then))]
    assert list(frame.item[: len(then)]) == [row.name for row in rows]
    assert len(rows.read()) == len(then)
    assert list(frame["index"].isna()) == [False] * len(then) + [True] * besides
    assert asked_of([*"abcd"], file)[1] == 0  # also what had no place among the items
    assert set(frame.answer) == set(pd.read_parquet(file).answer)


def test_files_of_a_folder_are_found_wherever_they_stand(tmp_path):
    photos = [tmp_path / f"{number}.png" for number in range(4)]
    for number, photo in enumerate(photos):
        Image.new("RGB", (9 + number, 9)).save(photo)
    asked_of(photos[1:], tmp_path / "rows.parquet")
    assert asked_of(photos, tmp_path / "rows.parquet")[1] == 1
    pixels = [Image.open(photo).convert("RGB") for photo in photos]
    asked_of(pixels[1:], tmp_path / "pixels.parquet")
    assert asked_of(pixels[::-1], tmp_path / "pixels.parquet")[1] == 1


def test_a_stopped_run_over_other_items_keeps_what_it_has_not_reached(tmp_path):
    file = tmp_path / "rows.parquet"
    asked_of(items(6), file, "once {}".format)
    with pytest.raises(MapInterrupted) as stopped:
        asked_of(["item 9", "item 2", "item 8", "item 7", "item 5"], file, stopped_at(7))
    rows = stopped.value.result
    assert [row.done for row in rows] == [True] * 3 + [False, True]
    assert rows[4].text == "once say item 5"
    assert list(pd.read_parquet(file)["index"].fillna(-1)) == [0, 1, 2, 4, *[-1] * 4]
    assert asked_of(items(10), file)[1] == 2  # 6 and 7


def test_equal_rows_keep_their_answers_apart(tmp_path):
    file = tmp_path / "rows.parquet"
    said = iter("abc")
    asked_of(["same"] * 3, file, lambda _: next(said))
    rows, count = asked_of(["other", *["same"] * 4], file)
    assert [row.text for row in rows] == ["SAY OTHER", "a", "b", "c", "SAY SAME"]
    assert count == 2


@pytest.mark.parametrize("others", [b"", b"hello\n", b"PAR1", b'{"a": 1}\n', b"\x00\xff\n" * 9])
def test_files_of_others_are_left_alone(tmp_path, others):
    for name in ("rows.parquet", "other.parquet.journal"):
        (tmp_path / name).write_bytes(others)
    for name in ("rows.parquet", "other.parquet") if others else ("rows.parquet",):
        for fresh in (False, True):
            with pytest.raises(OptionError, match=r"in the way: .*\. Move it elsewhere"):
                session_with().map(PROMPT, items(2), save=tmp_path / name, fresh=fresh)
    assert {each.read_bytes() for each in tmp_path.iterdir()} == {others}


def test_a_parquet_file_of_others_is_left_alone(tmp_path):
    file = tmp_path / "mine.parquet"
    pd.DataFrame({"index": [1], "answer": ["mine"]}).to_parquet(file)
    with pytest.raises(OptionError, match="holds no rows of a map"):
        session_with().map(PROMPT, items(2), save=file, fresh=True)
    assert list(pd.read_parquet(file).answer) == ["mine"]
    assert os.listdir(tmp_path) == ["mine.parquet"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rows.csv", r"'.*rows\.csv' names no Parquet file\. Its name ends in \.parquet\."),
        (".parquet", "names no Parquet file"),
        ("a\0.parquet", "names no Parquet file"),
        ("none/rows.parquet", r"There is no folder .*none\. Make it first\."),
        ("folder.parquet", r"is a folder\. Name a file that is to be written\."),
        ("x" * 300 + ".parquet", "cannot be written: File name too long"),
    ],
)
def test_a_name_that_cannot_be_written_is_refused_before_anything_is_asked(tmp_path, name, said):
    (tmp_path / "folder.parquet").mkdir()
    session = session_with()
    with pytest.raises(OptionError, match=said):
        session.map(PROMPT, items(2), save=os.path.join(tmp_path, name))
    assert session.engine.asked == 0
    assert os.listdir(tmp_path) == ["folder.parquet"]


def test_a_folder_that_is_made_first_takes_a_file(tmp_path):
    file = tmp_path / "none" / "rows.parquet"
    with pytest.raises(OptionError, match=r"Make it first\."):
        session_with().map(PROMPT, items(2), save=file)
    file.parent.mkdir()
    assert len(session_with().map(PROMPT, items(2), save=file)) == 2
    (folder := tmp_path / "folder.parquet").mkdir()
    with pytest.raises(OptionError, match=r"Name a file that is to be written\."):
        session_with().map(PROMPT, items(2), save=folder)
    assert len(session_with().map(PROMPT, items(2), save=tmp_path / "rows.parquet")) == 2


def test_a_folder_that_cannot_be_written(tmp_path):
    session = session_with()
    with pytest.raises(OptionError, match=r"cannot be written: "):
        session.map(PROMPT, items(2), save="/proc/rows.parquet")
    assert session.engine.asked == 0


def test_logprobs_are_not_saved(tmp_path):
    with pytest.raises(OptionError, match="logprobs does not go with save"):
        session_with().map(PROMPT, items(2), save=tmp_path / "rows.parquet", logprobs=2)


def stopped_at(count):
    """Return what says all but the rows from `count` on, at which Stop is pressed."""

    def said(text):
        if text.endswith(f" {count}"):
            raise KeyboardInterrupt
        return text.upper()

    return said


def test_an_interrupted_run_leaves_a_readable_file_and_goes_on(tmp_path):
    file = tmp_path / "rows.parquet"
    with pytest.raises(MapInterrupted) as stopped:
        session_with(stopped_at(7)).map(PROMPT, items(10), save=file)
    assert (stopped.value.answered, len(stopped.value.result)) == (7, 10)
    assert [row.done for row in stopped.value.result] == [True] * 7 + [False] * 3
    assert len(pd.read_parquet(file)) == 7
    session = session_with()
    assert all(row.done for row in session.map(PROMPT, items(10), save=file))
    assert session.engine.asked == 3


CRASHING = """
import os, sys
sys.path.insert(0, sys.argv[1])
from scripted_engine import ScriptedEngine
from glm4v_magic.session.session import Session
def said(text):
    if text.endswith(" 1500"):
        os._exit(9)
    return text.upper()
items = [f"item {number}" for number in range(2000)]
Session(ScriptedEngine(said)).map("say {{item}}", items, save=sys.argv[2], fresh="f" in sys.argv)
"""


@pytest.mark.parametrize("earlier", [False, True])
def test_after_a_crash_only_the_rest_is_asked(tmp_path, earlier):
    file = tmp_path / "rows.parquet"
    if earlier:  # the file has answers to another question, which were to be replaced
        session_with().map("tell {{item}}", items(5), save=file)
    tests = str(Path(__file__).parents[1])
    code = [sys.executable, "-c", CRASHING, tests, str(file), "f" if earlier else ""]
    assert subprocess.run(code, check=False).returncode == 9
    journal = tmp_path / "rows.parquet.journal"
    with journal.open("ab") as torn:
        torn.write(b'{"index": 1500, "key"')
    header, *lines, _ = journal.read_text().splitlines()
    assert "asked" in json.loads(header)
    assert [json.loads(line)["answer"] for line in lines] == [
        f"SAY ITEM {number}" for number in range(1500)
    ]
    session = session_with()
    rows = session.map(PROMPT, items(2000), save=file)
    assert session.engine.asked == 500
    assert [row.text for row in rows] == [f"SAY ITEM {number}" for number in range(2000)]
    assert list(pd.read_parquet(file).answer) == [row.text for row in rows]
    assert os.listdir(tmp_path) == ["rows.parquet"]


@pytest.mark.parametrize(
    "damage",
    [
        {"boxes": "nonsense"},
        {"boxes": '[{"label": "a"}]'},
        {"choices": '{"a": "b"}'},
        {"finish_reason": "bored"},
        {"key": "x"},
        {"index": -1},
        {"new_tokens": "many"},
        {"model": None},
    ],
    ids=str,
)
def test_a_damaged_line_of_the_journal_is_asked_again(tmp_path, damage):
    running = tmp_path / "running.parquet.journal"
    with session_with().stream_map(PROMPT, items(2), save=tmp_path / "running.parquet") as stream:
        for _ in range(2):
            next(event for event in stream if isinstance(event, RowDone))
        header, first, second = running.read_text().splitlines()
    spoiled = json.dumps({**json.loads(first), **damage})
    file, journal = tmp_path / "rows.parquet", tmp_path / "rows.parquet.journal"
    journal.write_text("\n".join([header, spoiled, second, ""]))
    session = session_with()
    rows = session.map(PROMPT, items(2), save=file)
    assert session.engine.asked == 1
    assert [row.text for row in rows] == ["SAY ITEM 0", "SAY ITEM 1"]


def test_a_damaged_file_is_left_alone(tmp_path):
    file = tmp_path / "rows.parquet"
    session_with().map(PROMPT, items(2), save=file)
    data = file.read_bytes()
    spoiled = data[:4] + b"\xff" * (len(data) // 2) + data[4 + len(data) // 2 :]
    for damaged in (spoiled, data[:-9], data[:9] + data[-9:]):
        file.write_bytes(damaged)
        with pytest.raises(OptionError, match=r"is damaged, or no Parquet file\. Move it"):
            session_with().map(PROMPT, items(2), save=file)
        assert file.read_bytes() == damaged


def test_a_damaged_row_of_a_file_is_named_in_one_line(tmp_path):
    file = tmp_path / "rows.parquet"
    session_with().map(PROMPT, items(2), save=file)
    table = pq.read_table(file)
    place = table.schema.get_field_index("boxes")
    spoiled = pa.array(["nonsense", None], pa.string())
    pq.write_table(table.set_column(place, table.schema.field(place), spoiled), file)
    with pytest.raises(OptionError, match=r"^Row 0 of .* has 'nonsense' for 'boxes': .*") as caught:
        session_with().map(PROMPT, items(2), save=file)
    assert "\n" not in str(caught.value)


@pytest.fixture
def little_room():
    """Let files grow to 20,000 bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def failed(session, count, file):
    """Return the error of a run that cannot be saved, and its latest progress."""
    latest = None
    try:
        for event in session.stream_map(PROMPT, items(count), save=file):
            latest = event.progress if isinstance(event, RowDone) else latest
    except SaveError as error:
        return str(error), latest
    raise AssertionError("it was saved")


def test_a_full_disk_loses_nothing(tmp_path, little_room):
    file = tmp_path / "rows.parquet"
    session = session_with()
    said, progress = failed(session, 100, file)
    assert said.startswith(f"{file} cannot be written: File too large. What was answered is")
    kept = said.partition("latest row in ")[2].partition(";")[0]
    assert (tmp_path / kept).exists()
    asked = session.engine.asked
    assert 10 < asked < 100
    assert progress.answered == asked
    rows = progress.result()
    assert [row.done for row in rows] == [True] * asked + [False] * (100 - asked)
    assert rows[asked - 1].text == f"SAY ITEM {asked - 1}"
    saved = len(pd.read_parquet(file)) if file.exists() else asked - 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert all(row.done for row in session.map(PROMPT, items(100), save=file))
    assert session.engine.asked == asked + 100 - saved
    assert len(pd.read_parquet(file)) == 100


def test_a_folder_that_vanishes_loses_nothing(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    file = folder / "rows.parquet"

    def said(text):
        if text.endswith(" 5"):
            (folder / "rows.parquet.journal").unlink()
            folder.rmdir()
        return text.upper()

    error, progress = failed(session_with(said), 9, file)
    assert error.startswith(f"{file} cannot be written: the folder or the file is gone.")
    assert [row.text for row in progress.result()[:6]] == [f"SAY ITEM {n}" for n in range(6)]


def test_two_runs_do_not_write_one_file(tmp_path):
    file = tmp_path / "rows.parquet"
    stream = session_with().stream_map(PROMPT, items(3), save=file)
    next(stream)
    with pytest.raises(OptionError, match=r"Give another name, or wait for its end\."):
        session_with().map(PROMPT, items(3), save=file)
    assert len(session_with().map(PROMPT, items(3), save=tmp_path / "others.parquet")) == 3
    stream.close()
    assert len(session_with().map(PROMPT, items(3), save=file)) == 3


def test_a_dataframe_gives_saved_rows_too(tmp_path):
    frame = pd.DataFrame({"name": ["a", "b"]}, index=["x", "y"])
    rows = session_with().map("{{row.name}}?", frame, save=tmp_path / "rows.parquet")
    assert [row.name for row in rows] == ["row x", "row y"]
    assert [row.text for row in rows] == ["A?", "B?"]
    plain = session_with().map("{{row.name}}?", frame, temperature=0)
    greedy = session_with().map(
        "{{row.name}}?", frame, temperature=0, save=tmp_path / "greedy.parquet"
    )
    pd.testing.assert_frame_equal(greedy.read().drop(columns="seed"), plain.drop(columns="seed"))
    named = session_with().map("{{item}}?", frame.name, save=tmp_path / "names.parquet").read()
    assert list(named.index) == ["x", "y"]
    assert list(named.columns[:2]) == ["name", "answer"]


def test_equal_rows_are_all_asked_and_all_kept(tmp_path):
    session = session_with()
    rows = session.map(PROMPT, ["same"] * 3, save=tmp_path / "rows.parquet")
    assert [row.text for row in rows] == ["SAY SAME"] * 3
    assert session.engine.asked == 3


def growth(tmp_path, count, since):
    """Return the most bytes that all rows after `since` take, answers of 3,000 bytes each."""
    given = [f"{number}" for number in range(count)]
    session = Session(ScriptedEngine(lambda text: text + "x" * 3000, tells=False))
    done = 0
    for event in session.stream_map("{{item}}", given, save=tmp_path / "rows.parquet"):
        done += isinstance(event, RowDone)
        if done == since and not tracemalloc.is_tracing():
            tracemalloc.start()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("glm4v_magic.mapping.row_file.ROWS_IN_A_GROUP", 50)
    assert growth(tmp_path, 600, 100) < 800_000  # not 1.5 MB and more


@pytest.mark.nightly
def test_memory_of_many_rows(tmp_path):
    assert growth(tmp_path, 100_000, 90_000) < 12_000_000  # not 30 MB
    assert len(pd.read_parquet(tmp_path / "rows.parquet", columns=["index"])) == 100_000
