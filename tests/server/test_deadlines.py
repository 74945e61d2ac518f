"""Clients that are silent, slow, or do not read: each is cut in time, and delays nobody."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import socket
import threading
import time
from asyncio import constants

import pytest
from served import CHAT, SECONDS, ask, question, send, serving

from glm4v_magic.server import app, deadlines, listening
from glm4v_magic.server.worker import Worker

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
SOON = 0.3


@pytest.fixture
def server(engine):
    with serving(engine) as server:
        yield server


@contextlib.contextmanager
def connected(server, said=""):
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as client:
        client.sendall(said.encode())
        yield client


def dripped(client, byte=b"x"):
    """Send a byte now and then until the server cuts the connection; return what it said."""
    said = b""
    client.settimeout(0.02)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            client.sendall(byte)
            said += (part := client.recv(4096))
            if not part:
                return said
        except TimeoutError:
            pass
        except ConnectionError:
            return said
    raise AssertionError("the connection is not cut")


@pytest.mark.parametrize("said", ["", "GET /v1/mod", HEAD])
def test_a_head_that_does_not_come(server, monkeypatch, said):
    monkeypatch.setattr(deadlines, "HEAD_SECONDS", SOON)
    with connected(server, said) as client:
        assert client.recv(1) == b""


@pytest.mark.parametrize("said", ["GET /v1/mod", f"{HEAD}X-Long: "])
def test_a_head_that_drips(server, monkeypatch, said):
    monkeypatch.setattr(deadlines, "HEAD_SECONDS", SOON)
    with connected(server, said) as client:
        assert dripped(client) == b""


def test_a_head_that_drips_after_an_answer(server, monkeypatch):
    monkeypatch.setattr(deadlines, "HEAD_SECONDS", SOON)
    with connected(server, "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") as client:
        assert dripped(client).startswith(b"HTTP/1.1 200")


def test_a_body_that_nobody_reads_drips(server, monkeypatch):
    monkeypatch.setattr(deadlines, "HEAD_SECONDS", SOON)
    begun = "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"
    with connected(server, begun) as client:
        assert dripped(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("drips", [False, True])
def test_a_body_that_is_too_slow(server, monkeypatch, drips):
    monkeypatch.setattr(app, "BODY_SECONDS", SOON)
    with connected(server, f"{HEAD}Content-Length: 100000\r\n\r\n") as client:
        said = dripped(client) if drips else client.makefile("rb").read()
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"The request came too slowly: send it within 0.3 s, or 64 KiB per second." in said


def test_an_idle_connection(engine, monkeypatch):
    monkeypatch.setattr(listening, "IDLE_SECONDS", SOON)
    with (
        serving(engine) as server,
        connected(server, "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") as client,
    ):
        assert client.makefile("rb").read().startswith(b"HTTP/1.1 200")


@pytest.fixture
def held(engine):
    """The model waits at its first step until this event is set."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(*_):
        begun.set()
        assert go_on.wait(SECONDS)

    handle = engine.model.lm_head.register_forward_hook(wait)
    yield begun, go_on
    go_on.set()
    handle.remove()


def test_an_answer_may_take_longer_than_a_head(server, monkeypatch, held):
    monkeypatch.setattr(deadlines, "HEAD_SECONDS", SOON)
    begun, go_on = held
    body = json.dumps(question())
    head = f"{HEAD}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with connected(server, head + body) as client:
        assert begun.wait(SECONDS)
        time.sleep(2 * SOON)
        go_on.set()
        assert client.makefile("rb").read().startswith(b"HTTP/1.1 200")


def test_an_answer_that_is_not_read(server, monkeypatch, held):
    """The kernel and uvicorn hold some of it; then it waits for its reader."""
    monkeypatch.setattr(app, "KEEP_ALIVE", 0.0)  # signs of life as fast as they can be sent
    monkeypatch.setattr(deadlines, "READ_SECONDS", SOON)
    left = threading.Event()
    leave = Worker.leave

    def leave_noted(worker, turn):
        leave(worker, turn)
        left.set()

    monkeypatch.setattr(Worker, "leave", leave_noted)
    body = json.dumps(question(stream=True))
    with contextlib.closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # a small buffer there, too
        client.connect(("127.0.0.1", server.port))
        client.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert left.wait(SECONDS), "its reader is waited for"


