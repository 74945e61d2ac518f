"""Streams: read to the end, stopped at any event, and what stays in the chat."""

from __future__ import annotations

import threading

import pytest
from following import read
from scripted_engine import ScriptedEngine
from standins.speaker import Speaker

from glm4v_magic.core.conversation import Conversation, Generation, Message, Request, Usage
from glm4v_magic.core.errors import (
    BusyError,
    FormatError,
    GenerationInterrupted,
    MapInterrupted,
    OptionError,
)
from glm4v_magic.core.events import Correcting, Done, Finished, MapDone, RowDone, Started, Text
from glm4v_magic.core.options import Sampling
from glm4v_magic.session.session import Session

WORDS = "one two three"


@pytest.fixture
def session():
    return Session(Speaker((WORDS, "stop"), ("four", "stop")))


def test_the_events_of_a_question(session):
    started, *texts, done = session.stream("What?")
    assert isinstance(started, Started)
    assert started.partial is None
    assert [text.text for text in texts] == ["one ", "two ", "three "]
    assert isinstance(done, Done)
    assert done.answer.text == WORDS
    assert not session.status().busy


def test_nothing_happens_before_the_first_event(session):
    stream = session.stream("What?")
    assert not session.status().busy
    assert session.engine.requests == []
    assert session.ask("And?").text == WORDS
    assert [type(event) for event in stream] == [Started, Text, Done]
    assert session.status().last.text == "four"


@pytest.mark.parametrize("events", range(1, 6))
def test_closing_at_any_event_releases_the_session(session, events):
    stream = session.stream("What?")
    for _ in range(events):
        next(stream)
    assert session.status().busy
    stream.close()
    assert not session.status().busy
    if events == 1:  # the model had not begun
        assert session.chats == {}
    elif events < 5:
        assert session.conversation().unfinished == " ".join(WORDS.split()[: events - 1])
        assert session.status().last.finish_reason == "interrupted"
    else:  # the answer was done already
        assert session.conversation().unfinished is None
        assert session.conversation().messages[-1].text == WORDS
    assert session.engine.closed == (events > 1)
    stream.close()
    assert list(stream) == []
    assert session.ask("And?").text == (WORDS if events == 1 else "four")


def test_a_stream_that_is_thrown_away_releases_the_session(session):
    stream = session.stream("What?")
    next(stream)
    next(stream)
    del stream
    assert not session.status().busy
    assert session.ask("And?").text == "four"


def test_leaving_the_block_closes(session):
    with session.stream("What?") as stream:
        next(stream)
        next(stream)
    assert not session.status().busy
    assert session.conversation().unfinished == "one"


def test_a_reader_that_fails_closes(session):
    def fail(event):
        if isinstance(event, Text):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read(session.stream("What?"), fail)
    assert not session.status().busy
    assert session.conversation().unfinished == "one"


@pytest.mark.parametrize("events", range(1, 5))
def test_an_interrupt_while_an_event_is_shown(session, interrupt, events):
    seen = []

    def show(event):
        seen.append(event)
        if len(seen) == events:
            interrupt()

    with pytest.raises(KeyboardInterrupt) as caught:
        read(session.stream("What?"), show)
    assert not session.status().busy
    assert caught.value.__context__ is None
    if events == 1:  # the model had not begun
        assert session.chats == {}
    else:
        assert isinstance(caught.value, GenerationInterrupted)
        said = " ".join(WORDS.split()[: events - 1])
        assert caught.value.answer.text == session.conversation().unfinished == said


def test_an_interrupt_while_the_last_event_is_shown_loses_nothing(session, interrupt):
    def show(event):
        if isinstance(event, Done):
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        read(session.stream("What?"), show)
    assert session.status().last.text == session.conversation().messages[-1].text == WORDS
    assert not session.status().busy


def test_two_streams_at_once(session):
    first, second = session.stream("What?"), session.stream("And?")
    next(first)
    with pytest.raises(BusyError):
        next(second)
    with pytest.raises(BusyError):
        session.stream("And?")
    assert first.follow().text == WORDS
    assert list(second) == []


