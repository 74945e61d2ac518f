"""Our own server around a model, asked by our own client and by clients that misbehave."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import golden
import pytest
from following import follow
from PIL import Image

import glm4v_magic
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.errors import EngineError, GenerationInterrupted, OptionError
from glm4v_magic.core.options import Sampling
from glm4v_magic.core.server_address import API_KEY, ServerAddress
from glm4v_magic.engines.server import connect
from glm4v_magic.server import serve
from glm4v_magic.session.session import Session

GREEDY = Sampling(temperature=0, max_tokens=16)
CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(API_KEY, raising=False)


@contextlib.contextmanager
def serving(engine, model="tiny"):
    """A server in a thread; in a process of its own it is `demo`, below."""
    with serve.Server("127.0.0.1", 0) as server:
        server.open(engine, model)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def local():
    session = Session().load(golden.CHECKPOINT)
    yield session
    session.unload()


@pytest.fixture(scope="module")
def server(local):
    with serving(local.engine) as server:
        yield server


@pytest.fixture(scope="module")
def remote(server):
    engine = connect(ServerAddress(server.url))
    yield engine
    engine.close()


def ask(server, body, **headers):
    """Send a request as it is; return status and JSON, or the lines of a stream."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    return send(server, "POST", CHAT, body, headers)


def send(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        text = response.read().decode()
    if response.headers.get_content_type() == "application/json":
        return response.status, json.loads(text)
    return response.status, text.split("\n\n")


def question(text="What?", **more):
    return {
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 8,
    } | more


def uri(image):
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def said(engine, request):
    """What an engine streams, and the generation at its end."""
    *events, finished = engine.stream([request])
    return [event.text for event in events], finished.generation


class TestSameAnswers:
    @pytest.mark.parametrize("case", golden.SINGLE_ROW)
    def test_greedy_answers_of_the_reference_cases(self, local, remote, case):
        request = Request(golden.conversation(case), GREEDY)
        here, expected = said(local.engine, request)
        there, given = said(remote, request)
        assert given.text == expected.text
        assert given.finish_reason == expected.finish_reason
        tokens = ("text_tokens", "visual_tokens", "new_tokens")
        for name in tokens:
            assert getattr(given.usage, name) == getattr(expected.usage, name)
        assert "".join(there).startswith("".join(here))

    def test_an_answer_that_goes_on(self, local, remote):
        turns = (Message("user", "What?"), Message("assistant", "It is a", complete=False))
        request = Request(Conversation(turns), GREEDY)
        expected = said(local.engine, request)[1].text
        assert said(remote, request)[1].text == expected
        fresh = Request(Conversation(turns[:1]), GREEDY)
        assert said(local.engine, fresh)[1].text != expected

    def test_sampled_answers_with_a_seed(self, local, remote):
        changes = (
            {},
            {"seed": 2},
            {"top_k": 1},
            {"top_p": 0.0001},
            {"min_p": 1.0},
            {"repetition_penalty": 50.0},
            {"max_tokens": 3},
        )
        conversation = Conversation((Message("user", "What?"),))
        texts = []
        for change in changes:
            values = {"max_tokens": 12, "temperature": 1.5, "seed": 1, **change}
            request = Request(conversation, Sampling(**values))
            expected = said(local.engine, request)[1].text
            texts.append(said(remote, request)[1].text)
            assert texts[-1] == expected, change
        assert len(set(texts)) == len(texts) - 2  # three of them are greedy

    def test_the_facts_of_the_model(self, local, remote):
        here, there = local.engine.info, remote.info
        assert there.model == "tiny"
        for name in ("notice", "max_images", "image_size", "visual_tokens", "context", "thinks"):
            assert getattr(there, name) == getattr(here, name)

    @pytest.mark.parametrize("given", [None, {}, {"enable_thinking": False}])
    def test_a_client_may_say_that_it_is_not_to_think(self, server, given):
        plain = ask(server, question())[1]["choices"]
        assert ask(server, question(chat_template_kwargs=given))[1]["choices"] == plain

    def test_in_one_piece(self, local, server):
        status, content = ask(server, question())
        assert status == 200
        expected = local.ask("What?", temperature=0, max_tokens=8)
        (choice,) = content["choices"]
        assert choice["message"] == {"role": "assistant", "content": expected.text}
        assert choice["finish_reason"] == "length"
        assert content["usage"]["completion_tokens"] == 8
        assert content["usage"]["prompt_tokens"] == expected.usage.text_tokens

    def test_in_pieces(self, server):
        plain = ask(server, question(stream=True))[1]
        with_usage = ask(server, question(stream=True, stream_options={"include_usage": True}))[1]
        assert plain[-2:] == with_usage[-2:] == ["data: [DONE]", ""]
        first, *_, last = (json.loads(event.removeprefix("data: ")) for event in plain[:-2])
        assert first["choices"][0]["delta"]["role"] == "assistant"
        assert last["choices"][0]["finish_reason"] == "length"
        assert "usage" not in last
        usage = json.loads(with_usage[-3].removeprefix("data: "))
        assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 8)


