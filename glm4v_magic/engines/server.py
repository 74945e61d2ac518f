"""A model behind a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp or `server`.

The answer is streamed as server-sent events. An interrupt closes the connection, which is how such
a server learns that nobody waits any more. Nothing here imports torch.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx

from glm4v_magic.core.conversation import (
    Conversation,
    FinishReason,
    Generation,
    Message,
    Request,
    Usage,
)
from glm4v_magic.core.errors import EngineError, GenerationInterrupted, OptionError, reason
from glm4v_magic.core.events import EngineEvent, Finished, Reclassified, Text, Thinking
from glm4v_magic.core.model import EngineInfo
from glm4v_magic.core.server_address import API_KEY, ServerAddress, is_loopback
from glm4v_magic.engines.thinking import CLOSE, OPEN, Part, ThinkingSplitter
from glm4v_magic.images import SourcedImage

__all__ = ["OWN_FACTS", "ServerEngine", "connect"]

OWN_FACTS = "glm4v_magic"
"""Key of a model's entry under which our own server tells what others do not."""

_CONNECT_SECONDS = 10.0
_LIST_SECONDS = 30.0
_LONGEST_EVENT = 2**20  # bytes; a token needs some hundred
_LONGEST_BODY = 2**22  # of a list of models or an error
_LONGEST_MESSAGE = 300  # characters of a server's own words in ours
_KEY = re.compile(r"[\x21-\x7e]+")
_EVENTS, _JSON = "text/event-stream", "application/json"
_KEY_WANTED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
_EXTENSIONS = ("top_k", "min_p", "repetition_penalty")
"""Sampling values that OpenAI's protocol does not have; vLLM and SGLang take them."""


def connect(address: ServerAddress) -> ServerEngine:
    """Find out what a server serves, and return the engine that asks it.

    Raises:
        EngineError: if it cannot be reached, or does not answer as such servers do.
        OptionError: if it serves several models and none was chosen.
    """
    try:
        connection = _Connection(address)
    except (httpx.InvalidURL, ValueError, ImportError) as error:  # the address, or a proxy for it
        raise EngineError(
            f"{address.url} cannot be asked: {reason(error)}.",
            "Check the address, and the proxy in the environment if there is one.",
        ) from None
    try:
        entries = _entries(connection)
        return ServerEngine(connection, _chosen(connection, entries), tuple(entries))
    except BaseException:
        connection.close()
        raise


def _entries(connection: _Connection) -> dict[str, dict[str, Any]]:
    """Return what the server says about each of its models, by name."""
    address = connection.address
    seconds = min(address.timeout, _LIST_SECONDS)
    try:
        with connection.open("GET", "/models", seconds=seconds) as response:
            content = _json_of(_read(response))
            kind = _content_type(response)
    except _StatusError as refused:
        if address.served_model is None or refused.status in _KEY_WANTED:
            raise
        # Not every proxy has this list; transformers serve (5.23) fails at it without a hub cache.
        return {}
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise EngineError(
            f"{address.url}/models answers with {kind or 'something'} that is no list of models.",
            "The address of an OpenAI-compatible API usually ends in /v1.",
        )
    return {
        entry["id"]: entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    }


def _chosen(connection: _Connection, entries: dict[str, dict[str, Any]]) -> EngineInfo:
    address = connection.address
    name = address.served_model
    if name is None:
        if not entries:
            raise EngineError(
                f"{address.url} lists no model.",
                code="server_has_no_model",
            )
        if len(entries) > 1:
            raise OptionError(
                f"{address.url} serves {connection.said(_listed(entries))}.",
                code="server_has_many_models",
            )
        (name,) = entries
    # A name that is not in the list is left to the server: some load what they are asked for.
    return _described(address, name, entries.get(name, {}))


def _described(address: ServerAddress, name: str, entry: dict[str, Any]) -> EngineInfo:
    own = entry.get(OWN_FACTS)
    own = own if isinstance(own, dict) else {}
    size, notice = own.get("image_size"), own.get("notice")
    is_size = isinstance(size, list) and len(size) == 2 and all(map(_count, size))
    return EngineInfo(
        model=name,
        notice=notice[:_LONGEST_MESSAGE] if isinstance(notice, str) else "",
        max_images=_count(own.get("max_images")),
        image_size=(size[0], size[1]) if is_size else None,  # type: ignore[index]  # a list
        visual_tokens=_count(own.get("visual_tokens")),
        context=_count(entry.get("max_model_len")),
        parameters=None,
        server=address.url,
        thinks=own["thinks"] if isinstance(own.get("thinks"), bool) else None,
    )


