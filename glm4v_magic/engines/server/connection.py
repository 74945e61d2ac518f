"""HTTP connection to a server: requests, streams of events, and messages for all failures."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator

import httpx
from httpx_sse import EventSource

from glm4v_magic.core.errors import EngineError, reason
from glm4v_magic.core.server_address import API_KEY, ServerAddress, is_loopback
from glm4v_magic.engines.server.patience import retry_after
from glm4v_magic.engines.server.replies import as_error, error_message
from glm4v_magic.imports import define_network_classes

__all__ = [
    "KEY_WANTED",
    "LONGEST_MESSAGE",
    "OF_REQUEST",
    "REPLY_SECONDS",
    "BrokenError",
    "Connection",
    "StatusError",
    "content_type",
    "read",
]

LONGEST_MESSAGE = 300
"""Maximum number of characters that are quoted of a server's message."""

KEY_WANTED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)

OF_REQUEST = (
    httpx.codes.BAD_REQUEST,
    httpx.codes.REQUEST_ENTITY_TOO_LARGE,
    httpx.codes.UNPROCESSABLE_ENTITY,
)
"""Statuses of a request that is refused for what it holds; others may be answered."""

REPLY_SECONDS = 30.0
"""Longest time in seconds for a reply that is not an answer: a list of models, or a refusal."""

