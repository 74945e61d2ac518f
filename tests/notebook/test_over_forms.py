"""Many rows as JSON, with a schema, or as code; on a tiny model that knows answers by heart."""

from __future__ import annotations

import random
from html import unescape

import pandas as pd
import pytest
from by_heart import learn, roomy
from following import follow
from interrupting import Interrupter, interruptible
from scripted_server import CHAT, END, MODELS, models, piece, response, scripted_server, stream

from glm4v_magic.calls.forms import correction
from glm4v_magic.core.conversation import Answer, Usage
from glm4v_magic.core.errors import FormatError, MapInterrupted, OptionError
from glm4v_magic.core.rows import HALF, AnsweredRow
from glm4v_magic.notebook.magics import Glm4vMagics
from glm4v_magic.notebook.render.rows import rows_bundle
from glm4v_magic.session.session import Session

pytestmark = pytest.mark.usefixtures("without_llguidance")

SCHEMA = {"properties": {"colour": {"enum": ["red", "blue"]}}}
STRICTER = {"properties": {"colour": {"enum": ["blue"]}}}
ELSEWHERE = {"$ref": "https://example.org/s"}
WRONG = "The answer's JSON does not follow the schema: at colour: 'green' is not one of"
NONE = "The answer holds no JSON"
GREEN = 'Sure: {"colour": "green"}'
GREEDY = {"temperature": 0, "max_tokens": 40}

LESSONS = (
    ("Shape?", '{"shape": "circle"}'),
    ("Colour?", GREEN),
    ("Colour?", GREEN, correction(f"{WRONG} ['red', 'blue']"), '{"colour": "blue"}'),
    ("Colour?", GREEN, correction(f"{WRONG} ['blue']"), '{"colour": "red"}'),
    ("Never?", "No."),
    ("Never?", "No.", correction(NONE), "No!"),
    ("Python?", "Try:\n```python\nx = 41 + 1\n```"),
)


@pytest.fixture(scope="module")
def learnt(module_shell, tmp_path_factory):
    """The session behind the magics of the module's shell; its model has learnt `LESSONS`."""
    folder = roomy(tmp_path_factory.mktemp("by_heart") / "model")
    module_shell.run_line_magic("glm4v", f"load {folder}")
    session = module_shell.magics_manager.registry[Glm4vMagics.__name__].context.session
    learn(session.engine, *LESSONS)
    return session


@pytest.fixture
def session(learnt):
    """That session, without memory of answers."""
    learnt.forget_answers()
    return learnt


@pytest.fixture
def batches(session, monkeypatch):
    """How many rows were asked in one stream, time after time."""
    sizes = []
    stream = session.engine.stream

    def count(requests, at_once=None, withdrawn=()):
        sizes.append(0)

        def counted():
            for request in requests:
                sizes[-1] += 1
                yield request

        return stream(counted(), at_once, withdrawn)

    monkeypatch.setattr(session.engine, "stream", count)
    return sizes


def ask(session, items, *, correcting=None, row=None, text=None, **options):
    rows = session.stream_map("{{item}}", items, **{**GREEDY, **options})
    return follow(rows, correcting=correcting, row=row, text=text)


def taken(batches):
    """Return the batches until now, and forget them."""
    found = list(batches)
    batches.clear()
    return found


__all__ = ["interruptible"]