class ServerEngine:
    """A served model; see `engines.Engine`. Made by `connect`.

    Args:
        connection: to the server.
        info: of the chosen model.
        offered: names of all its models.
    """

    def __init__(self, connection: _Connection, info: EngineInfo, offered: tuple[str, ...]) -> None:
        self._connection = connection
        self._info = info
        self._offered = offered

    @property
    def info(self) -> EngineInfo:
        """What the server tells about the model."""
        return self._info

    def generate(
        self,
        request: Request,
        on_text: Callable[[str], None],
        on_thinking: Callable[[str], None] | None = None,
    ) -> Generation:
        """Answer `request`; see `engines.Engine.generate`."""
        transcript = _Transcript(request, on_text, on_thinking, self._connection)
        try:
            for _ in self._listen(request, transcript):
                pass
        except KeyboardInterrupt:
            pass  # raised anew below, without the frames of the HTTP client
        else:
            return transcript.generation(transcript.ending())
        raise GenerationInterrupted({0: transcript.generation("interrupted")})

    @property
    def batch_size(self) -> int:
        """One: a server makes its own batches."""
        return 1

    def require_room(self, request: Request) -> None:
        """Not known: the server counts the tokens."""

    def stream(self, requests: Sequence[Request]) -> Generator[EngineEvent, None, None]:
        """Answer `requests`, one after the other; see `engines.Engine.stream`."""
        for row, request in enumerate(requests):
            yield from self._answer(row, request)

    def _answer(self, row: int, request: Request) -> Iterator[EngineEvent]:
        events: list[EngineEvent] = []

        def think(piece: str) -> None:
            is_taken_back = any(isinstance(event, Text) for event in (*said, *events))
            events.append(Reclassified(row) if is_taken_back else Thinking(piece, row))

        said: list[EngineEvent] = []
        transcript = _Transcript(
            request, lambda piece: events.append(Text(piece, row)), think, self._connection
        )
        try:
            for _ in self._listen(request, transcript):
                while events:
                    event = events.pop(0)
                    said = [] if isinstance(event, Reclassified) else [*said[-1:], event]
                    yield event
            yield Finished(transcript.generation(transcript.ending()), row)
        except KeyboardInterrupt:
            pass
        else:
            return
        raise GenerationInterrupted({row: transcript.generation("interrupted")})

    def _listen(self, request: Request, transcript: _Transcript) -> Iterator[None]:
        body = _body(self._info.model, request)
        try:
            with self._connection.open("POST", "/chat/completions", body) as response:
                kind = _content_type(response)
                if kind != _EVENTS:
                    raise EngineError(
                        f"{self._info.server} answers with {kind or 'no content type'} where a "
                        f"stream of events ({_EVENTS}) was asked for.",
                        "The address of an OpenAI-compatible API usually ends in /v1.",
                    )
                for data in _events(_lines(response.iter_bytes(), self._info.server or "")):
                    if data.strip() == b"[DONE]":
                        transcript.done = True
                        break
                    transcript.take(data)
                    yield
                transcript.end()
                yield
        except _StatusError as refused:
            self._advise(refused, request)
            raise

    def _advise(self, refused: _StatusError, request: Request) -> None:
        """Say what to do next where the request tells more than the status."""
        if refused.status == httpx.codes.NOT_FOUND and self._offered:
            refused.advise(f"It serves {self._connection.said(_listed(self._offered))}.")
        if refused.status in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY):
            names = (*_EXTENSIONS, "thinking")
            sent = [name for name in names if getattr(request.sampling, name) is not None]
            partial = request.conversation.partial
            if sent:
                refused.advise(f"Not every server takes {' and '.join(sent)}; leave it out.")
            elif partial is not None and partial.thinking:
                refused.advise(code="server_cannot_think_on")

    def close(self) -> None:
        """Close the connection; the server goes on."""
        self._connection.close()


class _StatusError(EngineError):
    """An HTTP status other than 200."""

    def __init__(self, status: int, what: str, hint: str = "", *, code: str = "") -> None:
        super().__init__(what, hint, code=code)
        self.status = status