_CONNECT_SECONDS = 10.0
_LONGEST_EVENT = 2**20  # bytes; a token needs some hundred
_LONGEST_BODY = 2**22  # bytes, of a list of models or an error
_MANY_DIGITS = 7  # of seconds: months
_log = logging.getLogger(__name__)
_KEY = re.compile(r"[\x21-\x7e]+")
_EVENTS = "text/event-stream"
_MAYBE_EVENTS = ("", "application/octet-stream", "text/plain")
"""Types under which some servers send their events."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NO_QUOTA = b"insufficient_quota"  # OpenAI's, with 429: waiting does not help
_EMPTY_LINE = re.compile(rb"\n\r?\n|\r\r")

_ADVICE = {
    404: "The address of an OpenAI-compatible API usually ends in /v1.",
    502: "It may still be starting; ask again later.",
    503: "It may still be starting; ask again later.",
}


class StatusError(EngineError):
    """The server replied with an HTTP status other than 200.

    Attributes:
        status: the status.
        said: the server's own message; may be empty.
        wait: seconds after which it may be asked again, if it tells; ``None`` otherwise.
    """

    def __init__(self, status: int, what: str, hint: str = "", *, code: str = "") -> None:
        super().__init__(what, hint, code=code)
        self.status = status
        self.said = ""
        if status in OF_REQUEST:
            self.reach = "request"
        elif status == httpx.codes.UNAUTHORIZED:
            self.reach = "all"
        self.wait: float | None = None


class BrokenError(EngineError):
    """The connection broke."""


class Connection:
    """Sends requests to one server and turns failures into errors.

    Args:
        address: address of the server.

    Attributes:
        url: URL of the API, for messages.
        seconds: longest silence, in seconds.
        told_of_waiting: when the user was last told that the server is waited for
            (`time.monotonic`).
    """

    def __init__(self, address: ServerAddress) -> None:
        self.url = address.url
        self.seconds = address.timeout
        self.told_of_waiting = -math.inf
        define_network_classes()
        # No proxy reaches this computer; for other hosts the environment may name one.
        self._trust_env = not is_loopback(httpx.URL(address.url).host)
        self._tls = httpx.create_ssl_context(trust_env=self._trust_env)
        self._client()  # raises what is wrong with the address, or with a proxy

    def _client(self) -> httpx.AsyncClient:
        """Return a client for one request; closing it tells the server to stop generating.

        It also closes what a cancelled request leaves: httpcore (1.0) keeps a connection whose
        request was cancelled before it was sent.
        """
        return httpx.AsyncClient(
            # A redirect could take the key to another host, so none is followed.
            follow_redirects=False,
            trust_env=self._trust_env,
            verify=self._tls,
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"Accept-Encoding": "identity", "User-Agent": "glm4v_magic"},
        )

    @contextlib.asynccontextmanager
    async def open(
        self, method: str, path: str, body: object = None, *, seconds: float | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Send a request and yield its response, status 200, to be read within the context.

        Raises:
            StatusError: if the server answers with another status.
            EngineError: if anything else goes wrong, also while the response is read.
        """
        seconds = self.seconds if seconds is None else seconds
        timeout = httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))
        headers = _headers()
        try:
            async with (
                self._client() as client,
                client.stream(
                    method, self.url + path, json=body, headers=headers, timeout=timeout
                ) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise self._refusal(response, path, await _in_time(response, seconds))
                yield response
        except httpx.HTTPError as error:
            failure = self._failure(error, seconds)
        except httpx.InvalidURL as error:
            failure = self._unreachable(self.said(reason(error)))
        else:
            return
        raise failure  # out here, without the frames of the HTTP client

    async def events(self, response: httpx.Response) -> AsyncGenerator[str, None]:
        """Yield the data of each server-sent event; comments and other fields are left out.

        Raises:
            EngineError: if the response is not a stream of events, or an event is too long.
        """
        kind = content_type(response)
        if kind not in (_EVENTS, *_MAYBE_EVENTS):
            raise self._no_events(kind)
        # httpx-sse splits lines as the standard says, U+2028 left alone, but collects a line or an
        # event of any length, and drops a last event without its empty line. So what it reads is
        # the same response with a bound on both, and with that line. Such streams are UTF-8
        # whatever their header says.
        waiting, is_empty = _Waiting(self), True
        bounded = httpx.Response(
            response.status_code,
            headers={"Content-Type": _EVENTS},
            content=waiting.watched(self._bounded(_without_mark(response.aiter_bytes()))),
        )
        async for event in EventSource(bounded).aiter_sse():
            if event.data:
                is_empty = False
                waiting.is_over()
                yield as_error(event.data) if event.event == "error" else event.data
        if is_empty and kind != _EVENTS:
            raise self._no_events(kind)

    def _no_events(self, kind: str) -> EngineError:
        return EngineError(
            f"{self.url} answers with {kind or 'no content type'} where a stream of events "
            f"({_EVENTS}) was asked for.",
            "Its log may tell more."
            if self.url.endswith("/v1")
            else "The address of an OpenAI-compatible API usually ends in /v1.",
        )

    async def _bounded(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        size, before = 0, b""
        async for chunk in chunks:
            # An empty line may begin in the chunk before.
            ends = [found.end() for found in _EMPTY_LINE.finditer(before + chunk)]
            size = len(before) + len(chunk) - ends[-1] if ends else size + len(chunk)
            before = (before + chunk)[-2:]
            if size > _LONGEST_EVENT:
                raise EngineError(
                    f"{self.url} sent an event of more than {_LONGEST_EVENT:,} bytes."
                )
            yield chunk
        yield b"\n\n"

    def said(self, text: str) -> str:
        """Return a server's message on one line, shortened, and without the key."""
        if key := _key():
            text = text.replace(key, "***")
        printable = (character if character.isprintable() else " " for character in text)
        line = " ".join("".join(printable).split())
        return line if len(line) <= LONGEST_MESSAGE else f"{line[: LONGEST_MESSAGE - 3]}..."

    def silent(self, seconds: float) -> EngineError:
        """Return the error for a server that has sent nothing for this long."""
        return EngineError(f"{self.url} was silent for {seconds:g} s.", code="server_is_silent")

    def _failure(self, error: httpx.HTTPError, seconds: float) -> EngineError:
        if isinstance(error, httpx.ConnectError):
            return self._unreachable(self.said(_words_of(error)))
        if isinstance(error, httpx.ConnectTimeout):
            return self._unreachable(f"not connected within {min(seconds, _CONNECT_SECONDS):g} s")
        if isinstance(error, httpx.TimeoutException):
            return self.silent(seconds)
        return BrokenError(
            f"The connection to {self.url} broke: {self.said(_words_of(error)).rstrip('.')}.",
            "Is the server still running? Its log may tell more.",
        )

    def _unreachable(self, why: str) -> EngineError:
        return EngineError(
            f"No server answers at {self.url}: {why}.",
            "Start it, or check host and port.",
        )

    def _refusal(self, response: httpx.Response, path: str, body: bytes) -> StatusError:
        message = error_message(body)
        if not message and content_type(response) == "text/plain":
            message = body.decode("utf-8", "replace")
        message = self.said(message)
        error = self._worded(response, path, message)
        error.said = message
        error.wait = retry_after(response.headers)
        if _NO_QUOTA in body:
            error.wait = math.inf
            error.advise()  # what is used up is not there later, either
        return error

    def _worded(self, response: httpx.Response, path: str, message: str) -> StatusError:
        answer = f"{response.status_code} {response.reason_phrase}".rstrip()
        what = f"{self.url}{path} answers {answer}"
        what += f": {message.removesuffix('.')}." if message else "."
        if response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            return StatusError(response.status_code, what, code="image_too_large_for_server")
        return StatusError(response.status_code, what, self._advice(response, message))

    def _advice(self, response: httpx.Response, message: str) -> str:
        status = response.status_code
        if status == httpx.codes.NOT_FOUND and message and self.url.endswith("/v1"):
            return "Does it know a model of that name?"  # the address is right: somebody answers
        if status in KEY_WANTED:
            if _key():
                return f"The key in {API_KEY} was sent; put the right one there."
            if status == httpx.codes.UNAUTHORIZED:
                return f"Put its key into the environment variable {API_KEY}."
            return f"If it wants a key, put it into the environment variable {API_KEY}."
        if status == httpx.codes.TOO_MANY_REQUESTS:
            seconds = response.headers.get("Retry-After", "")
            is_told = seconds.isdecimal() and len(seconds) < _MANY_DIGITS
            return f"It is busy; ask again {f'in {seconds} s' if is_told else 'later'}."
        if response.is_redirect:
            return f"It is at {self.said(response.headers.get('Location', ''))}; give that address."
        return _ADVICE.get(status, "Its log may tell more." if status >= 500 else "")


def _words_of(error: httpx.HTTPError) -> str:
    """Return the words for an error of the HTTP client: the operating system's, or else its own.

    Of several, for as many addresses of a host, they are those of the first.
    """
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.strerror:
            # asyncio's own words name the address, which has been said.
            if below.errno and below.strerror.startswith("Connect call failed"):
                return os.strerror(below.errno)
            return below.strerror
        parts = below.exceptions if isinstance(below, BaseExceptionGroup) else ()
        below = next(iter(parts), None) or below.__cause__ or below.__context__
    return str(error) or reason(error)


async def _without_mark(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Leave out a byte-order mark, as the standard of server-sent events says."""
    begin: bytes | None = b""
    async for chunk in chunks:
        if begin is None:
            yield chunk
            continue
        begin += chunk
        if len(begin) >= len(_BYTE_ORDER_MARK) or not _BYTE_ORDER_MARK.startswith(begin):
            yield begin.removeprefix(_BYTE_ORDER_MARK)
            begin = None
    if begin:
        yield begin


class _Waiting:
    """Says that a server is still waited for that sends nothing but keep-alive comments.

    Servers send these between events to clients in their queue. Such a server is not silent, so
    the limit on silence does not end the wait.

    Args:
        connection: connection to it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._since = time.monotonic()

    def is_over(self) -> None:
        """Begin anew, after an event."""
        self._since = time.monotonic()

    async def watched(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Yield `chunks`."""
        async for chunk in chunks:
            now, seconds = time.monotonic(), self._connection.seconds
            if now - self._since >= seconds and now - self._connection.told_of_waiting >= seconds:
                self._connection.told_of_waiting = now
                _log.warning(
                    "%s is there, but has said nothing for %.3g s; it is waited for.",
                    self._connection.url,
                    now - self._since,
                )
            yield chunk


async def _in_time(response: httpx.Response, seconds: float) -> bytes:
    """Read the body of a refusal; empty if it does not come in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(min(seconds, REPLY_SECONDS)):
            return await read(response)
    return b""


async def read(response: httpx.Response) -> bytes:
    """Read a body that is not a stream, up to a maximum length."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > _LONGEST_BODY:
            break
    return bytes(body[:_LONGEST_BODY])


def content_type(response: httpx.Response) -> str:
    """Return the type of a response without its parameters, in lower case."""
    kind: str = response.headers.get("Content-Type", "")
    return kind.partition(";")[0].strip().lower()


def _key() -> str:
    """Return the API key; it is read for each request and never stored."""
    return os.environ.get(API_KEY, "").strip()


def _headers() -> dict[str, str]:
    key = _key()
    if key and not _KEY.fullmatch(key):
        raise EngineError(
            f"The key in {API_KEY} holds a space or a character outside of ASCII.",
            "Set it anew, without quotes around it.",
        )
    return {"Authorization": f"Bearer {key}"} if key else {}