class TestRequests:
    @pytest.mark.parametrize(
        ("body", "status", "said"),
        [
            (b"{", 400, "not valid JSON"),
            (b"\xff", 400, "not valid JSON"),
            (b"[" * 100_000, 400, "not valid JSON"),
            ([], 400, "not a JSON object"),
            (question(model="other"), 404, "no model 'other' here. This is tiny."),
            (question(n=2), 400, "n must be 1"),
            (question(tools=[]), 400, "does not know 'tools'. It takes add_generation_prompt, "),
            (question(chat_template_kwargs=[]), 400, "chat_template_kwargs is not a JSON object"),
            (question(chat_template_kwargs={"x": 1}), 400, "does not know 'x' of chat_template_"),
            (
                question(chat_template_kwargs={"enable_thinking": True}),
                400,
                "tiny does not think before it answers",
            ),
            (question(temperature=-1), 400, "temperature is -1, but must be"),
            (question(max_tokens="9"), 400, "max_tokens is '9', but must be"),
            (question(max_completion_tokens=0), 400, "max_tokens is 0, but must be"),
            (question(repeat_penalty=0), 400, "repetition_penalty is 0, but must be"),
            (question(messages=None), 400, "no list of messages"),
            (question(messages=[]), 400, "no list of messages"),
            (question(messages=["x"]), 400, "Message 1 has the role None"),
            (question(messages=[{"role": "tool"}]), 400, "the role 'tool'. Roles are system,"),
            (question(messages=[{"role": "user"}]), 400, "Message 1 has no content"),
            (question(" "), 400, "The prompt is empty"),
            (question([{"type": "audio"}]), 400, "a part of the type 'audio' that cannot be read"),
            (question([{"type": "text", "text": 1}]), 400, "the type 'text' that cannot be read"),
            (question(messages=[{"role": "assistant", "content": "x"}]), 400, "last message is of"),
            (question(continue_final_message=True), 400, "last message is of the role 'user'"),
            (question("x" * 20_000), 400, "tokens long, but"),
        ],
    )
    def test_what_cannot_be_answered(self, server, body, status, said):
        assert_error(ask(server, body), status, said)

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("http://127.0.0.1:1/cat.png", "image of message 1 is not a data: URI. This server"),
            ("file:///etc/passwd", "fetches nothing"),
            ("/etc/passwd", "fetches nothing"),
            (None, "fetches nothing"),
            ("data:image/png;base64,@@", "not valid base64"),
            ("data:text/html,<p>", "not an image"),
            ("data:image/png,hello", "is not an image"),
        ],
    )
    def test_images_it_does_not_take(self, server, url, said):
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
        assert_error(ask(server, question(content)), 400, said)

    def test_an_image_that_would_be_huge(self, server):
        buffer = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(buffer, format="png")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "?"}]
        assert_error(ask(server, question(content)), 400, "megapixels")

    def test_two_images_for_a_model_that_takes_one(self, server):
        photo = {"type": "image_url", "image_url": {"url": uri(Image.new("RGB", (8, 8)))}}
        content = [photo, photo, {"type": "text", "text": "?"}]
        assert_error(ask(server, question(content, stream=True)), 400, "holds 2 images")

    def test_a_body_that_is_too_long(self, server, monkeypatch):
        monkeypatch.setattr(serve, "MOST_BYTES", 2**20)
        assert_error(ask(server, b"x" * (2**20 + 1)), 413, "may have 1 MiB")

    def test_requests_of_another_form(self, server):
        plain = {"Content-Type": "text/plain"}
        for answer, status, said in (
            (send(server, "GET", "/v1"), 404, "There is no /v1 here"),
            (send(server, "POST", "/v1/completions", b"{}"), 404, "no /v1/completions here"),
            (send(server, "PUT", CHAT), 501, "Unsupported method"),
            (send(server, "POST", CHAT, b"{}", plain), 415, "application/json, not text/plain"),
            (ask(server, b""), 411, "Content-Length"),
        ):
            assert_error(answer, status, said)

    def test_what_is_no_http(self, server):
        with socket.create_connection(("127.0.0.1", server.server_port)) as client:
            client.sendall(b'GET "x"\0 / / /\r\n\r\n')
            assert b'"type": "invalid_request_error"' in client.recv(4096)
        assert ask(server, question())[0] == 200

    def test_a_page_that_points_its_own_name_here(self, server):
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
            assert_error(ask(server, question(), Host=host), 403, "its own computer only")
        for host in ("localhost", "127.0.0.1:99", "[::1]:99"):
            assert ask(server, question(), Host=host)[0] == 200

    def test_the_key(self, server, monkeypatch):
        monkeypatch.setenv(API_KEY, "sesame")
        assert_error(ask(server, question()), 401, "The key of GLM4V_API_KEY is needed")
        assert_error(ask(server, question(), Authorization="Bearer x"), 401, "is needed")
        assert send(server, "GET", "/v1/models")[0] == 401
        assert ask(server, question(), Authorization="Bearer sesame")[0] == 200
        assert glm4v_magic.load(server.url).ask("What?", temperature=0, max_tokens=4).text
        monkeypatch.setenv(API_KEY, "other")
        # The server runs in this process, so it has the same key; a wrong one is sent by hand.
        assert ask(server, question(), Authorization="Bearer sesame")[0] == 401


