"""A web server that says exactly what a test tells it to, right or wrong."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import sys
import threading
import time
from pathlib import Path

MODELS = ("GET", "/v1/models")
CHAT = ("POST", "/v1/chat/completions")
SECONDS = 60
"""How long anything is waited for that should come at once."""


def response(body=b"", status="200 OK", kind="application/json", **headers):
    """A whole HTTP response as bytes, without a length: it ends with its connection."""
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def models(*names, **facts):
    return response({"data": [{"id": name, **facts} for name in names]})


def stream(*events, done=True):
    """A stream of events; each a dictionary, or bytes as they are."""
    parts = [
        event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode() + b"\n\n"
        for event in events
    ]
    if done:
        parts.append(b"data: [DONE]\n\n")
    return response(b"".join(parts), kind="text/event-stream")


def piece(content=None, ending=None, **delta):
    if content is not None:
        delta["content"] = content
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": ending}]}


END = piece(ending="stop")


def silence(connection):
    """Part of a script: wait until the client hangs up."""
    connection.settimeout(SECONDS)
    with contextlib.suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass


def while_the_client_waits(act, heard=None):
    """Part of a script: `act` as soon as the main thread waits for what the server says next.

    Args:
        heard: event that is set once the client has told what was said before; without it, nothing
            was said.
    """

    def part(_connection):
        assert heard is None or heard.wait(SECONDS)
        end = time.monotonic() + SECONDS
        while not _main_thread_reads():
            assert time.monotonic() < end, "the client does not read"
            time.sleep(0.001)
        act()

    return part


def _main_thread_reads():
    code = sys._current_frames()[threading.main_thread().ident].f_code
    return code.co_name == "wait" and Path(code.co_filename).name == "threading.py"


class ScriptedServer(socketserver.ThreadingTCPServer):
    """`script` holds, by method and path, what is done to answer.

    Parts are bytes to send, pauses in seconds, and functions of the connection.
    """

    daemon_threads = True
    request_queue_size = 128
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = {}
        self.requests = []
        self.asked = threading.local()  # in a part of a script, the body that it answers
        self.closed_by_client = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def forget(self):
        """Forget the script, and what clients did."""
        self.script.clear()
        self.requests.clear()
        self.closed_by_client = threading.Event()  # what ends late sets the one before

    def answer(self, about, *parts):
        self.script[about] = parts

    @property
    def bodies(self):
        return [json.loads(body) for method, _, _, body in self.requests if method == "POST"]


class _Handler(socketserver.StreamRequestHandler):
    def handle(self):
        closed = self.server.closed_by_client
        method, path, _ = self.rfile.readline().decode().split(" ", 2)
        headers = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        body = self.rfile.read(int(headers.get("content-length", 0)))
        self.server.requests.append((method, path, headers, body))
        self.server.asked.body = body
        for part in self.server.script.get((method, path), (response(status="404 Not Found"),)):
            if callable(part):
                part(self.connection)
                if part is silence:
                    closed.set()
            elif isinstance(part, bytes):
                try:
                    self.wfile.write(part)
                except OSError:
                    closed.set()
                    return
            else:
                time.sleep(part)


@contextlib.contextmanager
def scripted_server():
    with ScriptedServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def deaf():
    """The URL of a server with so many waiting that it drops every further connection."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