def test_two_clients_in_threads():
    session = Session(Speaker(*[(WORDS, "stop")] * 8))
    answers, refused = [], []

    def ask():
        try:
            answers.append(session.ask("What?").text)
        except BusyError:
            refused.append(1)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [WORDS] * len(answers)
    assert len(answers) + len(refused) == 8
    assert answers
    assert not session.status().busy


@pytest.mark.parametrize(
    ("text", "reason", "kept"),
    [
        ("Ж\ufffd", "length", "Ж"),
        ("Ж\ufffd\ufffd", "length", "Ж"),
        ("Ж\ufffd", "stop", "Ж\ufffd"),
        ("\ufffdЖ", "length", "\ufffdЖ"),
    ],
)
def test_half_a_character_at_the_end_is_not_kept_to_be_carried_on(text, reason, kept):
    session = Session(Speaker((text, reason)))
    assert session.ask("What?").text == text
    assert session.conversation().messages[-1].text == kept


def test_carrying_on_tells_what_stands_before():
    session = Session(Speaker(("one", "length"), (" two", "stop")))
    session.ask("What?")
    started, *texts, done = session.stream_carry_on()
    assert started.partial.text == "one"
    assert "".join(text.text for text in texts).strip() == "two"
    assert done.answer.text == "one two"


class TestCorrections:
    SCHEMA = {"type": "object", "required": ["a"]}  # noqa: RUF012

    def test_its_events(self):
        session = Session(Speaker(("{}", "stop"), ('{"a":1}', "stop")))
        events = list(session.stream("What?", schema=self.SCHEMA))
        assert [type(event) for event in events] == [Started, Text, Correcting, Text, Done]
        assert events[-1].answer.value == {"a": 1}
        assert events[2].fault == events[-1].answer.corrected

    @pytest.mark.parametrize("at", [Correcting, None])
    def test_closed_while_it_is_corrected_the_first_answer_stays(self, at):
        session = Session(Speaker(("{}", "stop"), ('{"a":1}', "stop")))
        stream = session.stream("What?", schema=self.SCHEMA)
        for event in stream:
            if isinstance(event, Correcting):
                break
        if at is None:
            next(stream)
        stream.close()
        assert session.conversation().messages[-1].text == "{}"
        assert session.conversation().unfinished is None
        assert not session.status().busy

    def test_no_correction_helps(self):
        session = Session(Speaker(("{}", "stop"), ("{}", "stop")))
        with pytest.raises(FormatError) as caught:
            session.ask("What?", schema=self.SCHEMA)
        assert caught.value.answer.text == "{}"