class TestJson:
    def test_each_row_holds_its_value_and_a_fault_stays_in_its_row(self, session):
        rows = ask(session, ["Shape?", "Never?", "Colour?"], format="json")
        assert [row.value for row in rows] == [{"shape": "circle"}, None, {"colour": "green"}]
        assert {row.answer.format for row in rows} == {"json"}
        assert [row.done for row in rows] == [True, False, True]
        assert rows[1].error == f"{NONE}. Say in the question which JSON you want."
        assert rows[1].text == "No."

    def test_a_cell_shows_values_and_faults(self, run, shell, session):
        shell.user_ns["asked"] = ["Shape?", "Never?", "Colour?"]
        screen = run("%%glm4v --over asked --format json -o rows --temperature 0\n{{item}}")
        assert "2 of 3 rows answered, 1 failed." in screen
        assert '0  Shape?   {"shape": "circle"}\n' in screen
        assert 'Sure: {"colour"' not in screen
        assert "error: The answer holds no JSON. Say in the question" in screen
        assert "answer: No.\n" in screen
        assert shell.user_ns["rows"][2].value == {"colour": "green"}

    def test_a_cell_fails_if_every_row_does(self, run, shell, session):
        shell.user_ns["asked"] = ["Never?", "Python?"]
        screen = run(
            "%%glm4v --over asked --format json -o rows --temperature 0\n{{item}}", fails=True
        )
        assert "Each of the 2 rows failed; the first: The answer holds no JSON." in screen
        assert shell.user_ns["_"][1].text.startswith("Try:")

    def test_a_table_has_a_column_of_values(self, session):
        asked = pd.Series(["Colour?", "Never?", "Shape?"], index=list("xyz"), name="value")
        found = ask(session, asked, format="json")
        assert list(found.columns) == [
            "value", "answer_2", "value_2", "error_2", "finish_reason_2", "new_tokens_2", "seed_2",
        ]  # fmt: skip
        assert list(found["value_2"]) == [{"colour": "green"}, None, {"shape": "circle"}]
        # The recipe of the README.
        keys = pd.DataFrame([value or {} for value in found["value_2"]], index=found.index)
        assert found.join(keys).loc["x", "colour"] == "green"
        assert found.join(keys)["shape"].isna().tolist() == [True, True, False]

    def test_an_answer_that_was_cut_off_says_so(self, session):
        (row,) = ask(session, ["Shape?"], format="json", max_tokens=3)
        assert row.error == f"{NONE}. It was cut off at the token limit: allow more (max_tokens)."
        (row,) = ask(session, ["Shape?"], format="json", max_tokens=40)
        assert row.value == {"shape": "circle"}

    def test_prose_has_no_values(self, session):
        found = ask(session, pd.Series(["Shape?"]), format="text")
        assert list(found.columns)[:3] == ["item", "answer", "error"]
        (row,) = ask(session, ["Shape?"], format="text")
        assert (row.value, row.answer.format) == (None, "text")


def test_code_is_a_value_and_goes_into_no_cell(run, shell, session):
    shell.user_ns["asked"] = ["Python?", "Never?"]
    shell.rl_next_input = None
    screen = run("%%glm4v --over asked --format code -o rows --temperature 0\n{{item}}")
    assert [row.value for row in shell.user_ns["rows"]] == ["x = 41 + 1", None]
    assert "0  Python?  x = 41 + 1\n" in screen
    assert "The answer holds no code block." in screen
    assert shell.rl_next_input is None


