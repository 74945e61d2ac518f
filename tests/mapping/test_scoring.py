"""Answers held against expected ones: every number is one that was worked out by hand."""

from __future__ import annotations

import copy
import math
import pickle
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scripted_engine import ScriptedEngine

from glm4v_magic.core.conversation import Answer, Generation, Usage
from glm4v_magic.core.errors import EngineError, MapInterrupted, OptionError
from glm4v_magic.core.events import Finished, RowDone
from glm4v_magic.core.rows import AnsweredRow, Rows
from glm4v_magic.mapping.items import Record, items_of
from glm4v_magic.mapping.scoring import calibration_of, normal, score_of, truth_of
from glm4v_magic.session.session import Session

SHARES = {"a": 0.9, "b": 0.6, "c": 0.6, "d": 0.2}
"""Item -> probability of the choice ``yes``."""
ROWS = [
    {"q": "a", "label": "yes", "kind": "old"},
    {"q": "b", "label": "No", "kind": "old"},
    {"q": "c", "label": "yes", "kind": "new"},
    {"q": "d", "label": "no", "kind": "new"},
]


class Choosing(ScriptedEngine):
    """Answers ``yes`` with the probability of `SHARES`, and tells it unless it is `silent`."""

    silent = False

    def stream(self, requests, at_once=None, withdrawn=()):
        for number, request in enumerate(requests):
            self.asked += 1
            share = SHARES[request.conversation.question[0]]
            text = "yes" if share >= 0.5 else "no"
            choices = {} if self.silent else {"yes": share, "no": 1 - share}
            yield Finished(Generation(text, Usage(7, None, 1), "stop", choices=choices), number)


def evaluate(data=ROWS, engine=None, **options):
    session = Session(engine or Choosing())
    options = {"answer": "label", "choices": ["yes", "no"]} | options
    return session.evaluate(data, "{{row.q}}?", **options)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes.", "yes"),
        ("  the\n RED  circle ", "The red circle"),
        ("“Red”", "red"),
        ("**Red**", "red"),
        ("'red'", "RED"),
        ("ＡＢＣ１", "abc1"),
        ("Straße", "STRASSE"),
        ("红色。", "红色"),
        ("5 %", "5 %"),
    ],
)
def test_what_is_the_same_when_compared(one, other):
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("red", "reds"), ("-5", "5"), ("1.5", "15"), ("the red", "red"), ("dogs'", "dog"), ("?", "!")],
)
def test_what_is_not(one, other):
    assert normal(one) != normal(other)


def test_scores_by_hand():
    found = evaluate(by="kind")
    assert [row.is_right for row in found.rows] == [True, False, True, True]
    assert (found.score.rows, found.score.right, found.accuracy) == (4, 3, 0.75)
    kinds = {each.name: (each.score.right, each.score.rows) for each in found.kinds}
    assert kinds == {"old": (1, 2), "new": (2, 2)}
    assert [*kinds] == ["new", "old"]
    # Expected in rows, given in columns.
    assert found.confusion.expected == found.confusion.said == ("yes", "no")
    assert found.confusion.counts == ((2, 0), (1, 1))
    assert [row.index for row in found.wrong] == [1]
    assert (found.failed, found.unknown, found.unfinished) == (0, 0, 0)
    assert isinstance(found.answers, Rows)
    assert [row.answer.choices["yes"] for row in found.answers] == [*SHARES.values()]


def test_the_calibration_by_hand():
    # Probabilities of what was said: 0.9 right, 0.6 wrong, 0.6 right, 0.8 right.
    found = evaluate(bins=5).calibration
    filled = {
        each.high: (each.rows, each.right, each.confidence) for each in found.bins if each.rows
    }
    assert filled == {0.6: (2, 1, 0.6), 0.8: (1, 1, 0.8), 1.0: (1, 1, 0.9)}
    assert found.ece == pytest.approx((2 * 0.1 + 0.2 + 0.1) / 4)
    assert len(found.bins) == 5
    assert len(evaluate().calibration.bins) == 10