def until(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def num_open(server):
    """Number of requests that are answered or wait."""
    _, (text, *_) = send(server, "GET", "/metrics")
    return sum(map(float, re.findall(r"requests_(?:running|waiting) (\d+)", text)))


def test_more_than_may_be_sent_at_once(server, monkeypatch):
    body = json.dumps(question())
    monkeypatch.setattr(app, "MOST_TOGETHER", len(body) + 9)
    with connected(server, f'{HEAD}Content-Length: 999\r\n\r\n{{"messages') as slow:
        until(lambda: ask(server, question())[0] == 429)
        status, said = ask(server, question())
        assert (status, said["error"]["message"]) == (
            429, "Too much is being sent at once. Ask again later.",
        )  # fmt: skip
        slow.close()
    until(lambda: ask(server, question())[0] == 200)


SLOW = ("", "GET /", HEAD, f"{HEAD}Content-Length: 99\r\n\r\n{{")


def test_more_connections_than_may_be_take_the_place_of_slow_ones(server, monkeypatch):
    monkeypatch.setattr(deadlines, "MOST_CONNECTIONS", len(SLOW))
    monkeypatch.setattr(deadlines, "HEAD_SECONDS", 9 * SECONDS)
    with contextlib.ExitStack() as open_ones:
        slow = [open_ones.enter_context(connected(server, said)) for said in SLOW]
        assert send(server, "GET", "/health")[0] == 200
        assert dripped(slow[0]) == b""  # the first that came
        slow.append(open_ones.enter_context(connected(server, SLOW[-1])))
        assert ask(server, question())[0] == 200
        assert dripped(slow[1]) == b""


def is_cut(client):
    client.settimeout(0.001)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_connections_that_come_at_once_each_take_a_place(server, monkeypatch):
    monkeypatch.setattr(deadlines, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(deadlines, "HEAD_SECONDS", 9 * SECONDS)
    with contextlib.ExitStack() as open_ones:
        clients = [open_ones.enter_context(connected(server, "GET")) for _ in range(40)]
        until(lambda: sum(map(is_cut, clients)) >= 38)
        assert sum(map(is_cut, clients)) == 38


def test_connections_that_cannot_be_accepted_are_told_of_in_one_line(server, monkeypatch, caplog):
    """And accepted as soon as there is room again."""
    accept, refused, is_full = socket.socket.accept, [], threading.Event()

    def refuse(listening):
        if not is_full.is_set():
            return accept(listening)
        refused.append(listening)
        raise OSError(errno.EMFILE, "Too many open files")

    is_full.set()
    monkeypatch.setattr(constants, "ACCEPT_RETRY_DELAY", 0.01)
    monkeypatch.setattr(socket.socket, "accept", refuse)
    with connected(server, "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") as client:
        until(lambda: len(refused) > 99)
        is_full.clear()
        assert client.recv(12) == b"HTTP/1.1 200"
    (said,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert said.startswith("No more connections can be accepted: Too many open files.")


def test_more_connections_than_are_answered(server, monkeypatch, held):
    body = json.dumps(question())
    whole = f"{HEAD}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    begun, go_on = held
    with connected(server, whole) as first, connected(server, whole) as second:
        assert begun.wait(SECONDS)
        until(lambda: num_open(server) == 2)
        monkeypatch.setattr(deadlines, "MOST_CONNECTIONS", 2)
        status, said = send(server, "GET", "/v1/models")
        go_on.set()
        assert (status, said["error"]["message"]) == (
            429, "There are too many connections. Ask again later.",
        )  # fmt: skip
        for client in (first, second):
            assert client.makefile("rb").read().startswith(b"HTTP/1.1 200")
    until(lambda: send(server, "GET", "/v1/models")[0] == 200)


def test_slow_ones_delay_nobody(server):
    with contextlib.ExitStack() as slow:
        for said in SLOW * 20:
            slow.enter_context(connected(server, said))
        assert send(server, "GET", "/health")[0] == 200
        assert ask(server, question())[0] == 200
