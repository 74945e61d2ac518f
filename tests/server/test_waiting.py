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
from served import CHAT, SECONDS, ask, assert_error, begun, data_of, question, send, serving

import glm4v_magic
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.options import Sampling
from glm4v_magic.server import app, listening
from glm4v_magic.server.worker import Worker
from glm4v_magic.session.session import Session


def of_rows(model):
    """Number of rows of each step of a model, from now on."""
    rows = []
    model.head.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[0]))
    return rows


class Served:
    """A model and its server; the model waits at one of its steps if it is told to.

    Attributes:
        steps: steps of the model since `watch`.
        hold_at: number of the step at which the model waits until `go_on`.
    """

    def __init__(self, checkpoint):
        self.session = Session().load(checkpoint)
        self.engine = self.session.engine
        self.head = self.engine.model.lm_head
        self._happened = threading.Condition()
        self.head.register_forward_hook(lambda *_: self._step())

    def watch(self, monkeypatch):
        """Count anew, and take note of the requests that begin and those that are left."""
        self.steps, self.hold_at = 0, None
        self.begun = self.left = 0
        begin, leave = Worker.begin, Worker.leave

        def begin_noted(worker, asked, **how):
            turn = begin(worker, asked, **how)
            self._note("begun")
            return turn

        def leave_noted(worker, turn):
            leave(worker, turn)
            self._note("left")

        monkeypatch.setattr(Worker, "begin", begin_noted)
        monkeypatch.setattr(Worker, "leave", leave_noted)

    def until(self, condition):
        with self._happened:
            assert self._happened.wait_for(condition, SECONDS), "it does not happen"

    def until_it_holds(self):
        self.until(lambda: self.steps == self.hold_at)

    def go_on(self):
        with self._happened:
            self.hold_at = None
            self._happened.notify_all()

    def _note(self, what):
        with self._happened:
            setattr(self, what, getattr(self, what) + 1)
            self._happened.notify_all()

    def _step(self):
        self._note("steps")
        self.until(lambda: self.hold_at is None or self.steps < self.hold_at)


def _no_room_for_two(_, inputs, __):
    if inputs[0].shape[0] > 1:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@contextlib.contextmanager
def watched(model, monkeypatch):
    """Serve `model`; its server ends with the context, or with the model's `end`."""
    model.watch(monkeypatch)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(model.engine))
        stack.callback(model.go_on)
        model.end = stack.close
        yield server, model


@pytest.fixture(scope="module")
def tiny_model():
    model = Served(golden.CHECKPOINT)
    yield model
    model.session.unload()


@pytest.fixture(scope="module")
def endless_model(talkative):
    model = Served(talkative)
    yield model
    model.session.unload()


@pytest.fixture
def served(tiny_model, monkeypatch):
    with watched(tiny_model, monkeypatch) as both:
        yield both


@pytest.fixture
def endless(endless_model, monkeypatch):
    """Answers `LONG` with at least `WHOLE` tokens."""
    with watched(endless_model, monkeypatch) as both:
        yield both


LONG = question(max_tokens=8000)
WHOLE = 200


