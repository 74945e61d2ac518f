"""The ASGI application: routes, access control, and error replies."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from glm4v_magic.core.conversation import Generation, Usage
from glm4v_magic.core.errors import (
    BusyError,
    CheckpointError,
    EngineError,
    Glm4vError,
    InputError,
    OptionError,
    OutOfMemoryError,
    reason,
)
from glm4v_magic.core.events import Finished, Text, Thinking
from glm4v_magic.core.model import EngineInfo
from glm4v_magic.core.server_address import API_KEY, is_loopback
from glm4v_magic.engines.server import OwnAnswer, OwnFacts
from glm4v_magic.outside import json_value
from glm4v_magic.server.metrics import CONTENT_TYPE_LATEST, Metrics, Watch
from glm4v_magic.server.next_steps import in_http
from glm4v_magic.server.openapi import document
from glm4v_magic.server.protocol import (
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    CompletionMessage,
    CompletionUsage,
    Delta,
    ErrorBody,
    ErrorContent,
    ImageTokens,
    Logprobs,
    Model,
    Models,
    ReasoningTokens,
)
from glm4v_magic.server.questions import Question, read_question
from glm4v_magic.server.worker import OfRequest, Turn, Worker

__all__ = ["BODY_SECONDS", "KEEP_ALIVE", "MOST_BYTES", "MOST_TOGETHER", "application", "too_many"]

MOST_BYTES = 64 * 2**20
"""Longest request in bytes. In base64 an image is a third longer than its file."""

MOST_TOGETHER = 2**30
"""Most bytes of the requests that are being received at a time."""

KEEP_ALIVE = 10.0
"""Seconds between two keep-alive comments while a client waits."""

BODY_SECONDS = 30.0
"""Time in seconds that a client has for a body, and longest silence in it.

With every `_SLOWEST` bytes it gets a second more."""

_SLOWEST = 2**16  # bytes of a body per second

_CLIENT_CLOSED = 499  # nginx's status for a client that has left; nobody sees it
_STATUS: tuple[tuple[type[Glm4vError], HTTPStatus], ...] = (
    (InputError, HTTPStatus.BAD_REQUEST),
    (CheckpointError, HTTPStatus.NOT_FOUND),
    (BusyError, HTTPStatus.TOO_MANY_REQUESTS),
    (OutOfMemoryError, HTTPStatus.SERVICE_UNAVAILABLE),
    (Glm4vError, HTTPStatus.INTERNAL_SERVER_ERROR),
)

_END = Finished(Generation("", Usage(None, None, 0), "stop"))  # after the last event of a turn

_log = logging.getLogger(__name__)


def application(worker: Worker, info: EngineInfo, model: str, host: str) -> Starlette:
    """Return the application.

    Args:
        worker: worker that answers.
        info: facts about its model.
        model: name of the model for clients.
        host: name or address that the server listens on.
    """
    api = _Api(worker, info, model)
    app = Starlette(
        routes=[
            Route("/health", _health),
            Route("/metrics", api.metrics),
            Route("/openapi.json", _openapi),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
        ],
        middleware=[Middleware(_Guard, is_local=is_loopback(host))],
        exception_handlers={
            HTTPException: _http_error,
            Glm4vError: _own_error,
            ClientDisconnect: _client_left,
            Exception: _other_error,
        },
    )
    app.router.redirect_slashes = False
    return app


async def too_many(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI application that answers each request with the error that there are too many."""
    busy = BusyError("There are too many connections.", "Ask again later.")
    response = await _own_error(Request(scope), busy)
    response.headers["Connection"] = "close"
    await response(scope, receive, send)


class _Guard:
    """Refuses clients without the key, and web pages that try to reach a local server.

    Args:
        app: application to guard.
        is_local: whether the server accepts only clients on its own computer.
    """

    def __init__(self, app: ASGIApp, is_local: bool) -> None:
        self._app = app
        self._is_local = is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        answer: ASGIApp = self._app
        sent = headers.get("Authorization", "")
        if scope["path"] != "/health" and not _knows_key(sent):
            answer = _key_wanted(sent)
        elif self._is_local and not is_loopback(_host_name(headers.get("Host", ""))):
            # A web page could point its own host name here: DNS rebinding.
            answer = _error(HTTPStatus.FORBIDDEN, "This server is for its own computer only.")
        await answer(scope, receive, send)