class _Connection:
    """Requests to one server, and its failures in words."""

    def __init__(self, address: ServerAddress) -> None:
        self.address = address
        host = httpx.URL(address.url).host
        self._client = httpx.Client(
            # A redirect could take the key to another host, so none is followed.
            follow_redirects=False,
            # No proxy reaches this computer; for other hosts the environment may name one.
            trust_env=not is_loopback(host),
            # One connection per request: closing it tells the server that nobody waits.
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"Accept-Encoding": "identity", "User-Agent": "glm4v_magic"},
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    @contextlib.contextmanager
    def open(
        self, method: str, path: str, body: object = None, *, seconds: float | None = None
    ) -> Iterator[httpx.Response]:
        """Send a request and give its response, status 200, to be read within the context.

        Raises:
            EngineError: whatever goes wrong, also while the response is read.
        """
        url = self.address.url
        seconds = self.address.timeout if seconds is None else seconds
        timeout = httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))
        headers = self._headers()
        try:
            with self._client.stream(
                method, url + path, json=body, headers=headers, timeout=timeout
            ) as response:
                if response.status_code != httpx.codes.OK:
                    raise self._refusal(response, path)
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL) as error:
            failure = EngineError(
                f"No server answers at {url}: {self.said(reason(error))}.",
                "Start it, or check host and port.",
            )
        except httpx.TimeoutException:
            failure = EngineError(f"{url} was silent for {seconds:g} s.", code="server_is_silent")
        except httpx.HTTPError as error:
            failure = EngineError(
                f"The connection to {url} broke: {self.said(reason(error))}.",
                "Is the server still running? Its log may tell more.",
            )
        else:
            return
        raise failure

    def _headers(self) -> dict[str, str]:
        key = _key()
        if key and not _KEY.fullmatch(key):
            raise EngineError(
                f"The key in {API_KEY} holds a space or a character outside of ASCII.",
                "Set it anew, without quotes around it.",
            )
        return {"Authorization": f"Bearer {key}"} if key else {}

    def said(self, text: str) -> str:
        """Return a server's own words, on one line, of bounded length, and without the key."""
        if key := _key():
            text = text.replace(key, "***")
        line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
        return line if len(line) <= _LONGEST_MESSAGE else f"{line[: _LONGEST_MESSAGE - 3]}..."

    def _refusal(self, response: httpx.Response, path: str) -> _StatusError:
        status = response.status_code
        message = self.said(_message(_read(response), _content_type(response)))
        answer = f"{status} {response.reason_phrase}".rstrip()
        what = f"{self.address.url}{path} answers {answer}"
        what += f": {message.removesuffix('.')}." if message else "."
        if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            return _StatusError(status, what, code="image_too_large_for_server")
        return _StatusError(status, what, self._advice(response))

    def _advice(self, response: httpx.Response) -> str:
        status = response.status_code
        if status in _KEY_WANTED:
            if _key():
                return f"It does not accept the key in {API_KEY}."
            return f"If it wants a key, put it into the environment variable {API_KEY}."
        if status == 429:
            seconds = response.headers.get("Retry-After", "")
            return f"It is busy; ask again {f'in {seconds} s' if seconds.isdigit() else 'later'}."
        if response.is_redirect:
            return f"It is at {self.said(response.headers.get('Location', ''))}; give that address."
        return _ADVICE.get(status, "Its log may tell more." if status >= 500 else "")


_ADVICE = {
    404: "The address of an OpenAI-compatible API usually ends in /v1.",
    502: "It may still be starting; ask again later.",
    503: "It may still be starting; ask again later.",
}


