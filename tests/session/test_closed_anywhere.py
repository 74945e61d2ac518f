"""Closing a stream at any of its events, whatever was asked for, releases the session."""

from __future__ import annotations

from contextlib import nullcontext

import pypdfium2
import pytest
import tiny_native
from following import returned
from scripted_server import CHAT, END, MODELS, SECONDS, models, piece, scripted_server, stream

from glm4v_magic.core.events import (
    Done,
    Loading,
    Reclassified,
    RowDone,
    Started,
    Text,
    Thinking,
)
from glm4v_magic.core.server_address import ServerAddress
from glm4v_magic.engines.server import connect
from glm4v_magic.session.session import Session

A, B = tiny_native.image(90, 60, 0), tiny_native.image(60, 90, 1)
SAID = "\n<think>\nOne or two?</think>\nTwo."
GREEDY = {"temperature": 0, "max_tokens": 8, "repetition_penalty": 1.0}
OPTIONS = {
    "several images": {"images": [A, B]},
    "a page": {"images": "paper.pdf#page=2"},
    "frames": {"video": [A.image] * 4},
    "log-probabilities": {"images": A, "logprobs": 2},
    "choices": {"images": A, "choices": ["yes", "no"]},
    "a regex": {"images": A, "regex": "[0-9]{3}", "thinking": False},
    "a budget of thinking": {"images": A, "max_tokens": 60, "max_thinking": 3, "logprobs": 1},
}


@pytest.fixture(scope="module")
def session(native):
    return Session().load(str(native("glm46v")))


@pytest.fixture(autouse=True)
def paper(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = pypdfium2.PdfDocument.new()
    for _ in range(3):
        document.new_page(99, 66)
    document.save("paper.pdf")


def saying(session, options):
    """The model says `SAID` once if its thinking is limited, and otherwise what it says."""
    limited = "max_thinking" in options
    return tiny_native.Says(session.engine, SAID) if limited else nullcontext()


def said(events):
    return [event.text for event in events if isinstance(event, Text | Thinking)]


def close_after(count, session, stream):
    """Close a stream of a session after so many events; returns these."""
    seen = [next(stream) for _ in range(count)]
    assert session.status().busy
    stream.close()  # not for want of anybody who holds it
    assert not session.status().busy
    return seen


@pytest.mark.parametrize("asked", OPTIONS)
def test_a_question_with(session, asked):
    options = GREEDY | OPTIONS[asked]
    with saying(session, options):
        events = list(session.stream("What?", **options))
    assert Thinking in map(type, events) or "max_thinking" not in options
    assert [type(event) for event in (events[0], events[-1])] == [Started, Done]
    for count in range(1, len(events) + 1):
        with saying(session, options):
            seen = close_after(
                count, session, session.stream("What?", chat=f"{asked} {count}", **options)
            )
        assert said(seen) == said(events[:count])
        if count > 1:
            last = session.status().last
            assert "".join(said(seen)).strip() in f"{last.thinking}{last.text}"
    with saying(session, options):
        again = session.ask("What?", **options)
    assert (again.text, again.thinking) == (events[-1].answer.text, events[-1].answer.thinking)


@pytest.mark.parametrize("asked", ["choices", "log-probabilities"])
def test_pages_as_rows_with(session, asked):
    options = GREEDY | OPTIONS[asked] | {"images": None, "batch_size": 2}
    pages = [f"paper.pdf#page={number}" for number in (1, 2, 3)]
    session.forget_answers()
    *events, done = session.stream_map("What?", pages, **options)
    assert {type(event) for event in events} == {Started, Text, RowDone}
    for count in range(1, len(events) + 2):
        session.forget_answers()
        seen = close_after(count, session, session.stream_map("What?", pages, **options))
        rows = session.map("What?", pages, **options)
        assert [row.text for row in rows] == [row.text for row in done.result]
        finished = sum(isinstance(event, RowDone) for event in seen)
        assert sum(row.reused for row in rows) >= finished  # some end before they are told


def test_a_load(native):
    folder = str(native("glm46v"))
    loads = sum(
        isinstance(event, Loading) for event in Session().stream("?", model=folder, **GREEDY)
    )
    assert loads > 9
    for count in (1, loads // 2, loads, loads + 1):
        session = Session()
        seen = close_after(count, session, session.stream("?", model=folder, **GREEDY))
        assert {type(event) for event in seen[:loads]} == {Loading}
        assert (session.status().info is None) == (count <= loads)
        assert session.ask("?", model=folder, **GREEDY).text


def test_text_that_was_thinking():
    with scripted_server() as server:
        server.answer(MODELS, models("m"))
        server.answer(CHAT, stream(piece("Hm, "), piece("so.</think>A"), piece("."), END))
        session = Session(returned(connect(ServerAddress(server.url, timeout=SECONDS))))
        kinds = [type(event) for event in session.stream("?")]
        assert kinds == [Started, Text, Reclassified, Thinking, Text, Text, Done]
        for count in range(1, len(kinds) + 1):
            close_after(count, session, session.stream("?", chat=f"c{count}"))
        assert session.ask("?").text == "A."
        session.unload()