def _knows_key(authorization: str) -> bool:
    key = os.environ.get(API_KEY, "").strip()
    scheme, _, sent = authorization.partition(" ")
    is_right = hmac.compare_digest(sent.strip().encode(), key.encode())
    return not key or (scheme.lower() == "bearer" and is_right)


def _key_wanted(sent: str) -> Response:
    """Return the reply to a client that has sent no key, or another one."""
    said = "Wrong key." if sent else "A key is needed (Authorization: Bearer KEY)."
    response = _error(HTTPStatus.UNAUTHORIZED, said)
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _host_name(host: str) -> str:
    """Return ``Host`` without user and port, and without the brackets of an IPv6 address."""
    asked = host.rpartition("@")[2]
    name, _, port = asked.rpartition(":")
    return (name if port.isdigit() else asked).strip("[]")


async def _health(_: Request) -> Response:
    return Response()


async def _openapi(_: Request) -> Response:
    return JSONResponse(document())


class _Room:
    """Memory for the bodies of requests, which all of them share."""

    def __init__(self) -> None:
        self._taken = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that reserves a number of bytes; all are released after the block.

        The function raises BusyError if that many are not free.
        """
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self._taken + count > MOST_TOGETHER:
                raise BusyError("Too much is being sent at once.", "Ask again later.")
            mine += count
            self._taken += count

        try:
            yield take
        finally:
            self._taken -= mine


class _Api:
    """Endpoints that answer for one model.

    Args:
        worker: worker that answers.
        info: facts about its model.
        model: name of the model for clients.
    """

    def __init__(self, worker: Worker, info: EngineInfo, model: str) -> None:
        self._room = _Room()
        self._worker = worker
        self._metrics = Metrics(worker)
        self._name = model
        self._max_images = info.max_images
        self._thinks, self._efforts = info.thinks, info.efforts
        self._takes_video = bool(info.takes_video)
        self._entry = Model(
            id=model,
            max_model_len=info.context,
            glm4v_magic=OwnFacts(
                notice=info.notice,
                max_images=info.max_images,
                image_size=info.image_size,
                visual_tokens=info.visual_tokens,
                largest_image=info.largest_image,
                thinks=info.thinks,
                efforts=list(info.efforts),
            ),
        )

    async def models(self, _: Request) -> Response:
        """``GET /v1/models``: list the model."""
        return _json(Models(data=[self._entry]))

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/NAME``: describe one model.

        Raises:
            CheckpointError: if it is not the model that is served.
        """
        name = request.path_params["name"]
        if name != self._name:
            raise CheckpointError(f"There is no model {name!r} here.", f"This is {self._name}.")
        return _json(self._entry)

    async def metrics(self, _: Request) -> Response:
        """``GET /metrics``: counts and times for Prometheus."""
        return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``: answer a question."""
        with contextlib.ExitStack() as ending:
            watch = ending.enter_context(self._metrics.request())
            with self._room.held() as take:
                body = await _body(request, take)
                try:
                    question = await run_in_threadpool(self._read, body)
                except asyncio.CancelledError:  # uvicorn waits for open requests only so long
                    raise EngineError("The server was stopped before it had read this.") from None
                del body
            reply = _Reply(self._name)
            turn = self._worker.begin(question.requests, pieces=question.stream)
            ending.callback(self._worker.leave, turn)
            events = turn.events(KEEP_ALIVE)
            async with _leaving_noticed(request, turn):
                if not question.stream:
                    generations = await _generations(events)
                    watch.answered(generations)
                    return _json(reply.whole(generations))
                # Errors in a question come before the first event, so that they can have an HTTP
                # status.
                first = await anext(events)
            sent = _sent(reply, first, events, watch, with_usage=question.usage)
            return _EventStream(sent, ending.pop_all())
        raise AssertionError  # the stack lets every exception out

    def _read(self, body: bytes) -> Question:
        content = json_value(body, "The request", OptionError)
        return read_question(
            content,
            self._name,
            max_images=self._max_images,
            thinks=self._thinks,
            efforts=self._efforts,
            takes_video=self._takes_video,
        )


@contextlib.asynccontextmanager
async def _leaving_noticed(request: Request, turn: Turn) -> AsyncIterator[None]:
    """End the turn if the client disconnects while in the context."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        turn.end(ClientDisconnect())

    waiting = asyncio.create_task(wait())
    try:
        yield
    finally:
        waiting.cancel()


