"""`answer.tokens`: of answers, of what carries them on, corrects them, asks again, and of rows."""

from __future__ import annotations

import json
import math

import golden
import pytest

from glm4v_magic.core.errors import ConversationError, FormatError, OptionError
from glm4v_magic.session.session import Session

GREEDY = {"temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def session():
    return Session().load(golden.CHECKPOINT)


def spelled(answer):
    """The text, from the places of the tokens."""
    places = {at for token in answer.tokens for at in range(token.start, token.end)}
    return "".join(answer.text[at] for at in sorted(places))


def test_nobody_has_them_who_does_not_ask(session):
    answer = session.ask("What?", **GREEDY)
    assert answer.tokens is None
    assert answer.thinking_tokens == ()


def test_an_answer_has_its_tokens(session):
    answer = session.ask("What?", **GREEDY, logprobs=2)
    assert spelled(answer) == answer.text
    assert len(answer.tokens) == answer.usage.new_tokens
    for token in answer.tokens:
        assert token.probability == pytest.approx(math.exp(token.logprob))
        assert [len(token.alternatives), token.alternatives[0].logprob >= token.logprob] == [2, 1]


def test_an_answer_that_goes_on_has_those_of_both_parts(session):
    first = session.ask("What?", **GREEDY, logprobs=0)
    assert first.finish_reason == "length"
    both = session.carry_on(**GREEDY, logprobs=0)
    assert len(both.tokens) == len(first.tokens) + both.usage.new_tokens
    assert spelled(both) == both.text
    assert both.text.startswith(first.text)


def test_parts_that_did_not_ask_have_none(session):
    session.ask("What?", **GREEDY)
    both = session.carry_on(**GREEDY, logprobs=0)
    assert both.text.endswith(spelled(both))
    assert spelled(both) != both.text
    again = session.retry(**GREEDY, logprobs=1)
    assert spelled(again) == again.text


def test_a_row_has_its_tokens(session):
    rows = session.map("What is {{item}}?", ["a", "b"], **GREEDY, logprobs=1)
    assert [spelled(row.answer) for row in rows] == [row.text for row in rows]
    # What was answered without them does not count.
    silent = session.map("What is {{item}}?", ["a", "b"], **GREEDY)
    assert [row.answer.tokens for row in silent] == [None, None]
    assert not any(row.reused for row in silent)


def test_rows_that_wait_for_others_have_theirs(session):
    letters = list("abcde")
    rows = session.map("{{item}}?", letters, **GREEDY, logprobs=1, batch_size=2, fresh=True)
    for letter, row in zip(letters, rows, strict=True):
        alone = session.ask(f"{letter}?", **GREEDY, logprobs=1)
        assert [token.id for token in row.answer.tokens] == [token.id for token in alone.tokens]
        assert [token.logprob for token in row.answer.tokens] == pytest.approx(
            [token.logprob for token in alone.tokens], abs=1e-4
        )


def test_a_table_has_the_columns_that_it_always_has(session):
    pd = pytest.importorskip("pandas")
    series = pd.Series(["a", "b"], name="letter")
    with_them, without = (
        session.map("What is {{item}}?", series, **GREEDY, **more) for more in ({"logprobs": 1}, {})
    )
    assert list(with_them.columns) == list(without.columns)


def test_they_become_a_table(session):
    pd = pytest.importorskip("pandas")
    answer = session.ask("What?", **GREEDY, logprobs=1)
    frame = pd.DataFrame(answer.tokens)
    assert list(frame["text"]) == [token.text for token in answer.tokens]
    assert {"logprob", "start", "end", "alternatives"} <= set(frame.columns)


@pytest.mark.usefixtures("without_llguidance")
def test_an_answer_in_no_form_has_its_own(session):
    with pytest.raises(FormatError) as caught:
        session.ask("What?", **GREEDY, schema={"type": "object"}, logprobs=1)
    answer = caught.value.answer
    assert answer.corrected
    assert spelled(answer) == answer.text


def test_a_chat_in_a_file_keeps_them(session, tmp_path):
    answer = session.ask("What?", **GREEDY, logprobs=2, chat="kept")
    file = session.export_chat(tmp_path / "chat.json", "kept")
    session.import_chat(file, "again")
    message = session.conversation("again").messages[-1]
    assert message.tokens == answer.tokens
    assert any("\ufffd" in token.text for token in message.tokens)
    both = session.carry_on("again", **GREEDY, logprobs=0)
    assert spelled(both) == both.text


@pytest.mark.parametrize(
    "change",
    [{"start": -1}, {"end": 10**6}, {"start": 3, "end": 1}, {"logprob": "a"}, {"utf8": "?"}],
)
def test_tokens_of_a_file_that_cannot_be(session, tmp_path, change):
    session.ask("What?", **GREEDY, logprobs=2, chat="bad")
    file = session.export_chat(tmp_path / "chat.json", "bad")
    chat = json.loads(file.read_text("utf-8"))
    chat["messages"][-1]["tokens"][1] |= change
    file.write_text(json.dumps(chat), "utf-8")
    with pytest.raises(ConversationError, match="messages"):
        session.import_chat(file, "never")


@pytest.mark.parametrize("value", [-1, 21, 1.5, True, "3"])
def test_so_many_there_are_not(session, value):
    with pytest.raises(OptionError, match="from 0 to 20"):
        session.ask("What?", logprobs=value)