class TestMaps:
    @pytest.fixture
    def session(self):
        return Session(Speaker(*[(f"{n} x", "stop") for n in "abcd"], batch_size=2))

    def test_the_events_of_a_map(self, session):
        events = list(session.stream_map("{{item}}?", ["p", "q", "r"]))
        kinds = [type(event) for event in events]
        assert kinds == [Started, Text, Text, RowDone] + [Text, Text, RowDone] * 2 + [MapDone]
        assert [event.row for event in events if isinstance(event, Text)] == [0, 0, 1, 1, 2, 2]
        assert [event.row.index for event in events if isinstance(event, RowDone)] == [0, 1, 2]
        assert [row.text for row in events[-1].result] == ["a x", "b x", "c x"]
        assert len(session.engine.requests) == 3

    def test_progress_stays_as_it_was(self, session):
        seen = [
            event.progress
            for event in session.stream_map("{{item}}?", ["p", "q", "r"])
            if isinstance(event, RowDone)
        ]
        assert [len(progress.rows) for progress in seen] == [1, 2, 3]
        assert [progress.answered for progress in seen] == [1, 2, 3]

    @pytest.mark.parametrize("events", range(1, 11))
    def test_closing_at_any_event_releases_the_session_and_keeps_what_is_done(
        self, session, events
    ):
        stream = session.stream_map("{{item}}?", ["p", "q", "r"])
        done = sum(isinstance(next(stream), RowDone) for _ in range(events))
        stream.close()
        assert not session.status().busy
        rows = session.map("{{item}}?", ["p", "q", "r"])
        assert sum(row.reused for row in rows) == done
        assert all(row.done for row in rows)

    def test_an_interrupt_gives_the_rows_until_then(self, session, interrupt):
        seen = []

        def show(event):
            seen.append(event)
            if isinstance(event, Text) and event.row == 1:
                interrupt()

        with pytest.raises(MapInterrupted) as caught:
            read(session.stream_map("{{item}}?", ["p", "q", "r"]), show)
        first, second, third = caught.value.result
        assert (first.text, first.done) == ("a x", True)
        assert (second.text, second.finish_reason) == ("b", "interrupted")
        assert (third.answer, third.error) == (None, None)

    def test_an_interrupt_while_the_end_of_a_row_is_told_keeps_the_row(self, interrupt):
        session = Session(BothAtOnce(lambda prompt: f"{prompt} <|begin"))
        with pytest.raises(MapInterrupted) as caught:
            read(
                session.stream_map("{{item}}", ["p", "q"]),
                lambda event: isinstance(event, Text) and event.text == "<|begin" and interrupt(),
            )
        first, second = caught.value.result
        assert (first.text, first.answer.finish_reason) == ("p <|begin", "stop")
        assert (second.text, second.answer.finish_reason) == ("q", "interrupted")

    def test_what_is_wrong_is_said_before_anything_happens(self, session):
        with pytest.raises(OptionError):
            session.stream_map("{{item}}?", ["p"], batch_size=0)
        with pytest.raises(OptionError):
            session.stream("What?", temperature=-1)
        assert session.engine.requests == []


class TestRequests:
    """Requests of other programs, as our server sends them."""

    def test_each_keeps_its_number_and_its_tags(self):
        boxed = "<|begin_of_box|>A<|end_of_box|>"
        session = Session(Speaker((boxed, "stop"), ("b", "stop")))
        started, *events = session.stream_requests([request("p"), request("q")], 2)
        assert isinstance(started, Started)
        assert [(type(event), event.row) for event in events] == [
            (Text, 0),
            (Finished, 0),
            (Text, 1),
            (Finished, 1),
        ]
        assert events[0].text.strip() == events[1].generation.text == boxed
        assert session.chats == {}
        assert session.status().last is None

    @pytest.mark.parametrize("events", [1, 2, 3])
    def test_closing_at_any_event_releases_the_session(self, session, events):
        stream = session.stream_requests([request("p")])
        for _ in range(events):
            next(stream)
        assert session.status().busy
        with pytest.raises(BusyError):
            session.ask("What?")
        stream.close()
        assert not session.status().busy
        assert session.engine.closed == (events > 1)

    def test_an_interrupt_leaves_what_was_said(self, session, interrupt):
        with pytest.raises(GenerationInterrupted) as caught:
            read(
                session.stream_requests([request("p")]),
                lambda event: isinstance(event, Text) and interrupt(),
            )
        assert caught.value.generations[0].text == "one"


class BothAtOnce(ScriptedEngine):
    """Begins all requests before it ends the first."""

    def stream(self, requests, at_once=None, withdrawn=()):
        usage, stopped = Usage(1, 0, 1), False
        texts = [self.said(each.conversation.messages[-1].text) for each in requests]
        try:
            yield from (Text(text, row) for row, text in enumerate(texts))
            yield Finished(Generation(texts[0], usage, "stop"), 0)
        except KeyboardInterrupt:
            stopped = True
        if stopped:
            raise GenerationInterrupted({1: Generation("q", usage, "interrupted")})
        yield Finished(Generation(texts[1], usage, "stop"), 1)


def request(text):
    return Request(Conversation((Message("user", text),)), Sampling())
