"""Serve a model to other programs: ``python -m glm4v_magic.server.serve MODEL``.

A small server that speaks OpenAI's protocol (``/v1/models``, ``/v1/chat/completions``, streamed or
not), so that a notebook on a laptop can ask the machine with the GPUs::

    python -m glm4v_magic.server.serve ~/models/glm-4v-9b --gpus 2x24GiB

    Session().load("http://127.0.0.1:8000/v1")

It answers one request after the other, in the main thread: a Ctrl-C stops it between two tokens. It
listens on this computer only unless told otherwise, and fetches nothing: images come as ``data:``
URIs. If GLM4V_API_KEY is set, it answers only those who send that key. For many users at once,
vLLM and SGLang are the right choice.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import json
import os
import socket
import socketserver
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from glm4v_magic.calls.prompt import require_text
from glm4v_magic.core.conversation import Conversation, Generation, Message, Request
from glm4v_magic.core.errors import (
    CheckpointError,
    ConversationError,
    Glm4vError,
    ImageError,
    InputError,
    OptionError,
    OutOfMemoryError,
    reason,
)
from glm4v_magic.core.events import Finished, Text
from glm4v_magic.core.options import Sampling, check, of_command, of_requests
from glm4v_magic.core.server_address import API_KEY, is_loopback, refuse_address
from glm4v_magic.core.typed_options import argument_of, flags_of, typed
from glm4v_magic.engines import Engine
from glm4v_magic.engines.server import OWN_FACTS
from glm4v_magic.images import SourcedImage, to_image
from glm4v_magic.server.next_steps import in_http
from glm4v_magic.session.session import load

__all__ = ["Server", "Wanted", "main", "read_request"]

MOST_BYTES = 64 * 2**20
"""Longest request, in bytes; an image in it is a third longer than its file."""

_SECONDS = 30.0  # longest silence of a client that is sending or should be receiving
_SAMPLING = {each.name for each in of_requests()} - {"max_tokens"}
_LENGTH = ("max_completion_tokens", "max_tokens")  # new name and old
_FIELDS = {
    "model",
    "messages",
    "stream",
    "stream_options",
    "n",
    "user",
    "add_generation_prompt",
    "continue_final_message",
    "repeat_penalty",
    "chat_template_kwargs",
    *_LENGTH,
    *_SAMPLING,
}
_STATUS: tuple[tuple[type[Glm4vError], HTTPStatus], ...] = (
    (InputError, HTTPStatus.BAD_REQUEST),
    (CheckpointError, HTTPStatus.NOT_FOUND),
    (OutOfMemoryError, HTTPStatus.SERVICE_UNAVAILABLE),
    (Glm4vError, HTTPStatus.INTERNAL_SERVER_ERROR),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client asks for.

    Attributes:
        request: for the engine.
        stream: whether the answer goes out in pieces.
        usage: whether the pieces end with the usage; a whole answer always has it.
    """

    request: Request
    stream: bool
    usage: bool


def read_request(body: object, model: str) -> Wanted:
    """Read the JSON of a chat completion.

    Images come before the text of their message, wherever they stand in it: the model was
    trained that way.

    Args:
        body: the parsed JSON.
        model: the one that is served.

    Raises:
        InputError: if something in it is missing, malformed, or not possible here.
        CheckpointError: if another model is asked for.
    """
    if not isinstance(body, dict):
        raise OptionError("The request is not a JSON object.")
    unknown = sorted(name for name in body.keys() - _FIELDS if body[name] is not None)
    if unknown:
        raise OptionError(
            f"This server does not know {', '.join(map(repr, unknown))}.",
            f"It takes {', '.join(sorted(_FIELDS))}.",
        )
    if body.get("model", model) != model:
        raise CheckpointError(f"There is no model {body['model']!r} here.", f"This is {model}.")
    if body.get("n") not in (None, 1):
        raise OptionError("This server gives one answer to a request: n must be 1.")
    _refuse_template_options(body.get("chat_template_kwargs"), model)
    options = body.get("stream_options") or {}
    return Wanted(
        Request(_conversation(body), _sampling(body)),
        stream=bool(body.get("stream")),
        usage=isinstance(options, dict) and bool(options.get("include_usage")),
    )


