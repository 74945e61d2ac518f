"""What is said below a table of rows: what there is to know of any of them, once."""

from __future__ import annotations

import pytest

from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.core.rows import AnsweredRow, Totals

MODEL = "This is a demo."
FIRST, SECOND = "http://a.b/v1 has not read the image: is it blind? Look.", "Empty answer: no word."


def below(*notices):
    rows = [
        AnsweredRow(
            at, f"items[{at}]", at, "Q", Answer("A", "Q", "m", Usage(1, 0, 1), "stop", notice=each)
        )
        for at, each in enumerate(notices)
    ]
    return Totals.of(rows).notice


@pytest.mark.parametrize(
    ("notices", "said"),
    [
        (["", ""], ""),
        ([MODEL, MODEL], MODEL),
        (["", FIRST, "", FIRST], FIRST),
        ([FIRST, SECOND, ""], f"{FIRST} {SECOND}"),
        ([f"{MODEL} {FIRST}", f"{MODEL} {SECOND}"], f"{MODEL} {FIRST} {SECOND}"),
    ],
)
def test_what_is_known_of_one_row_is_said_of_all_of_them_once(notices, said):
    assert below(*notices) == said


def test_not_without_end():
    said = below(*(f"It went on for about {count} tokens." for count in range(50)))
    assert said.count("It went on") == 8