class _Transcript:
    """What a server has said so far of one answer."""

    def __init__(
        self,
        request: Request,
        on_text: Callable[[str], None],
        on_thinking: Callable[[str], None] | None,
        connection: _Connection,
    ) -> None:
        self.done = False
        self._request = request
        self._on_text: Callable[[str], None] | None = on_text
        self._on_thinking = on_thinking
        self._url = connection.address.url
        self._said = connection.said
        self._start = time.perf_counter()
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._times: list[float] = []
        self._answer_time: float | None = None
        self._usage: dict[str, Any] = {}
        self._finish: str | None = None
        # What goes on with an answer may begin with the space between two words.
        partial = request.conversation.partial
        self._carries_on = partial is not None and bool(partial.text)
        self._thinks_on = partial is not None and bool(partial.thinking) and not partial.text
        self._splitter = ThinkingSplitter(
            inside=self._thinks_on,
            answer=self._carries_on,
            thought=partial is not None and bool(partial.thinking),
        )

    def take(self, data: bytes) -> None:
        """Take the data of one event.

        Raises:
            EngineError: if it is not a piece of an answer, or an error.
        """
        chunk = _json_of(data)
        if not isinstance(chunk, dict):
            raise EngineError(
                f"{self._url} sent an event that is not a JSON object: "
                f"{self._said(data.decode('utf-8', 'replace'))!r}.",
                "Is it an OpenAI-compatible API?",
            )
        if chunk.get("error"):
            raise EngineError(
                f"{self._url} stopped with an error: "
                f"{self._said(_message(data, _JSON)).rstrip('.') or 'it does not say which'}.",
                "Its log may tell more.",
            )
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return  # the last event has the usage and no choice
        if isinstance(choice.get("finish_reason"), str):
            self._finish = choice["finish_reason"]
        delta = choice.get("delta")
        if isinstance(delta, dict):
            # Servers that take a model's thinking out of its answer send it under either name.
            self._add(delta.get("reasoning_content") or delta.get("reasoning"), self._think)
            self._add(delta.get("content"), self._say)

    def _add(self, piece: object, take: Callable[[str], None]) -> None:
        if isinstance(piece, str) and piece:
            self._times.append(time.perf_counter())
            take(piece)

    def _think(self, piece: str) -> None:
        if self._text:
            self._thinking.append(piece)  # too late to be told: it would take the answer back
        else:
            self._tell(self._splitter.add_thinking(piece))

    def _say(self, piece: str) -> None:
        self._tell(self._splitter.add(piece))

    def _tell(self, parts: Iterable[Part]) -> None:
        for part in parts:
            pieces = self._thinking if part.is_thinking else self._text
            goes_on = self._thinks_on if part.is_thinking else self._carries_on
            text = part.text if pieces or goes_on else part.text.lstrip()
            if text:
                pieces.append(text)
            if part.is_thinking:
                self._text.clear()  # which was thinking, and is in this part once more
                self._answer_time = None
            elif self._answer_time is None:
                self._answer_time = self._times[-1]
            tell = self._on_thinking if part.is_thinking else self._on_text
            if text and tell is not None:
                tell(text)

    def end(self) -> None:
        """No more is coming: tell what may have been the beginning of a tag, and was not."""
        self._tell(self._splitter.end())

    def ending(self) -> FinishReason:
        """Say why the answer ended.

        Raises:
            EngineError: if it is not complete.
        """
        if self._finish is None and not self.done:
            raise EngineError(
                f"{self._url} ended the stream in the middle of the answer"
                f" (after {len(self._times)} pieces).",
                "Its log may tell more; ask again.",
            )
        if self._finish in _NO_ANSWER:
            raise EngineError(f"{self._url} {_NO_ANSWER[self._finish]} ({self._finish}).")
        return "length" if self._finish == "length" else "stop"

    def generation(self, ending: FinishReason) -> Generation:
        """Return what was said until now."""
        times, sampling = self._times, self._request.sampling
        if ending == "interrupted":  # whoever is told could interrupt again
            self._on_text = self._on_thinking = None
            self.end()
        thinking, text = "".join(self._thinking).rstrip(), "".join(self._text).rstrip()
        usage = replace(
            _counted(self._usage, self._request.conversation),
            time_to_first_token=times[0] - self._start if times else None,
            decode_seconds=times[-1] - times[0] if times else 0.0,
        )
        if thinking:
            usage = replace(
                usage,
                thinking_tokens=_thinking_tokens(self._usage),
                thinking_seconds=(self._answer_time or times[-1]) - times[0],
            )
        return Generation(
            text=text,
            usage=usage,
            finish_reason=ending,
            # Without one the server draws its own and does not tell it.
            seed=None if sampling.temperature == 0 else sampling.seed,
            thinking=thinking,
        )


_NO_ANSWER = {
    "abort": "gave the answer up",
    "content_filter": "holds the answer back",
    "error": "failed in the middle of the answer",
}


def _counted(usage: dict[str, Any], conversation: Conversation) -> Usage:
    prompt, details = _count(usage.get("prompt_tokens")), usage.get("prompt_tokens_details")
    visual = _count(details.get("image_tokens")) if isinstance(details, dict) else None
    if not conversation.images:
        visual = 0
    elif prompt is None or (visual is not None and visual > prompt):
        visual = None
    return Usage(
        text_tokens=None if prompt is None else prompt - (visual or 0),
        visual_tokens=visual,
        new_tokens=_count(usage.get("completion_tokens")),
    )