def _refuse_template_options(given: object, model: str) -> None:
    """Refuse what other servers hand to a chat template, but that a model is not to think."""
    if given is None:
        return
    if not isinstance(given, dict):
        raise OptionError("chat_template_kwargs is not a JSON object.")
    unknown = sorted(map(repr, given.keys() - {"enable_thinking"}))
    if unknown:
        raise OptionError(
            f"This server does not know {', '.join(unknown)} of chat_template_kwargs.",
            "It takes enable_thinking.",
        )
    if given.get("enable_thinking"):
        raise OptionError(f"{model} does not think before it answers.")


def _sampling(body: dict[str, Any]) -> Sampling:
    values = {name: body.get(name) for name in _SAMPLING}
    if values["repetition_penalty"] is None:
        values["repetition_penalty"] = body.get("repeat_penalty")
    lengths = [body[name] for name in _LENGTH if body.get(name) is not None]
    values["max_tokens"] = lengths[0] if lengths else Sampling().max_tokens
    for name, value in values.items():
        if value is not None:
            check(name, value)
    return Sampling(**cast("dict[str, Any]", values))


def _conversation(body: dict[str, Any]) -> Conversation:
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise ConversationError("The request has no list of messages.")
    goes_on = bool(body.get("continue_final_message"))
    messages = [
        _message(message, number, goes_on and number == len(given))
        for number, message in enumerate(given, start=1)
    ]
    if messages[-1].role != ("assistant" if goes_on else "user"):
        raise ConversationError(
            f"The last message is of the role {messages[-1].role!r}.",
            "It must be the user's question, or with continue_final_message an answer to go on "
            "with.",
        )
    return Conversation(tuple(messages))


def _message(given: object, number: int, unfinished: bool) -> Message:
    role = given.get("role") if isinstance(given, dict) else None
    content = given.get("content") if isinstance(given, dict) else None
    if role not in ("system", "user", "assistant"):
        raise ConversationError(
            f"Message {number} has the role {role!r}.", "Roles are system, user and assistant."
        )
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise ConversationError(f"Message {number} has no content.")
    texts: list[str] = []
    images: list[SourcedImage] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            images.append(_image(part.get("image_url"), f"image of message {number}"))
        else:
            raise ConversationError(
                f"Message {number} has a part of the type {kind!r} that cannot be read.",
                "Parts are text and image_url.",
            )
    text = "\n".join(texts)
    if role != "assistant":
        text = text.strip() if images else require_text(text)
    return Message(
        role,
        text,
        tuple(images),
        complete=not unfinished,
    )


def _image(given: object, source: str) -> SourcedImage:
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str) or url[:5].lower() != "data:":
        raise ImageError(
            f"The {source} is not a data: URI.",
            "This server fetches nothing; send the image itself.",
        )
    return to_image(url, source)


class Server(HTTPServer):
    """One engine at one address.

    Args:
        host: name or address to listen at.
        port: 0 for any free one.

    Raises:
        OptionError: if that is not possible.
    """

    engine: Engine
    model: str

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        if ":" in host:
            self.address_family = socket.AF_INET6
        # Bound now, so that a port in use is known before a model is loaded; open after that.
        super().__init__((host, port), _Handler, bind_and_activate=False)
        try:
            self.server_bind()
        except (OSError, OverflowError) as error:
            self.server_close()
            raise OptionError(
                f"Port {port} of {host} cannot be used: {reason(error)}.",
                "Choose another with --port; 0 is any free one.",
            ) from None

    def server_bind(self) -> None:
        """Bind without asking the network for this computer's name, as the base class does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    @property
    def url(self) -> str:
        """Address of the API."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_port}/v1"

    def open(self, engine: Engine, model: str) -> None:
        """Begin to listen, and say so; `serve_forever` then answers.

        Args:
            engine: what answers.
            model: its name for clients.
        """
        self.engine, self.model = engine, model
        self.server_activate()
        # print, and not a log: this is the line to wait for
        print(f"{model} is served at {self.url}. Ctrl-C ends it.", flush=True)  # noqa: T201