def test_a_bin_ends_with_its_upper_end():
    pairs = [(0.0, False), (0.25, True), (0.2500001, True), (0.5, False), (1.0, True)]
    assert [each.rows for each in calibration_of(pairs, 4).bins] == [2, 2, 0, 1]
    assert [calibration_of([(at / 10, True)], 10).bins[at - 1].rows for at in range(1, 11)] == [
        1
    ] * 10
    assert calibration_of([]) is None


def test_answers_that_are_right_as_often_as_they_say_have_no_error():
    pairs = [(0.75, at < 3) for at in range(4)] + [(0.5, at < 2) for at in range(4)]
    assert calibration_of(pairs).ece == 0
    assert calibration_of([(1.0, False)]).ece == 1


@pytest.mark.parametrize(("rows", "right"), [(50, 40), (200, 20), (9, 5)])
def test_the_interval_is_that_of_resampled_rows(rows, right):
    """The known distribution: of resamples of `right` ones and zeros, drawn row by row."""
    generator = np.random.default_rng(1)
    ones = np.arange(rows) < right
    means = ones[generator.integers(rows, size=(20_000, rows))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    score = score_of(rows, right)
    assert score.low == pytest.approx(low, abs=1.01 / rows)  # a row more or less
    assert score.high == pytest.approx(high, abs=1.01 / rows)
    spread = 1.96 * math.sqrt(score.accuracy * (1 - score.accuracy) / rows)
    assert score.high - score.low == pytest.approx(2 * spread, rel=0.25)
    assert score_of(rows, right) == score  # the same draws


def test_the_interval_where_nothing_is_left_to_chance():
    assert (score_of(7, 7).low, score_of(7, 0).high) == (1, 0)
    nothing = score_of(0, 0)
    assert (nothing.accuracy, nothing.low, nothing.high) == (None, 0, 1)


def test_free_answers_are_compared_as_texts():
    data = pd.DataFrame({"q": ["Ja.", "nein", "3"], "label": ["ja", "Nö", 3.0]})
    found = evaluate(data, ScriptedEngine(lambda prompt: prompt[:-1]), choices=None)
    assert [row.is_right for row in found.rows] == [True, False, True]
    assert found.confusion is None
    assert found.calibration is None


@pytest.mark.parametrize(
    ("said", "expected", "is_right"),
    [
        ("3.0", 3.0, True),
        ("3", 3.0, True),
        ("3.0.", 3, True),
        ("2.50", Decimal("2.5"), True),
        ("0.1", np.float32(0.1), True),
        ("3", np.int64(3), True),
        ("30", 3.0, False),
        ("three", 3, False),
        ("1", True, False),
        ("3.0", "3", False),
        ("2020-01-01", pd.Timestamp("2020-01-01"), True),
        ("2020-01-01 10:30:00", pd.Timestamp("2020-01-01 10:30"), True),
    ],
)
def test_numbers_and_dates_are_compared_as_such(said, expected, is_right):
    answer = Answer(said, "?", "m", Usage(1, 1, 1), "stop")
    truth = truth_of(items_of([{"label": expected}], "rows"), "label")
    assert truth.scored(AnsweredRow(0, "a", "a", "?", answer)).is_right is is_right


def test_choices_of_numbers_are_those_numbers():
    truth = truth_of(items_of([{"label": 3.0}], "rows"), "label", choices=("3.0", "2.5"))
    answer = Answer("3.0.", "?", "m", Usage(1, 1, 1), "stop")
    scored = truth.scored(AnsweredRow(0, "a", "a", "?", answer, "None of the choices."))
    assert (scored.is_right, scored.fault) == (True, "")


def test_json_is_compared_by_value():
    data = [
        {"q": '{"n": 1, "a": [2]}', "label": {"a": [2], "n": 1}},
        {"q": '{"n": 1}', "label": '{"n":1}'},
        {"q": '{"n": [true]}', "label": {"n": [1]}},
        {"q": '{"n": [1]}', "label": {"n": [1.0]}},
        {"q": "none", "label": "{}"},
        {"q": '{"n": 1}', "label": "no JSON"},
    ]
    found = evaluate(data, ScriptedEngine(lambda p: p[:-1]), choices=None, format="json")
    assert [row.is_right for row in found.rows] == [True, True, False, True, False, False]
    assert "holds no JSON" in found.rows[4].error


def test_rows_that_do_not_count_are_told_apart_and_kept():
    data = pd.DataFrame({"q": ["a", "b", "c", "d"], "label": ["YES", None, float("nan"), "no."]})

    def said(prompt):
        if prompt.startswith("d"):
            raise EngineError("No such row.")
        return "yes"

    found = evaluate(data, ScriptedEngine(said))
    assert [row.is_right for row in found.rows] == [True, None, None, None]
    assert (found.score.rows, found.failed, found.unknown) == (1, 1, 2)
    assert found.rows[3].error == "No such row."
    assert found.rows[1].answer == "yes"
    assert found.confusion.counts == ((1, 0), (0, 0))
    frame = found.to_dataframe()
    assert [*frame["answer"]] == ["yes", "yes", "yes", None]
    assert [*frame["is_right"]] == [True, None, None, None]


def test_an_answer_that_is_not_in_its_form_is_wrong_whatever_it_says():
    truth = truth_of(items_of(ROWS, "rows"), "label")
    answer = Answer("yes", "?", "m", Usage(1, 1, 1), "stop")
    assert truth.scored(AnsweredRow(0, "a", "a", "?", answer)).is_right
    failed = AnsweredRow(0, "a", "a", "?", answer, "No match of the regex.")
    assert truth.scored(failed).is_right is False


class Boom:
    def __str__(self):
        raise RuntimeError("boom")


@pytest.mark.parametrize("options", [{"answer": "bad"}, {"by": "bad"}])
def test_values_that_cannot_be_read_are_refused_before_anything_is_asked(options):
    data = pd.DataFrame({"q": ["a"], "label": ["yes"], "bad": [Boom()]})
    with pytest.raises(OptionError, match=r"'bad' has a value in row 0 .* RuntimeError: boom"):
        evaluate(data, ScriptedEngine(pytest.fail), **options)


def test_kinds_that_differ_in_spaces_are_one():
    data = pd.DataFrame({"q": ["a", "b"], "label": ["yes", "yes"], "kind": ["x y", " x  y "]})
    assert [each.name for each in evaluate(data, by="kind").kinds] == ["x y"]


def test_an_answer_that_an_error_broke_off_is_a_failure():
    truth = truth_of(items_of(ROWS, "rows"), "label")
    half = Answer("yes", "?", "m", Usage(1, 1, 1), "failed")
    row = truth.scored(AnsweredRow(0, "a", "a", "?", half, "The stream ended."))
    assert (row.is_right, row.has_failed, row.answer) == (None, True, None)


def test_half_an_answer_does_not_count():
    items = items_of(ROWS, "rows")
    truth = truth_of(items, "label", choices=("yes", "no"))
    for reason, is_right in (("interrupted", None), ("length", True), ("stop", True)):
        answer = Answer("yes", "?", "m", Usage(1, 1, 1), reason)
        row = truth.scored(AnsweredRow(0, "a", "a", "?", answer))
        assert (row.is_right, row.answer) == (is_right, "yes")


def test_an_answer_that_is_no_choice_is_wrong_and_has_a_column():
    found = evaluate(engine=ScriptedEngine(lambda prompt: "perhaps"))
    assert found.confusion.said == ("yes", "no", None)
    assert found.confusion.counts == ((0, 0, 2), (0, 0, 2))
    assert found.accuracy == 0
    assert found.calibration is None


def test_a_server_that_tells_no_probabilities():
    engine = Choosing()
    engine.silent = True
    found = evaluate(engine=engine)
    assert (found.accuracy, found.calibration) == (0.75, None)


def test_tables():
    found = evaluate(by="kind")
    table = found.table()
    assert [*table.columns] == ["kind", "count", "right", "accuracy", "low", "high"]
    assert [*table["kind"]] == ["all", "new", "old"]
    assert [*table["accuracy"]] == [0.75, 1.0, 0.5]
    assert [*found.to_dataframe()["kind"]] == ["old", "old", "new", "new"]
    assert "kind" not in evaluate().to_dataframe()


def test_kinds_without_a_name_are_one_kind():
    data = [{**row, "kind": kind} for row, kind in zip(ROWS, [10, 9.0, None, ""], strict=True)]
    assert [each.name for each in evaluate(data, by="kind").kinds] == ["9", "10", "(none)"]


@pytest.mark.parametrize("as_table", [list, pd.DataFrame])
def test_images_are_in_a_column(as_table, tmp_path):
    data = [{"image": Image.new("RGB", (4, 4)), "label": "A {{no}} red?"}]
    seen = []

    class Seeing(ScriptedEngine):
        def stream(self, requests, at_once=None, withdrawn=()):
            for number, request in enumerate(requests):
                seen.append(len(request.conversation.images))
                yield Finished(
                    Generation(request.conversation.question, Usage(1, 1, 1), "stop"), number
                )

    found = Session(Seeing()).evaluate(
        as_table(data), "{{row.label}}", images="image", answer="label"
    )
    assert seen == [1]
    assert found.accuracy == 1


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (ROWS, {"answer": "labl"}, "There is no column 'labl'. Did you mean label?"),
        (ROWS, {"by": "size"}, "There is no column 'size'. There are q, label, kind."),
        (ROWS, {"images": "image"}, "There is no column 'image'."),
        (ROWS, {"answer": []}, "There is no column []."),
        ([], {}, "dataset is empty: there is nothing to ask about."),
        (pd.DataFrame({"q": [], "label": []}), {}, "dataset is empty"),
        (["a"], {}, "dataset is not a table, so it has no column 'label'. Give a DataFrame"),
        ([{"q": "a", "label": None}], {}, "Column 'label' holds no answers."),
        ([{"q": "a", "label": np.nan}], {}, "Column 'label' holds no answers."),
        (
            [*ROWS, {"q": "a", "label": "maybe"}, {"q": "a", "label": 3}],
            {},
            "Column 'label' holds 'maybe', 3, which are none of the choices yes, no; the first is "
            "that of dataset[4]. Add them",
        ),
        (
            [{"q": "a", "label": str(at)} for at in range(9)],
            {},
            "'0', '1', '2' and 6 more, which are none of the choices yes, no",
        ),
        (ROWS, {"bins": 0}, "bins is 0, but must be a whole number from 1 to 100."),
        (ROWS, {"bins": 5, "choices": None}, "bins is about the probabilities of choices, and"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_said_before_anything_is_asked(data, options, said):
    engine = Choosing()
    with pytest.raises(OptionError) as refused:
        evaluate(data, engine, **options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert engine.asked == 0


def test_choices_that_differ_only_when_compared_are_not_guessed():
    items = items_of([{"label": "A"}, {"label": "a"}], "rows")
    truth = truth_of(items, "label", choices=("A", "a"))
    assert (truth.label("a"), truth.label("A"), truth.label("a.")) == ("a", "A", None)


def stopped_after(stream, index):
    """Read a stream, and interrupt it when a row is done."""
    with stream:
        for event in stream:
            if isinstance(event, RowDone) and event.row.index == index:
                assert event.progress.result().score.rows == index + 1
                raise KeyboardInterrupt


def test_an_interrupt_leaves_the_evaluation_so_far_and_the_next_call_goes_on():
    engine = Choosing()
    session = Session(engine)
    asked = {"answer": "label", "choices": ["yes", "no"]}
    with pytest.raises(MapInterrupted) as stopped:
        stopped_after(session.stream_evaluate(ROWS, "{{row.q}}?", **asked), 1)
    found = stopped.value.result
    assert (found.score.right, found.score.rows, found.total, found.unfinished) == (1, 2, 4, 2)
    before = engine.asked
    again = session.evaluate(ROWS, "{{row.q}}?", **asked)
    assert again.score.rows == 4
    assert engine.asked - before <= 2
    assert [row.reused for row in again.answers][:2] == [True, True]


def test_rows_that_are_saved_are_scored_again_without_asking(tmp_path):
    pytest.importorskip("pyarrow")
    engine = Choosing()
    first = evaluate(engine=engine, save=tmp_path / "rows.parquet")
    asked = engine.asked
    again = evaluate(engine=engine, save=tmp_path / "rows.parquet", bins=5)
    assert engine.asked == asked
    assert again.score == first.score
    assert again.calibration.bins != first.calibration.bins
    assert len(again.answers) == 4


def test_rows_of_a_table_are_copied():
    record = Record({"item": 1, "q": "a"})
    for copied in (copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
        assert (copied.item, copied["q"]) == (1, "a")
