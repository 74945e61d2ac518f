"""The stream of an engine that asks a server: its events, and where it is stopped or closed."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
from following import returned
from scripted_server import (
    CHAT,
    END,
    MODELS,
    SECONDS,
    deaf,
    models,
    piece,
    response,
    scripted_server,
    silence,
    stream,
    while_the_client_waits,
)

from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import GenerationInterrupted
from glm4v_magic.core.events import Failed, Finished, Reclassified, Text, Thinking
from glm4v_magic.core.server_address import API_KEY, ServerAddress
from glm4v_magic.engines.server import connect, patience
from glm4v_magic.engines.server.connection import Connection

REQUEST = Request(Conversation((Message("user", "Q?"),)))
TOLD_AFTER = "glm4v_magic.engines.silence.SECONDS"


@pytest.fixture(scope="module")
def running():
    with scripted_server() as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.delenv(API_KEY, raising=False)
    monkeypatch.setattr(TOLD_AFTER, SECONDS)  # however late its words come
    running.forget()
    running.answer(MODELS, models("m"))
    running.answer(CHAT, stream(piece("Hel"), piece("lo."), END))
    return running


@pytest.fixture
def engine(server):
    engine = returned(connect(ServerAddress(server.url, timeout=SECONDS)))
    server.requests.clear()
    yield engine
    engine.close()


def unfinished(*pieces):
    """A stream of `pieces` and no end."""
    return (stream(*pieces, done=False), silence)


def test_rows_are_answered_in_their_order(server, engine):
    assert engine.batch_size == 16
    assert engine.require_room(REQUEST) is None
    events = list(engine.stream([REQUEST, REQUEST], 1))
    assert [type(event) for event in events] == [Text, Text, Finished] * 2
    assert [event.row for event in events] == [0, 0, 0, 1, 1, 1]
    assert {event.generation.text for event in events[2::3]} == {"Hello."}
    assert list(engine.stream([])) == []


def test_nothing_is_asked_before_the_first_event(server, engine):
    events = engine.stream([REQUEST, REQUEST], 1)
    assert server.requests == []
    assert next(events) == Text("Hel")
    assert len(server.requests) == 1
    events.close()


def test_no_text_is_told_twice(server, engine):
    server.answer(CHAT, stream(piece(" \nHm, "), piece("so.</think>A"), piece("."), END))
    *events, finished = engine.stream([REQUEST])
    assert events == [Text("Hm, "), Reclassified(), Thinking("so."), Text("A"), Text(".")]
    assert (finished.generation.thinking, finished.generation.text) == ("Hm, so.", "A.")


def test_whitespace_that_was_not_told_is_not_taken_back(server, engine):
    server.answer(CHAT, stream(piece("\n"), piece("</think>A."), END))
    assert list(engine.stream([REQUEST]))[:-1] == [Text("A.")]


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupt_thrown_in_keeps_what_was_said(server, engine, after):
    server.answer(CHAT, *unfinished(piece("So"), piece(" on")))
    events = engine.stream([REQUEST, REQUEST], 1)
    told = "".join(next(events).text for _ in range(after))
    with pytest.raises(GenerationInterrupted) as caught:
        events.throw(KeyboardInterrupt())
    assert caught.value.generation.text.startswith(told)
    assert caught.value.generation.finish_reason == "interrupted"
    assert list(caught.value.generations) == [0]  # the second was not asked
    assert caught.value.__context__ is None  # its frames would hold on to the connection
    assert server.closed_by_client.wait(SECONDS)


def test_all_that_has_come_is_kept_though_only_a_part_was_told(server, engine):
    server.answer(CHAT, *unfinished(piece("A", reasoning="Hm")))
    events = engine.stream([REQUEST])
    assert next(events) == Thinking("Hm")
    with pytest.raises(GenerationInterrupted) as caught:
        events.throw(KeyboardInterrupt())
    generation = caught.value.generation
    assert (generation.thinking, generation.text) == ("Hm", "A")


def test_an_interrupt_behind_the_last_event_of_a_row(server, engine):
    events = engine.stream([REQUEST])
    while not isinstance(next(events), Finished):
        pass
    with pytest.raises(GenerationInterrupted) as caught:
        events.throw(KeyboardInterrupt())
    assert caught.value.generations == {}


BUSY = response(status="503 Service Unavailable", Retry_After=50)
MIDDLE = stream(piece("So"), done=False)


@pytest.mark.parametrize(
    ("parts", "said"),
    [((silence,), ""), ((MIDDLE, silence), "So"), ((BUSY,), "")],
    ids=["before the first byte", "in the middle", "it is asked again later"],
)
def test_silence_is_told_and_can_be_ended(server, engine, monkeypatch, parts, said):
    monkeypatch.setattr(TOLD_AFTER, 0.01)
    monkeypatch.setattr(patience, "PATIENCE", SECONDS)
    server.answer(CHAT, *parts)
    events, text = engine.stream([REQUEST, REQUEST], 2), ""
    for event in events:
        text += event.text if isinstance(event, Text) else ""
        if text == 2 * said and server.bodies[1:]:
            break
    waiting = [next(events) for _ in range(3)]
    assert {each.on for each in waiting} == {server.url}
    assert 0 < waiting[0].seconds < waiting[2].seconds
    with pytest.raises(GenerationInterrupted) as caught:
        events.throw(KeyboardInterrupt())
    assert [each.text for each in caught.value.generations.values()] == [said, said]


def test_a_connection_that_does_not_come_about_is_waited_for(monkeypatch):
    with deaf() as url:
        events = connect(ServerAddress(url))
        assert next(events).on == url
        events.close()


def test_an_interrupt_while_the_server_is_silent(server, engine, interrupt):
    heard = threading.Event()
    interrupted = while_the_client_waits(interrupt, heard)
    server.answer(CHAT, stream(piece("So"), done=False), interrupted, silence)
    with pytest.raises(GenerationInterrupted) as caught:
        [heard.set() for _ in engine.stream([REQUEST])]
    assert caught.value.generation.text == "So"


def test_closing_it_closes_the_connection(server, engine):
    server.answer(CHAT, *unfinished(piece("So"), piece(" on")))
    events = engine.stream([REQUEST, REQUEST], 1)
    next(events)
    events.close()
    assert server.closed_by_client.wait(SECONDS)
    assert len(server.requests) == 1
    server.answer(CHAT, stream(piece("Yes."), END))
    assert list(engine.stream([REQUEST]))[-1].generation.text == "Yes."


def test_a_row_that_fails_comes_behind_those_that_are_done(server, engine):
    events = engine.stream([REQUEST, REQUEST], 1)
    for _ in range(3):
        last = next(events)
    assert last.generation.text == "Hello."
    server.answer(CHAT, stream({"error": "no memory"}))
    (failed,) = events
    assert isinstance(failed, Failed)
    assert failed.row == 1
    assert "stopped with an error: no memory" in str(failed.error)


def test_one_that_only_gives_signs_of_life_is_said_to_be_waited_for(caplog):
    async def chunks(pause):
        for _ in range(6):
            await asyncio.sleep(pause)
            yield b": ping\n\n"
        yield b"data: x\n\n"

    async def said(seconds, pause):
        caplog.clear()
        connection = Connection(ServerAddress("http://127.0.0.1:9/v1", timeout=seconds))
        kind = {"Content-Type": "text/event-stream"}
        response = httpx.Response(200, headers=kind, content=chunks(pause))
        assert [each async for each in connection.events(response)] == ["x"]
        return caplog.messages

    there = "http://127.0.0.1:9/v1 is there, but has said nothing for 0."
    first, *others = asyncio.run(said(0.02, 0.03))
    assert first.startswith(there)
    assert first.endswith(" s; it is waited for.")
    assert len(others) <= 6
    assert asyncio.run(said(60, 0.001)) == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_as_the_standard_says(server, engine, end):
    head, events = stream(piece("A\u2028"), b": comment\n\n", piece("B"), END).split(b"\r\n\r\n", 1)
    events = events.replace(b"\n", end)
    cut = [events[at : at + 5] for at in range(0, len(events), 5)]
    server.answer(CHAT, head + b"\r\n\r\n", *cut)
    assert list(engine.stream([REQUEST]))[-1].generation.text == "A\u2028B"


def test_a_long_stream_of_short_events_is_no_long_event(server, engine):
    server.answer(CHAT, stream(*[b": comment\r\n\r\n" * 1000] * 200, piece("A"), END))
    assert list(engine.stream([REQUEST]))[-1].generation.text == "A"
    # Cut inside the empty line between two of them.
    head, last = stream(done=False), stream(piece("A"), END).split(b"\r\n\r\n")[1]
    comment = b"\n:" + b"x" * 100_000 + b"\n"
    server.answer(CHAT, head, *([comment, 0.02] * 12), b"\n", last)
    assert list(engine.stream([REQUEST]))[-1].generation.text == "A"
