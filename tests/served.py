"""A model behind our own server, in a thread of this process, and ways to ask it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import threading

from glm4v_magic.server.listening import Server
from glm4v_magic.session.session import Session

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
SECONDS = 60
"""How long anything is waited for that should come at once."""


@contextlib.contextmanager
def serving(engine, model="tiny", at_once=None, port=0):
    with Server("127.0.0.1", port) as server:
        server.open(Session(engine), model, at_once)
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()


def ask(server, body, **headers):
    """Send a request as it is; return status and JSON, or the events of a stream."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return send(server, "POST", CHAT, body, {**JSON, **headers})


def send(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        text = response.read().decode()
    if response.headers.get_content_type() == "application/json":
        return response.status, json.loads(text)
    return response.status, text.split("\n\n")


@contextlib.contextmanager
def begun(server, body):
    """A request whose answer is being read; gives the response, and hangs up at the end."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    connection.request("POST", CHAT, json.dumps(body).encode(), JSON)
    try:
        yield connection
    finally:
        connection.close()


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


def data_of(events):
    """The JSON of the events of a stream, without its end."""
    return [
        json.loads(each.removeprefix("data: ")) for each in events if each.startswith("data: {")
    ]


def assert_error(answer, status, said):
    assert answer[0] == status
    error = answer[1]["error"]
    assert said in error["message"]
    assert "\n" not in error["message"]
    assert error["code"] == status
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