def assert_error(answer, status, said):
    assert answer[0] == status
    error = answer[1]["error"]
    assert said in error["message"]
    assert error["code"] == status
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")


class TestEngineTrouble:
    """An engine that fails: the real one, with a model that was sabotaged."""

    @pytest.fixture
    def broken(self, capfd):
        session = Session().load(golden.CHECKPOINT)
        with serving(session.engine) as server:
            yield server, session.engine.model.lm_head

    @pytest.mark.parametrize(
        ("text", "status", "said"),
        [
            ("CUDA out of memory. Tried to allocate 2.00 GiB.", 503, "ran out of memory"),
            ("expected scalar type Half", 500, "RuntimeError: expected scalar type Half"),
        ],
    )
    def test_before_the_first_token(self, broken, text, status, said):
        server, head = broken

        def fail(*_):
            raise RuntimeError(text)

        handle = head.register_forward_hook(fail)
        assert_error(ask(server, question(stream=True)), status, said)
        handle.remove()
        assert ask(server, question())[0] == 200

    def test_in_the_middle(self, broken):
        server, head = broken
        calls = []

        def fail(*_):
            calls.append(1)
            if len(calls) == 6:
                raise RuntimeError("expected scalar type Half")

        head.register_forward_hook(fail)
        pieces = []
        with pytest.raises(EngineError, match="stopped with an error: RuntimeError: expected sca"):
            follow(
                glm4v_magic.load(server.url).stream("What?", temperature=0, max_tokens=20),
                text=pieces.append,
            )
        assert pieces
        # It answers one request after the other, so now it has also written its log.
        assert ask(server, question())[0] == 200


def test_a_client_that_leaves_stops_the_model(talkative, interrupt):
    session = Session().load(talkative)
    tokens = []
    session.engine.model.lm_head.register_forward_hook(lambda *_: tokens.append(1))
    with serving(session.engine) as server:
        remote = glm4v_magic.load(server.url)
        pieces = []

        def stop_at_third(text):
            pieces.append(text)
            if len(pieces) == 3:
                interrupt()

        with pytest.raises(GenerationInterrupted) as caught:
            follow(remote.stream("What?", max_tokens=4000), text=stop_at_third)
        assert caught.value.answer.text
        # One request at a time: this answer comes when the other has been given up.
        assert remote.ask("What?", max_tokens=3).usage.new_tokens == 3
        assert len(tokens) < 1000
    session.unload()


