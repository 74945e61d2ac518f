"""Rows as Python writes them: short, without whole images."""

from __future__ import annotations

from glm4v_magic.core.rows import AnsweredRow, Rows

DATA = b"\x89PNG" * 5120


def test_rows_write_neither_whole_images_nor_all_of_them():
    rows = Rows(AnsweredRow(number, f"items[{number}]", DATA, "What?") for number in range(25))
    assert repr(rows[3]).startswith(
        "AnsweredRow(index=3, name='items[3]', item=<bytes, 20.0 KiB>, prompt='What?', answer=None"
    )
    assert repr(rows).count("<bytes, 20.0 KiB>") == 20
    assert repr(rows).endswith(", and 5 more rows]")
    assert repr(Rows(rows[:2])) == repr(rows[:2])


def test_what_is_in_an_item_is_shortened():
    item = {"image": {"bytes": bytearray(DATA)}, "text": "x" * 500}
    said = repr(AnsweredRow(0, "", item, ""))
    assert "'bytes': <bytearray, 20.0 KiB>" in said
    assert len(said) < 400