def test_a_long_answer_is_long(endless):
    server, _ = endless
    asked = {**LONG, "max_tokens": WHOLE}
    assert ask(server, asked)[1]["usage"]["completion_tokens"] == WHOLE


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

    def test_they_are_answered_together(self, endless):
        server, model = endless
        rows = of_rows(model)
        model.hold_at = 3
        asked = {**LONG, "max_tokens": WHOLE}
        with ThreadPoolExecutor(3) as clients:
            first = clients.submit(ask, server, asked)
            model.until_it_holds()
            others = [clients.submit(ask, server, {**asked, "max_tokens": n}) for n in (9, 20)]
            model.until(lambda: model.begun == 3)
            model.go_on()
            counts = [each.result()[1]["usage"]["completion_tokens"] for each in others]
            counts.append(first.result()[1]["usage"]["completion_tokens"])
        assert counts == [9, 20, WHOLE]
        assert max(rows) == 3
        assert len(rows) < WHOLE + 9

    def test_two_hundred_at_once(self, served):
        server, _ = served
        with ThreadPoolExecutor(200) as clients:
            asked = [clients.submit(ask, server, question(max_tokens=1)) for _ in range(200)]
        assert {each.result()[0] for each in asked} == {200}

    def test_memory_that_is_short_for_all_is_enough_for_some(self, endless, monkeypatch):
        server, model = endless
        rows = of_rows(model)
        short = model.head.register_forward_hook(_no_room_for_two)
        model.hold_at = 3
        asked = {**LONG, "max_tokens": 40}
        with ThreadPoolExecutor(2) as clients:
            both = [clients.submit(ask, server, asked) for _ in range(2)]
            model.until(lambda: model.begun == 2)
            model.go_on()
            assert [each.result()[0] for each in both] == [200, 200]
        short.remove()
        assert max(rows) == 2

    def test_one_that_says_nothing_keeps_nobody_waiting(self, served):
        server, _ = served
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with contextlib.ExitStack() as silent:
            for said in ("", "POST", head, f"{head}Content-Length: 99\r\n\r\n{{"):
                client = socket.create_connection(("127.0.0.1", server.port))
                silent.enter_context(client).sendall(said.encode())
            # A server that waited for one of them would do so for as long as they are connected.
            assert ask(server, question())[0] == 200

    def test_one_that_does_not_read_keeps_nobody_waiting(self, tiny_model):
        asked = Request(
            Conversation((Message("user", "What?"),)), Sampling(temperature=0, max_tokens=99)
        )

        async def last_event():
            session = Session(tiny_model.engine)
            worker = Worker(session)
            unread, read = worker.begin([asked]), worker.begin([asked])
            events = []
            async for event in read.events(SECONDS):
                if not events:  # the session itself answers, for nobody else meanwhile
                    assert session.status().busy
                events.append(event)
            worker.leave(unread)
            worker.leave(read)
            worker.close()
            return events[-1]

        event = asyncio.run(last_event())
        assert event.generation.usage.new_tokens == 99

    def test_what_is_served_is_told_while_an_answer_is_written(self, endless):
        server, model = endless
        model.hold_at = 3
        with begun(server, LONG):
            model.until_it_holds()
            assert send(server, "GET", "/v1/models")[0] == 200
            assert send(server, "GET", "/health")[0] == 200
            model.go_on()
            model.until(lambda: model.steps > 5)

    def test_signs_of_life(self, endless, monkeypatch):
        monkeypatch.setattr(app, "KEEP_ALIVE", 0.1)
        server, model = endless
        model.hold_at = 3
        with begun(server, LONG) as long:
            model.until_it_holds()
            with begun(server, question(stream=True)) as waiting:
                response = waiting.getresponse()
                assert response.headers.get_content_type() == "text/event-stream"
                assert response.readline() + response.readline() == b": keep-alive\n\n"
                long.close()
                model.go_on()
                rest = response.read().decode().split("\n\n")
        assert rest[-2:] == ["data: [DONE]", ""]
        assert data_of(rest)[0]["choices"][0]["delta"]["role"] == "assistant"