class TestCommand:
    def test_a_port_in_use(self, server):
        with pytest.raises(OptionError, match=r"Port \d+ of 127.0.0.1 cannot be used: OSError"):
            serve.Server("127.0.0.1", server.server_port)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["no-such-folder", "--port", "0"], "There is no checkpoint 'no-such-folder'"),
            (["demo", "--port", "99999"], "Port 99999 of 127.0.0.1 cannot be used: OverflowError"),
            (["demo", "--port", "0", "--gpus", "0x4GiB"], "0x4GiB"),
            (["http://127.0.0.1:1/v1"], "is a server"),
        ],
    )
    def test_what_it_refuses(self, capsys, words, said):
        assert serve.main(words) == 1
        assert said in capsys.readouterr().err

    def test_options_of_the_placement_reach_the_model(self, monkeypatch, capsys):
        served = []
        monkeypatch.setattr(serve.Server, "open", lambda self, *given: served.append(given))
        monkeypatch.setattr(serve.Server, "serve_forever", lambda self: None)
        words = [str(golden.CHECKPOINT), "--port", "0", "--dtype", "bfloat16", "--host", "0.0.0.0"]
        assert serve.main(words) == 0
        ((engine, name),) = served
        assert engine.info.dtype == "bfloat16"
        assert name == "checkpoint"
        assert "Whoever reaches this port may ask; set GLM4V_API_KEY" in capsys.readouterr().err


@pytest.fixture(scope="module")
def demo():
    """The demo model in a process of its own, as a user starts it; its process and address."""
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "glm4v_magic.server.serve",
        "demo",
        "--port",
        "0",
    ]
    environment = {name: value for name, value in os.environ.items() if name != API_KEY}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        line = process.stdout.readline()
        found = re.fullmatch(r"demo is served at (http://127\.0\.0\.1:\d+/v1)\..*\n", line)
        assert found, process.stderr.read()
        yield process, found[1]
        process.kill()


class TestCells:
    def test_the_same_cell_asks_a_server(self, demo, run, shell, photo):
        _, address = demo
        shell.user_ns["address"] = address
        assert run("%glm4v load {{address}}") == f"Connected to {address}: demo.\n"
        there = run("%%glm4v cat.png -o there --temperature 0\nWhat colour is the background?")
        assert "cat.png, 320 x 240 px · the model sees 112 x 112 px · 18 visual tokens" in there
        assert "18 visual tokens in" in there
        assert "This is the demo model" in there
        status = run("%glm4v")
        assert re.search(rf"server +{address}", status)
        assert re.search(r"context +1,024 positions", status)
        assert "parameters" not in status
        assert "is loaded already" in run("%glm4v load {{address}}")
        assert "is a server: prompt, plan and memory are its own" in run(
            '%glm4v preview cat.png "A?"', fails=True
        )
        said = run("%glm4v unload")
        assert said == f"Disconnected from {address}, which goes on.\n"
        run("%glm4v load demo")
        run("%%glm4v cat.png -o here --temperature 0\nWhat colour is the background?")
        assert shell.user_ns["here"].text == shell.user_ns["there"].text
        run("%glm4v unload")

    def test_options_of_load(self, demo, run):
        _, address = demo
        said = run(f"%glm4v load {address} --served-model other")
        assert said == f"Connected to {address}: other.\n"
        assert "There is no model 'other' here" in run("%%glm4v\nWhat?", fails=True)
        run(f"%glm4v load {address} --timeout 0.001 --served-model demo")
        assert "was silent for 0.001 s" in run("%%glm4v\nWhat?", fails=True)
        assert "Only served_model and timeout" in run(
            f"%glm4v load {address} --gpus cpu", fails=True
        )
        run("%glm4v unload")

    def test_an_interrupt_ends_the_server(self, demo):
        process, _ = demo
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read().splitlines()[-1] == "Stopped."