class TestSchema:
    def test_answers_that_break_it_are_corrected_together(self, session, batches):
        items = ["Colour?", "Shape?", "Colour?", "Never?"]
        told = []
        rows = ask(session, items, schema=SCHEMA, correcting=told.append)
        assert taken(batches) == [4, 3]
        assert told == [rows[3].answer.corrected, *[rows[0].answer.corrected] * 2]
        blue = {"colour": "blue"}
        assert [row.value for row in rows] == [blue, {"shape": "circle"}, blue, None]
        assert [row.answer.corrected[: len(WRONG)] for row in rows] == [
            WRONG,
            "",
            WRONG,
            f"{NONE}.",
        ]
        assert rows[3].error.startswith(f"{NONE}.")
        assert rows[3].text == "No!"
        for row in rows[:2]:
            alone = session.ask(row.prompt, schema=SCHEMA, **GREEDY)
            assert (row.value, row.text, row.answer.corrected) == (
                alone.value, alone.text, alone.corrected,
            )  # fmt: skip
            for count in ("text_tokens", "new_tokens"):
                assert getattr(row.answer.usage, count) == getattr(alone.usage, count)
        assert "[corrected once]" in rows_bundle(rows)["text/plain"]

    def test_corrections_are_asked_beside_rows_that_are_left(self, session, batches):
        asked = ["Colour?", "Shape?"] * 5
        rows = ask(session, asked, schema=SCHEMA, batch_size=2)
        assert [row.value for row in rows] == [{"colour": "blue"}, {"shape": "circle"}] * 5
        # Four batches are taken ahead; their corrections come with the other rows.
        assert len(taken(batches)) == 2

    def test_a_cell_takes_it_from_a_variable(self, run, shell, session):
        shell.user_ns.update(schema=SCHEMA, asked=["Colour?"])
        screen = run("%%glm4v --over asked --schema schema -o rows --temperature 0\n{{item}}")
        assert shell.user_ns["rows"][0].value == {"colour": "blue"}
        assert "[corrected once]" in screen

    def test_an_interrupted_correction_keeps_the_first_answer(self, session, batches):
        def stop(_what):
            raise KeyboardInterrupt

        with pytest.raises(MapInterrupted) as caught:
            ask(session, ["Shape?", "Colour?"], schema=SCHEMA, batch_size=1, correcting=stop)
        shape, colour = caught.value.result
        assert caught.value.answered == 1
        assert shape.done
        assert (colour.text, colour.value) == (GREEN, None)
        assert colour.error.startswith(WRONG)
        assert colour.error.endswith("It was to be asked once more.")
        assert taken(batches) == [2]
        rows = ask(session, ["Shape?", "Colour?"], schema=SCHEMA)
        assert taken(batches) == [1]
        assert [row.reused for row in rows] == [True, False]
        assert rows[1].value == {"colour": "blue"}

    def test_an_interrupt_between_corrections_keeps_those_that_are_done(self, session):
        def stop(_progress):
            raise KeyboardInterrupt

        with pytest.raises(MapInterrupted) as stopped:
            ask(session, ["Colour?", "Never?"], schema=SCHEMA, row=stop)
        assert sum("once more" in str(row.error) for row in stopped.value.result) == 1

    def test_half_a_correction_is_none(self, session):
        said = []

        def stop(_piece):
            if told and not said:
                said.append(1)
            elif told:
                raise KeyboardInterrupt

        told = []
        with pytest.raises(MapInterrupted) as caught:
            ask(session, ["Colour?"], schema=SCHEMA, correcting=told.append, text=stop)
        (row,) = caught.value.result
        assert (row.text, row.finish_reason) == (GREEN, "stop")
        assert "once more" in row.error

    def test_a_correction_that_does_not_fit_is_its_rows_error(self, session):
        options = {"max_tokens": 10, "temperature": 0}
        empty, one = (session.ask(text, max_tokens=1).usage.text_tokens for text in ("w", "w word"))
        words = (session.status().info.context - empty - 10) // (one - empty)
        items = ["w" + " word" * words, "Shape?"]
        long, short = ask(session, items, schema=SCHEMA, **options)
        assert "Asking again failed: The prompt is" in long.error
        assert 0 < long.answer.usage.new_tokens <= 10
        assert short.text

    def test_a_schema_that_refers_elsewhere_ends_the_run_and_loses_no_answer(
        self, session, batches
    ):
        told = []
        options = {"batch_size": 2, "row": told.append}
        with pytest.raises(OptionError, match="which is not in it"):
            ask(session, ["Shape?", "Colour?", "Never?"], schema=ELSEWHERE, **options)
        assert len(taken(batches)) == 1
        assert '{"shape": "circle"}' in [row.text for row in told[-1].result()]
        assert None in [row.text for row in told[-1].result()]
        answered = [row.text is not None for row in told[-1].result()]
        rows = ask(session, ["Shape?", "Colour?", "Never?"], format="json")
        assert [row.reused for row in rows] == answered
        taken(batches)
        with pytest.raises(OptionError, match="which is not in it"):  # of known answers too
            ask(session, ["Shape?"], schema=ELSEWHERE)

    @pytest.mark.parametrize(
        ("options", "error", "said"),
        [
            ({"schema": {"type": "colour"}}, OptionError, "is not a JSON Schema"),
            ({"schema": {}, "format": "text"}, OptionError, "for the format json, not text"),
            (
                {"format": "yaml"},
                OptionError,
                "Unknown format 'yaml'; there are markdown, text, json, code.",
            ),
        ],
    )
    def test_what_is_no_form_is_refused(self, session, batches, options, error, said):
        with pytest.raises(error, match=said):
            ask(session, ["Shape?"], **options)
        assert batches == []