class _Handler(BaseHTTPRequestHandler):
    """One connection. HTTP/1.0: an answer ends where the connection does."""

    server: Server
    server_version = f"glm4v_magic/{version('glm4v_magic')}"
    sys_version = ""
    timeout = _SECONDS
    unread = 0
    begun = False

    def do_GET(self) -> None:
        """Tell what is served."""
        if self._may_ask():
            if self.path == "/v1/models":
                self._reply(HTTPStatus.OK, {"object": "list", "data": [self._entry()]})
            else:
                self.send_error(HTTPStatus.NOT_FOUND, f"There is no {self.path} here.")

    def do_POST(self) -> None:
        """Answer a question."""
        self.unread = self._length()
        if not self._may_ask():
            return
        if self.path != "/v1/chat/completions":
            self.send_error(HTTPStatus.NOT_FOUND, f"There is no {self.path} here.")
            return
        try:
            body = self._body()
            if body is not None:
                self._answer(read_request(_parsed(body), self.server.model))
        except OSError as error:  # nobody listens any more; the engine has stopped
            self.log_message("%s", f"the client is gone: {reason(error)}")
        except Glm4vError as error:
            status = next(status for kind, status in _STATUS if isinstance(error, kind))
            self._fail(status, in_http(error))
        except Exception as error:
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, reason(error))
            raise

    def _may_ask(self) -> bool:
        """Refuse those who do not know the key, and web pages that guess this address."""
        key = os.environ.get(API_KEY, "").strip()
        sent = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if key and not hmac.compare_digest(sent, f"Bearer {key}".encode()):
            self.send_error(HTTPStatus.UNAUTHORIZED, f"The key of {API_KEY} is needed.")
            return False
        # Whoever controls a name can point it here, and a browser then takes us for his site.
        asked = self.headers.get("Host", "").rpartition("@")[2]
        name = asked.rpartition(":")[0] if asked.rpartition(":")[2].isdigit() else asked
        if is_loopback(self.server.host) and not is_loopback(name.strip("[]")):
            self.send_error(HTTPStatus.FORBIDDEN, "This server is for its own computer only.")
            return False
        return True

    def _length(self) -> int:
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isdigit() and len(text) < 16 else 0

    def _body(self) -> bytes | None:
        kind = self.headers.get_content_type()
        if kind != "application/json":  # a page from elsewhere could send any other without asking
            self.send_error(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Send application/json, not {kind}."
            )
        elif not self.unread:
            self.send_error(HTTPStatus.LENGTH_REQUIRED, "Send a body, and its Content-Length.")
        elif self.unread > MOST_BYTES:
            most = f"{MOST_BYTES // 2**20} MiB"
            self.send_error(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A request may have {most}; send less."
            )
        else:
            body = self.rfile.read(self.unread)
            self.unread = 0
            return body
        return None

    def _answer(self, wanted: Wanted) -> None:
        called = f"chatcmpl-{uuid.uuid4().hex}"
        created = int(time.time())

        def framed(kind: str, **rest: object) -> dict[str, object]:
            about = {"id": called, "object": kind, "created": created, "model": self.server.model}
            return {**about, **rest}

        def piece(delta: dict[str, str], ending: str | None = None) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": ending}
            self._send_event(framed("chat.completion.chunk", choices=[choice]))

        sent = ""

        def on_text(text: str) -> None:
            nonlocal sent
            if wanted.stream:
                piece({"content": text} if self.begun else {"role": "assistant", "content": text})
                sent += text

        generation = _answered(self.server.engine, wanted.request, on_text)
        ending, usage = generation.finish_reason, _usage(generation)
        if not wanted.stream:
            message = {"role": "assistant", "content": generation.text}
            choice = {"index": 0, "message": message, "finish_reason": ending}
            self._reply(HTTPStatus.OK, framed("chat.completion", choices=[choice], usage=usage))
            return
        if generation.text.startswith(sent) and len(generation.text) > len(sent):
            on_text(
                generation.text[len(sent) :]
            )  # an answer cut inside of a character ends in U+FFFD
        piece({}, ending)
        if wanted.usage:
            self._send_event(framed("chat.completion.chunk", choices=[], usage=usage))
        self.wfile.write(b"data: [DONE]\n\n")

    def _send_event(self, content: object) -> None:
        if not self.begun:
            self.begun = True
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Cache-Control", "no-cache")
            self.end_headers()
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())

    def _entry(self) -> dict[str, object]:
        info = self.server.engine.info
        return {
            "id": self.server.model,
            "object": "model",
            "created": 0,
            "owned_by": "glm4v_magic",
            "max_model_len": info.context,
            OWN_FACTS: {
                "notice": info.notice,
                "max_images": info.max_images,
                "image_size": info.image_size,
                "visual_tokens": info.visual_tokens,
                "thinks": info.thinks,
            },
        }

    def _fail(self, status: HTTPStatus, message: str) -> None:
        if self.begun:  # the status is sent: the error is the last event
            self._send_event(_error(status, message))
        else:
            self.send_error(status, message)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send an error as JSON; the base class calls this, too, for what is no HTTP."""
        status = HTTPStatus(code)
        # Read on, or the client would see a reset connection instead of this answer.
        left = min(self.unread, 4 * MOST_BYTES)
        while left > 0 and (taken := len(self.rfile.read(min(left, 2**16)))):
            left -= taken
        self._reply(status, _error(status, message or status.phrase))

    def _reply(self, status: HTTPStatus, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _answered(engine: Engine, request: Request, on_text: Callable[[str], None]) -> Generation:
    """Return what the engine answers, and tell its text as it comes."""
    with contextlib.closing(engine.stream([request])) as events:
        for event in events:
            if isinstance(event, Text):
                on_text(event.text)
            elif isinstance(event, Finished):
                generation = event.generation
    return generation


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"The request is not valid JSON: {reason(error)}.") from None


def _error(status: HTTPStatus, message: str) -> dict[str, object]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": int(status)}}


def _usage(generation: Generation) -> dict[str, object]:
    usage = generation.usage
    prompt, new = usage.prompt_tokens or 0, usage.new_tokens or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"image_tokens": usage.visual_tokens},
    }


def _parser() -> argparse.ArgumentParser:
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m glm4v_magic.server.serve",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="folder, id on the hub, or demo")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; this computer only")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="8000; 0: any free one")
    for option in of_command("serve"):
        parser.add_argument(*flags_of(option), **argument_of(option))
    return parser


def main(words: list[str] | None = None) -> int:
    """Serve as the command line says; return the exit status.

    Args:
        words: of the command line, without the program's name; the process's own by default.
    """
    arguments = _parser().parse_args(words)
    name = Path(arguments.model).expanduser()
    try:
        refuse_address(arguments.model)
        with Server(arguments.host, arguments.port) as server:
            if not (is_loopback(arguments.host) or os.environ.get(API_KEY)):
                _say(f"Whoever reaches this port may ask; set {API_KEY} to a key to prevent that.")
            session = load(arguments.model, **typed(arguments, of_command("serve")))
            assert session.engine is not None  # it is loaded
            server.open(session.engine, name.name if name.is_dir() else arguments.model)
            server.serve_forever()
    except Glm4vError as error:
        _say(in_http(error))
        return 1
    except KeyboardInterrupt:
        _say("Stopped.")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  what a command is for


if __name__ == "__main__":
    sys.exit(main())
