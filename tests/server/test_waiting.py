"""Many clients at one model: some wait, some leave, some are slow, and some meet its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import golden
import pytest
from following import follow
from served import CHAT, ask, assert_error, begun, data_of, question, send, serving

import glm4v_magic
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.server_address import API_KEY
from glm4v_magic.server import app
from glm4v_magic.server.worker import Worker
from glm4v_magic.session.session import Session


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(API_KEY, raising=False)


class Served:
    """A model of this test alone; `steps` has the time of each of its steps."""

    def __init__(self, checkpoint):
        self.session = Session().load(checkpoint)
        self.head = self.session.engine.model.lm_head
        self.steps = []
        self.head.register_forward_hook(lambda *_: self.steps.append(time.monotonic()))

    def wait_for(self, steps):
        before = len(self.steps)
        for _ in range(1000):
            if len(self.steps) >= before + steps:
                return
            time.sleep(0.01)
        raise AssertionError("the model does not begin")

    def is_idle(self):
        time.sleep(0.1)  # for the step at which it is told to end
        before = len(self.steps)
        time.sleep(0.3)
        return len(self.steps) == before


@pytest.fixture
def served():
    served = Served(golden.CHECKPOINT)
    with serving(served.session.engine) as server:
        yield server, served
    served.session.unload()


@pytest.fixture
def endless(talkative):
    """Answers `LONG` with at least `WHOLE` tokens."""
    served = Served(talkative)
    with serving(served.session.engine) as server:
        yield server, served
    served.session.unload()


LONG = question(max_tokens=8000)
WHOLE = 200


def test_a_long_answer_is_long(endless):
    server, _ = endless
    assert ask(server, LONG)[1]["usage"]["completion_tokens"] >= WHOLE


class TestOthers:
    def test_sixteen_clients_at_once(self, served):
        server, _ = served
        alone = [ask(server, question(f"What is {n}?"))[1]["choices"] for n in range(16)]
        with ThreadPoolExecutor(16) as clients:
            asked = [
                clients.submit(ask, server, question(f"What is {n}?", stream=n % 2 == 1))
                for n in range(16)
            ]
        for number, each in enumerate(asked):
            status, content = each.result()
            text = alone[number][0]["message"]["content"]
            assert status == 200
            if number % 2:
                deltas = [event["choices"][0]["delta"] for event in data_of(content)]
                said = "".join(delta.get("content", "") for delta in deltas)
                assert said.strip() == text
            else:
                assert content["choices"] == alone[number]

    def test_one_that_says_nothing_keeps_nobody_waiting(self, served):
        server, _ = served
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with contextlib.ExitStack() as silent:
            for said in ("", "POST", head, f"{head}Content-Length: 99\r\n\r\n{{"):
                client = socket.create_connection(("127.0.0.1", server.port))
                silent.enter_context(client).sendall(said.encode())
            start = time.monotonic()
            assert ask(server, question())[0] == 200
            assert time.monotonic() - start < 10

    def test_one_that_does_not_read_keeps_nobody_waiting(self):
        session = Session().load(golden.CHECKPOINT)
        asked = Request(
            Conversation((Message("user", "What?"),)), Sampling(temperature=0, max_tokens=99)
        )

        async def last_event():
            worker = Worker(session.engine)
            unread, read = worker.begin(asked), worker.begin(asked)
            events = [event async for event in read.events(10)]
            worker.leave(unread)
            worker.leave(read)
            worker.close()
            return events[-1]

        event = asyncio.run(last_event())
        assert event.generation.usage.new_tokens == 99
        session.unload()

    def test_what_is_served_is_told_while_an_answer_is_written(self, endless):
        server, served = endless
        with begun(server, LONG):
            served.wait_for(3)
            assert send(server, "GET", "/v1/models")[0] == 200
            assert send(server, "GET", "/health")[0] == 200
            assert not served.is_idle()

    def test_signs_of_life(self, endless, monkeypatch):
        monkeypatch.setattr(app, "KEEP_ALIVE", 0.1)
        server, served = endless
        with begun(server, LONG) as long:
            served.wait_for(3)
            with begun(server, question(stream=True)) as waiting:
                response = waiting.getresponse()
                assert response.headers.get_content_type() == "text/event-stream"
                assert response.readline() + response.readline() == b": keep-alive\n\n"
                long.close()
                rest = response.read().decode().split("\n\n")
        assert rest[-2:] == ["data: [DONE]", ""]
        assert data_of(rest)[0]["choices"][0]["delta"]["role"] == "assistant"


class TestClientsThatLeave:
    @pytest.mark.parametrize("stream", [False, True])
    def test_while_they_are_answered(self, endless, stream):
        server, served = endless
        with begun(server, {**LONG, "stream": stream}) as client:
            if stream:
                assert client.getresponse().readline().startswith(b"data: ")
            served.wait_for(3)
        assert ask(server, question(max_tokens=3))[1]["usage"]["completion_tokens"] == 3
        assert len(served.steps) < WHOLE / 2
        assert served.is_idle()

    @pytest.mark.parametrize("stream", [False, True])
    def test_while_they_wait(self, endless, stream, monkeypatch):
        server, served = endless
        engine, begun_streams = served.session.engine, []
        answer = engine.stream
        monkeypatch.setattr(
            engine, "stream", lambda asked: begun_streams.append(asked) or answer(asked)
        )
        with begun(server, LONG):
            served.wait_for(3)
            with begun(server, {**LONG, "stream": stream}):
                time.sleep(0.3)
        assert ask(server, question(max_tokens=3))[0] == 200
        assert len(begun_streams) == 2  # nothing was read of the one that waited
        assert served.is_idle()

    def test_while_they_send(self, served, capfd):
        server, _ = served
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(f"{head}Content-Length: 99\r\n\r\n{{".encode())
            time.sleep(0.2)
        assert ask(server, question())[0] == 200
        assert "Traceback" not in capfd.readouterr().err


class TestTheEnd:
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_stopped_answer_does_not_look_complete(self, endless, stream):
        server, served = endless
        with begun(server, {**LONG, "stream": stream}) as client:
            served.wait_for(3)
            server.stop()
            response = client.getresponse()
            said = response.read().decode()
        assert "The server was stopped before the answer was complete." in said
        assert "[DONE]" not in said
        assert response.status == (200 if stream else 500)

    def test_it_takes_none_of_those_who_wait(self, endless):
        server, served = endless
        with begun(server, LONG), begun(server, LONG) as waiting:
            served.wait_for(3)
            server.stop()
            assert "The server was stopped" in waiting.getresponse().read().decode()
        assert served.is_idle()


class TestEngineTrouble:
    """An engine that fails: the real one, with a model that was sabotaged."""

    @pytest.mark.parametrize(
        ("text", "status", "said"),
        [
            ("CUDA out of memory. Tried to allocate 2.00 GiB.", 503, "ran out of memory"),
            ("expected scalar type Half", 500, "RuntimeError: expected scalar type Half"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_before_the_first_token(self, served, text, status, said, stream):
        server, model = served

        def fail(*_):
            raise RuntimeError(text)

        handle = model.head.register_forward_hook(fail)
        assert_error(ask(server, question(stream=stream)), status, said)
        handle.remove()
        assert ask(server, question())[0] == 200

    def test_in_the_middle(self, served):
        server, model = served
        calls = []

        def fail(*_):
            calls.append(1)
            if len(calls) == 6:
                raise RuntimeError("expected scalar type Half")

        model.head.register_forward_hook(fail)
        pieces = []
        with pytest.raises(EngineError, match="stopped with an error: RuntimeError: expected sca"):
            follow(
                glm4v_magic.load(server.url).stream("What?", temperature=0, max_tokens=20),
                text=pieces.append,
            )
        assert pieces
        assert ask(server, question())[0] == 200


def test_a_reader_of_events_finds_json_in_each(served):
    server, _ = served
    *events, done, _ = ask(server, question("猫 🐱?", stream=True))[1]
    assert done == "data: [DONE]"
    assert [json.loads(event.removeprefix("data: ")) for event in events]
    assert threading.active_count() < 20