@pytest.mark.usefixtures("interruptible")
def test_interrupts_at_random_moments_lose_no_row(run, shell, session):
    def facts(rows):
        return [(row.text, row.value, row.error) for row in rows]

    shell.user_ns.update(asked=["Colour?", "Shape?", "Never?", "Colour?"], schema=SCHEMA)
    cell = "%%glm4v --over asked --schema schema -o rows --batch-size 2 --temperature 0\n{{item}}"
    run(cell)
    expected = facts(shell.user_ns["rows"])
    session.forget_answers()
    counted = Interrupter()
    counted.run(shell, cell)
    chosen = random.Random(3)
    tried = swallowed = over_before = 0
    while tried < 12:
        session.forget_answers()
        interrupter = Interrupter(at=chosen.randrange(1, int(0.97 * counted.calls)))
        shell.user_ns["rows"] = []
        result, _ = interrupter.run(shell, cell)
        if interrupter.where is None:  # it was drawn less often than when it was counted
            over_before += 1
            counted = interrupter
            continue
        if interrupter.swallowed:
            swallowed += 1
            continue
        tried += 1
        assert isinstance(result.error_in_exec, KeyboardInterrupt), interrupter.where
        for row, (text, value, error) in zip(shell.user_ns["rows"], expected, strict=False):
            assert not row.done or (row.text, row.value) == (text, value), interrupter.where
            assert row.error in (None, HALF, error) or "once more" in row.error, interrupter.where
        run(cell)
        assert facts(shell.user_ns["rows"]) == expected, interrupter.where
    assert swallowed < 6
    assert over_before < 12


class TestReuse:
    ITEMS = ("Colour?", "Shape?")

    def test_another_form_asks_nothing(self, session, batches):
        ask(session, self.ITEMS)
        assert taken(batches) == [2]
        rows = ask(session, self.ITEMS, format="json")
        assert batches == []
        assert [row.value for row in rows] == [{"colour": "green"}, {"shape": "circle"}]
        assert {row.answer.format for row in rows} == {"json"}
        rows = ask(session, self.ITEMS, format="code")
        assert batches == []
        assert [row.reused for row in rows] == [True, True]
        assert {row.error for row in rows} == {
            "The answer holds no code block. Ask for code in a fenced block."
        }
        rows = ask(session, self.ITEMS)
        assert [(row.value, row.answer.format) for row in rows] == [(None, "markdown")] * 2

    def test_a_schema_asks_for_the_corrections_alone_and_only_once(self, session, batches):
        plain = ask(session, self.ITEMS)
        taken(batches)
        first = ask(session, self.ITEMS, schema=SCHEMA)
        assert taken(batches) == [1]
        assert [row.reused for row in first] == [False, True]
        again = ask(session, self.ITEMS, schema=SCHEMA)
        assert batches == []
        assert [row.reused for row in again] == [True, True]
        assert [row.answer for row in again] == [row.answer for row in first]
        assert again[0].answer.corrected.startswith(WRONG)
        assert again[0].answer.usage.new_tokens > plain[0].answer.usage.new_tokens
        # The first answer is still what it was.
        assert [row.text for row in ask(session, self.ITEMS)] == [row.text for row in plain]
        assert batches == []

    def test_another_fault_is_another_correction(self, session, batches):
        ask(session, self.ITEMS, schema=SCHEMA)
        taken(batches)
        rows = ask(session, self.ITEMS, schema=STRICTER)
        assert taken(batches) == [1]
        assert rows[0].text == '{"colour": "red"}'
        assert "'red' is not one of ['blue']" in rows[0].error
        # The same fault by another schema is the same correction.
        rows = ask(session, self.ITEMS, schema={"$comment": "", **SCHEMA})
        assert batches == []
        assert rows[0].value == {"colour": "blue"}

    def test_rows_asked_the_same_have_corrections_of_their_own(self, session, batches):
        items = ["Colour?"] * 2
        first = ask(session, items, schema=SCHEMA, batch_size=1)
        assert sum(taken(batches)) == 4
        assert ask(session, items, schema=SCHEMA)[1].answer == first[1].answer
        assert batches == []

    def test_fresh_asks_for_corrections_again_too(self, session, batches):
        ask(session, self.ITEMS, schema=SCHEMA)
        taken(batches)
        rows = ask(session, self.ITEMS, schema=SCHEMA, fresh=True)
        assert taken(batches) == [2, 1]
        assert not any(row.reused for row in rows)

    def test_failed_rows_from_before_are_counted_as_failed(self, session):
        progress = []
        for _ in range(2):
            ask(session, ["Never?", "Shape?"], format="json", row=progress.append)
        latest = progress[-1]
        assert (latest.answered, latest.failed, latest.reused) == (1, 1, 1)
        line = rows_bundle(latest.rows)["text/plain"].partition("\n")[0]
        assert line == "1 of 2 rows answered, 1 of them from before, 1 failed."


