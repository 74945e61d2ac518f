"""Sizes for people: two decimals of GiB, and smaller units where these would be almost 0."""

from __future__ import annotations

import pytest

from glm4v_magic.core.wording import columns, one_unit, padded, printable, sized

GIB = 2**30


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0.00 GiB"),
        (1, "0.00 KiB"),
        (52_000, "50.78 KiB"),
        (3 * 2**20, "3.00 MiB"),
        (GIB // 2, "0.50 GiB"),
        (26 * GIB, "26.00 GiB"),
    ],
)
def test_a_size_is_in_gib_unless_that_would_say_nothing(size, said):
    assert sized(size) == said


def test_sizes_beside_each_other_have_one_unit():
    assert one_unit(15 * GIB, 26 * GIB) == ["15.00", "26.00 GiB"]
    assert one_unit(2**20, 26 * GIB) == ["0.00", "26.00 GiB"]
    assert one_unit(3 * 2**20, 2**20) == ["3.00", "1.00 MiB"]


@pytest.mark.parametrize(
    ("text", "wide"),
    [("ab", 2), ("图 片", 5), ("ｆ", 2), ("e\u0301", 1), ("é", 1), ("🙂", 2), ("", 0)],
)
def test_columns_of_a_terminal(text, wide):
    assert columns(text) == wide
    assert padded(text, 6) == text + " " * (6 - wide)


def test_text_cannot_turn_round_what_stands_behind_it():
    assert printable("a\u202eb\u2066c\x1b[2J שלום") == "abc[2J שלום"