def _thinking_tokens(usage: dict[str, Any]) -> int | None:
    """Return a count that OpenAI's protocol keeps in one place, and SGLang in another."""
    details = usage.get("completion_tokens_details")
    counted = details.get("reasoning_tokens") if isinstance(details, dict) else None
    return _count(usage.get("reasoning_tokens") if counted is None else counted)


def _body(model: str, request: Request) -> dict[str, Any]:
    """Write a request in OpenAI's terms, and where these have none, in vLLM's."""
    conversation, sampling = request.conversation, request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [_written(message) for message in conversation.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": sampling.max_tokens,
    }
    for name in ("temperature", "top_p", "seed", *_EXTENSIONS):
        value = getattr(sampling, name)
        if value is not None:
            body[name] = value
    if sampling.repetition_penalty is not None:
        body["repeat_penalty"] = sampling.repetition_penalty  # llama.cpp's name for it
    if sampling.thinking is not None:
        # A variable of the chat template, and the one that those of GLM and Qwen know; vLLM,
        # SGLang, llama.cpp and transformers serve hand it on.
        body["chat_template_kwargs"] = {"enable_thinking": sampling.thinking}
    if (partial := conversation.partial) is not None:
        if partial.thinking:  # as the model wrote it; the templates know these tags
            written = OPEN + partial.thinking + (CLOSE + partial.text if partial.text else "")
            body["messages"][-1]["content"] = written
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    return body


def _written(message: Message) -> dict[str, Any]:
    # Without the thinking: models are trained to see that of the answer they are writing alone, and
    # the templates of GLM (https://huggingface.co/zai-org/GLM-4.7/blob/main/chat_template.jinja)
    # and Qwen3 leave it out of the answers before.
    if not message.images:
        return {"role": message.role, "content": message.text}
    images = [
        {"type": "image_url", "image_url": {"url": _data_uri(image)}} for image in message.images
    ]
    return {"role": message.role, "content": [*images, {"type": "text", "text": message.text}]}


def _data_uri(image: SourcedImage) -> str:
    buffer = io.BytesIO()
    # Without loss, so that the model sees what it would see here; quick rather than small.
    image.image.save(buffer, format="png", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _lines(chunks: Iterable[bytes], url: str) -> Iterator[bytes]:
    """Split at line feeds only: U+2028 may stand inside of JSON, and httpx would split there."""
    rest, size = bytearray(), 0
    for chunk in chunks:
        rest += chunk
        *lines, rest = rest.split(b"\n")
        for ended in lines:
            line = bytes(ended.removesuffix(b"\r"))
            size = size + len(line) if line else 0
            yield line
        if size + len(rest) > _LONGEST_EVENT:
            raise EngineError(f"{url} sent an event of more than {_LONGEST_EVENT:,} bytes.")
    if rest:
        yield bytes(rest)


def _events(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Return the data of each server-sent event (HTML Living Standard, 9.2.6).

    Comments, which keep a connection alive, and other fields are left out.
    """
    data: list[bytes] = []
    for line in lines:
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data)
            data = []
    if data:
        yield b"\n".join(data)


def _read(response: httpx.Response) -> bytes:
    """Read a body that is not a stream, as far as it is of reasonable length."""
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > _LONGEST_BODY:
            break
    return bytes(body[:_LONGEST_BODY])


def _json_of(content: bytes) -> Any:
    """Return what `content` says in JSON; ``None`` if it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _message(body: bytes, kind: str) -> str:
    """Find the words in an error; each server has its own place for them."""
    content = _json_of(body)
    for _ in range(3):
        if isinstance(content, dict):
            content = next(
                (content[key] for key in ("error", "message", "detail", "msg") if content.get(key)),
                None,
            )
        elif isinstance(content, list) and content:  # of FastAPI, for a request it cannot read
            content = content[0]
    if isinstance(content, str):
        return content
    return body.decode("utf-8", "replace") if kind == "text/plain" else ""


def _content_type(response: httpx.Response) -> str:
    kind: str = response.headers.get("Content-Type", "")
    return kind.partition(";")[0].strip().lower()


def _count(value: object) -> int | None:
    is_one = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_one else None  # type: ignore[return-value]  # an int


def _key() -> str:
    return os.environ.get(API_KEY, "").strip()


def _listed(names: Iterable[str]) -> str:
    few = list(names)
    more = f" and {len(few) - 10} more" if len(few) > 10 else ""
    return ", ".join(few[:10]) + more