class TestClientsThatLeave:
    @pytest.mark.parametrize("stream", [False, True])
    def test_while_they_are_answered(self, endless, stream):
        server, model = endless
        model.hold_at = 3
        with begun(server, {**LONG, "stream": stream}) as client:
            model.until_it_holds()
            if stream:
                assert client.getresponse().readline().startswith(b"data: ")
        model.until(lambda: model.left == 1)
        model.go_on()
        # The next one is answered when this one has been given up.
        assert ask(server, question(max_tokens=3))[1]["usage"]["completion_tokens"] == 3
        assert model.steps < WHOLE / 2

    @pytest.mark.parametrize("stream", [False, True])
    def test_while_they_wait(self, endless, stream, monkeypatch):
        server, model = endless
        taken = []
        answer = model.engine.stream

        def noted(requests, *rest):
            return answer((taken.append(each) or each for each in requests), *rest)

        monkeypatch.setattr(model.engine, "stream", noted)
        model.hold_at = 3
        with begun(server, LONG):
            model.until_it_holds()
            with begun(server, {**LONG, "stream": stream}):
                model.until(lambda: model.begun == 2)
            model.until(lambda: model.left == 1)
        model.until(lambda: model.left == 2)
        model.go_on()
        assert ask(server, question(max_tokens=3))[0] == 200
        assert len([*filter(None, taken)]) == 2  # nothing was read of the one that waited
        assert model.steps < WHOLE / 2

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
        server, model = endless
        model.hold_at = 3
        with begun(server, {**LONG, "stream": stream}) as client:
            model.until_it_holds()
            server.stop()
            response = client.getresponse()
            said = response.read().decode()
        assert "The server was stopped before the answer was complete." in said
        assert "[DONE]" not in said
        assert response.status == (200 if stream else 500)

    def test_it_takes_none_of_those_who_wait(self, endless):
        server, model = endless
        model.hold_at = 3
        with begun(server, LONG), begun(server, LONG) as waiting:
            model.until(lambda: model.begun == 2)
            model.until_it_holds()
            server.stop()
            assert "The server was stopped" in waiting.getresponse().read().decode()
        model.end()
        assert model.steps < WHOLE / 2

    def test_what_is_still_being_read_is_answered_as_an_error_is(
        self, tiny_model, monkeypatch, capfd
    ):
        real, reading = app.read_question, threading.Event()

        def slow(*content, **terms):
            reading.set()
            time.sleep(0.5)
            return real(*content, **terms)

        monkeypatch.setattr(listening, "STOP_SECONDS", 0.05)
        monkeypatch.setattr(app, "read_question", slow)
        with watched(tiny_model, monkeypatch) as (server, _), ThreadPoolExecutor() as pool:
            asked = pool.submit(ask, server, question())
            assert reading.wait(SECONDS)
            server.stop()
            assert_error(asked.result(), 500, "The server was stopped before it had read this.")
        assert "Traceback" not in capfd.readouterr().err


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

    def test_one_of_ours(self, served, caplog):
        server, model = served

        def fail(*_):
            raise EngineError("It came apart.")

        handle = model.head.register_forward_hook(fail)
        assert_error(ask(server, question()), 500, "It came apart.")
        handle.remove()
        (told,) = (each for each in caplog.records if each.exc_info)
        assert "It came apart." in str(told.exc_info[1])
        assert ask(server, question())[0] == 200

    def test_in_the_middle(self, served, caplog):
        server, model = served
        calls = []

        def fail(*_):
            calls.append(1)
            if len(calls) == 6:
                raise RuntimeError("expected scalar type Half")

        handle = model.head.register_forward_hook(fail)
        pieces = []
        with pytest.raises(EngineError, match="stopped with an error: RuntimeError: expected sca"):
            follow(
                glm4v_magic.load(server.url).stream("What?", temperature=0, max_tokens=20),
                text=pieces.append,
            )
        handle.remove()
        assert pieces
        (told,) = (each for each in caplog.records if each.exc_info)  # the log tells its cause
        assert "expected scalar type Half" in str(told.exc_info[1])
        assert ask(server, question())[0] == 200


def test_a_reader_of_events_finds_json_in_each(served):
    server, _ = served
    *events, done, _ = ask(server, question("猫 🐱?", stream=True))[1]
    assert done == "data: [DONE]"
    assert [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.fixture
def engines():
    """The engines' threads that run since; those of replicas in this process live as long as it."""
    before = threading.enumerate()
    return lambda: [
        each
        for each in threading.enumerate()
        if each.name.startswith("engine") and each not in before
    ]


def test_a_server_that_has_ended_leaves_no_engine_running(engines, served):
    server, model = served

    assert ask(server, question())[0] == 200
    assert len(engines()) == 1
    model.end()
    assert engines() == []