class _EventStream(StreamingResponse):
    """Response of server-sent events; a client that disconnects ends it.

    Args:
        content: the events.
        ending: closed when the response is over, however far it came.
    """

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], ending: contextlib.ExitStack) -> None:
        super().__init__(content, headers={"Cache-Control": "no-cache"})
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._ending:
            await super().__call__(scope, receive, send)


class _Reply:
    """Converts the session's events to replies of the protocol.

    Args:
        model: name of the model for clients.
    """

    def __init__(self, model: str) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._begun: set[int] = set()  # choices whose first piece was sent
        self._scored: set[int] = set()  # choices of which log-probabilities were sent

    def whole(self, generations: Sequence[Generation]) -> Completion:
        """Return answers in one piece."""
        choices = [
            Choice(
                index=index,
                message=CompletionMessage(
                    content=each.text, reasoning_content=each.thinking or None
                ),
                logprobs=Logprobs.of(each.tokens),
                finish_reason=each.finish_reason,
                glm4v_magic=_own(each),
            )
            for index, each in enumerate(generations)
        ]
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=_usage(generations),
        )

    def chunk(self, event: OfRequest) -> Chunk | None:
        """Return an event as a piece of the answer; ``None`` if the protocol has none for it."""
        index = event.row
        match event:
            case Text():
                logprobs = Logprobs.of(event.tokens or None)
                if logprobs is not None:
                    self._scored.add(index)
                delta = self._delta(index, content=event.text)
                choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs)
            case Thinking():
                delta = self._delta(index, reasoning_content=event.text)
                choice = ChunkChoice(index=index, delta=delta)
            case Finished():
                ending = event.generation.finish_reason
                # A model that thinks yields all its tokens at the end.
                is_late = index not in self._scored
                choice = ChunkChoice(
                    index=index,
                    delta=self._delta(index),
                    logprobs=Logprobs.of(event.generation.tokens) if is_late else None,
                    finish_reason=ending,
                    glm4v_magic=_own(event.generation),
                )
            case _:
                return None
        return self._framed([choice])

    def usage(self, generations: Sequence[Generation]) -> Chunk:
        """Return the piece that holds the usage."""
        return self._framed([], _usage(generations))

    def _delta(
        self, index: int, content: str | None = None, reasoning_content: str | None = None
    ) -> Delta:
        role: Literal["assistant"] | None = None if index in self._begun else "assistant"
        self._begun.add(index)
        return Delta(role=role, content=content, reasoning_content=reasoning_content)

    def _framed(self, choices: list[ChunkChoice], usage: CompletionUsage | None = None) -> Chunk:
        return Chunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )


async def _generations(events: AsyncIterator[OfRequest | None]) -> list[Generation]:
    """Return all answers of a turn, in the order of its requests."""
    ended = {event.row: event async for event in events if isinstance(event, Finished)}
    return [ended[index].generation for index in sorted(ended)]


async def _sent(
    reply: _Reply,
    first: OfRequest | None,
    events: AsyncIterator[OfRequest | None],
    watch: Watch,
    *,
    with_usage: bool,
) -> AsyncIterator[bytes]:
    """Yield an answer as server-sent events; an error is the last of them."""
    generations: list[Generation] = []
    try:
        event: OfRequest | None = first
        while event is not _END:
            chunk = None if event is None else reply.chunk(event)
            if chunk is not None:
                watch.began()
            yield b": keep-alive\n\n" if chunk is None else _event(chunk)
            if isinstance(event, Finished):
                generations.append(event.generation)
            event = await anext(events, _END)
    except ClientDisconnect:
        return
    except Glm4vError as error:
        watch.ended(error)
        yield _event(_error_body(_status_of(error), in_http(error)))
        return
    except Exception as error:
        watch.ended(error)
        _log.exception("An answer failed.")
        yield _event(_error_body(HTTPStatus.INTERNAL_SERVER_ERROR, reason(error)))
        return
    watch.answered(generations)
    if with_usage:
        yield _event(reply.usage(generations))
    yield b"data: [DONE]\n\n"


def _event(content: BaseModel) -> bytes:
    return b"data: " + content.model_dump_json().encode() + b"\n\n"