def test_a_server_corrects_row_by_row():
    with scripted_server() as server:
        server.answer(MODELS, models("m"))
        server.answer(CHAT, stream(piece("No."), END))
        session = Session().load(server.url)
        right = stream(piece('{"colour": "red"}'), END)
        rows = follow(
            session.stream_map("{{item}}?", ["a", "b"], schema=SCHEMA, batch_size=1),
            correcting=lambda _: server.answer(CHAT, right),
        )
        asked = [body["messages"][-1]["content"] for body in server.bodies]
        server.answer(CHAT, stream(piece("No."), END))
        broken = response(status="500 Internal Server Error")
        (failed,) = follow(
            session.stream_map("{{item}}?", ["c"], schema=SCHEMA),
            correcting=lambda _: server.answer(CHAT, broken),
        )
        session.unload()
    assert asked == ["a?", correction(NONE), "b?"]
    assert [row.value for row in rows] == [{"colour": "red"}] * 2
    assert failed.error.startswith(f"{NONE}. Asking again failed: ")
    assert failed.text == "No."


def row(form, **answer):
    given = Answer("So: x", "What?", "tiny", Usage(10, 6, 4), "stop", format=form, **answer)
    return AnsweredRow(0, "a", "a", "What?", given)


def test_a_table_shows_what_was_found_as_it_is():
    html = rows_bundle([row("json", value={"a": "<b>", "猫": None})])["text/html"]
    assert "<b>" not in html
    assert '{"a": "<b>", "猫": null}</pre>' in unescape(html)
    assert "font-family:monospace" in html
    assert "null" in rows_bundle([row("json")])["text/plain"]
    assert "So: x" in rows_bundle([row("text")])["text/plain"]
    assert "monospace" not in rows_bundle([row("text")])["text/html"]
    half = rows_bundle([row("json", value="a\ud800b")])
    assert all(text.encode() for text in half.values())


def test_a_fault_is_shown_with_its_answer():
    fault = FormatError("The answer holds <no> JSON.")
    failed = AnsweredRow(0, "a", "a", "", row("json").answer, failure=fault.text)
    html = rows_bundle([failed])["text/html"]
    assert "<strong>error</strong>" in html
    assert "&lt;no&gt; JSON.</pre>" in html
    assert "So: x</pre>" in html