def _own(generation: Generation) -> OwnAnswer | None:
    """Return what the protocol has no field for, as a field of our own.

    These are the probabilities of choices, and the tokens of the thinking.
    """
    thinking = Logprobs.of(generation.thinking_tokens)
    tokens = [] if thinking is None else [each.model_dump() for each in thinking.content]
    if not generation.choices and not tokens:
        return None
    made: OwnAnswer = OwnAnswer.model_validate(
        {"choices": dict(generation.choices), "thinking_tokens": tokens}
    )
    return made


def _usage(generations: Sequence[Generation]) -> CompletionUsage:
    """Return the usage of all answers to a prompt, which counts once."""
    usage = generations[0].usage
    prompt, new = usage.prompt_tokens or 0, sum(each.usage.new_tokens or 0 for each in generations)
    return CompletionUsage(
        prompt_tokens=prompt,
        completion_tokens=new,
        total_tokens=prompt + new,
        prompt_tokens_details=ImageTokens(image_tokens=usage.visual_tokens),
        completion_tokens_details=ReasoningTokens(
            reasoning_tokens=sum(each.usage.thinking_tokens or 0 for each in generations)
        ),
    )


async def _body(request: Request, take: Callable[[int], None]) -> bytes:
    """Read the body of a request.

    Args:
        request: the request.
        take: reserves memory for it; see `_Room`.

    Raises:
        BusyError: if there is no memory for it.
        HTTPException: if it is not JSON, is compressed, is too long, or does not arrive in time.
        ClientDisconnect: if the client leaves.
    """
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page from elsewhere could send any other without asking
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Send application/json, not {kind or 'nothing'}."
        )
    packed = request.headers.get("Content-Encoding", "identity").strip().lower()
    if packed != "identity":
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Send the body uncompressed, not as {packed}."
        )
    length = request.headers.get("Content-Length", "")
    if length.isdigit() and int(length) > MOST_BYTES:
        raise _too_long()
    try:
        body = await _sent_in_time(request, take)
    except TimeoutError:
        raise HTTPException(
            HTTPStatus.REQUEST_TIMEOUT,
            f"The request came too slowly: send it within {BODY_SECONDS:g} s, or "
            f"{_SLOWEST // 2**10} KiB per second.",
            {"Connection": "close"},
        ) from None
    if not body:
        raise HTTPException(HTTPStatus.LENGTH_REQUIRED, "Send a body, and its Content-Length.")
    return body


async def _sent_in_time(request: Request, take: Callable[[int], None]) -> bytes:
    body, start = bytearray(), asyncio.get_running_loop().time()
    async with asyncio.timeout(BODY_SECONDS) as deadline:
        async for chunk in request.stream():
            take(len(chunk))
            body += chunk
            if len(body) > MOST_BYTES:
                raise _too_long()
            spent = asyncio.get_running_loop().time() - start
            deadline.reschedule(start + BODY_SECONDS + min(spent, len(body) / _SLOWEST))
    return bytes(body)


def _too_long() -> HTTPException:
    most = f"{MOST_BYTES // 2**20} MiB"
    return HTTPException(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A request may have {most}; send less."
    )


def _json(content: BaseModel, status: int = HTTPStatus.OK) -> Response:
    return Response(content.model_dump_json(), status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    return _json(_error_body(status, message), status)


def _error_body(status: int, message: str) -> ErrorBody:
    kind: Literal["invalid_request_error", "server_error"] = (
        "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    )
    return ErrorBody(error=ErrorContent(message=message, type=kind, code=status))


def _status_of(error: Glm4vError) -> HTTPStatus:
    return next(status for kind, status in _STATUS if isinstance(error, kind))


async def _own_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, Glm4vError)
    status = _status_of(error)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("A request failed.", exc_info=error)
    response = _error(status, in_http(error))
    if isinstance(error, BusyError):
        response.headers["Retry-After"] = "1"
    return response


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"There is no {request.url.path} here."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not take {request.method}."
    response = _error(error.status_code, message)
    response.headers.update(error.headers or {})
    return response


async def _client_left(_: Request, __: Exception) -> Response:
    return _error(_CLIENT_CLOSED, "The client has left.")


async def _other_error(_: Request, error: Exception) -> Response:
    # Not logged here: it is raised again after the response, and the server logs it.
    return _error(HTTPStatus.INTERNAL_SERVER_ERROR, reason(error))
