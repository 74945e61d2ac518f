"""Engine for a model on a server: `connect` looks up the model, `ServerEngine` asks it.

An answer is streamed as server-sent events. An interrupt, an error or a stream that is closed
closes the connection, which makes such a server stop generating.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations

import httpx
from pydantic import ValidationError

from glm4v_magic.core.conversation import Request
from glm4v_magic.core.errors import EngineError, GenerationInterrupted, OptionError, reason
from glm4v_magic.core.events import EngineEvent, Finished
from glm4v_magic.core.image import SeenImage
from glm4v_magic.core.model import EngineInfo
from glm4v_magic.core.server_address import ServerAddress
from glm4v_magic.engines.server.connection import (
    KEY_WANTED,
    LONGEST_MESSAGE,
    Connection,
    StatusError,
    content_type,
    read,
)
from glm4v_magic.engines.server.question import EXTENSIONS, body_of
from glm4v_magic.engines.server.replies import ModelEntry, ModelList, OwnFacts
from glm4v_magic.engines.server.transcript import Transcript

__all__ = ["ServerEngine", "connect"]

_LIST_SECONDS = 30.0
_DONE = "[DONE]"
_EXTRAS = ("constraint", "logprobs")
"""Parts of a request that not every server takes; without them the answer is checked here, or lacks
something."""

_UNWANTED = (
    httpx.codes.BAD_REQUEST,
    httpx.codes.FORBIDDEN,  # OpenAI's, of models whose log-probabilities are not told
    httpx.codes.UNPROCESSABLE_ENTITY,
)
"""Statuses with which servers refuse an unknown field."""


def connect(address: ServerAddress) -> ServerEngine:
    """Look up the models of a server and return an engine for one of them.

    Raises:
        EngineError: if the server cannot be reached, or does not speak the protocol.
        OptionError: if it has several models and none was chosen.
    """
    try:
        connection = Connection(address)
    except (httpx.InvalidURL, ValueError, ImportError) as error:  # the address, or a proxy for it
        raise EngineError(
            f"{address.url} cannot be asked: {reason(error)}.",
            "Check the address, and the proxy in the environment if there is one.",
        ) from None
    try:
        entries = _entries(connection, address)
        name = address.served_model or _only(connection, entries)
        # A name that is not in the list is left to the server: some load models on request.
        info = _described(address, entries.get(name) or ModelEntry(id=name))
        return ServerEngine(connection, info, tuple(entries))
    except BaseException:
        connection.close()
        raise


def _entries(connection: Connection, address: ServerAddress) -> dict[str, ModelEntry]:
    """Return the server's entry for each of its models, by name."""
    seconds = min(address.timeout, _LIST_SECONDS)
    try:
        with connection.open("GET", "/models", seconds=seconds) as response:
            body, kind = read(response), content_type(response)
    except StatusError as refused:
        if address.served_model is None or refused.status in KEY_WANTED:
            raise
        # Not every proxy has this list; transformers serve (5.23) fails at it without a hub cache.
        return {}
    try:
        return ModelList.model_validate_json(body).by_name()
    except ValidationError:
        raise EngineError(
            f"{connection.url}/models answers with {kind or 'something'} that is no list of "
            "models.",
            "The address of an OpenAI-compatible API usually ends in /v1.",
        ) from None


def _only(connection: Connection, names: Mapping[str, object]) -> str:
    """Return the name of the only model."""
    if not names:
        raise EngineError(
            f"{connection.url} lists no model.",
            code="server_has_no_model",
        )
    if len(names) > 1:
        raise OptionError(
            f"{connection.url} serves {connection.said(_listed(names))}.",
            code="server_has_many_models",
        )
    (name,) = names
    return name


def _described(address: ServerAddress, entry: ModelEntry) -> EngineInfo:
    own = entry.glm4v_magic or OwnFacts()
    return EngineInfo(
        model=entry.id,
        notice=(own.notice or "")[:LONGEST_MESSAGE],
        max_images=own.max_images,
        image_size=own.image_size,
        visual_tokens=own.visual_tokens,
        context=entry.max_model_len,
        parameters=None,
        server=address.url,
        thinks=own.thinks,
        efforts=tuple(filter(None, own.efforts)),
    )


class ServerEngine:
    """A served model; see `engines.Engine`. Made by `connect`.

    Args:
        connection: connection to the server.
        info: facts about the chosen model.
        offered: names of all models of the server.
    """

    def __init__(self, connection: Connection, info: EngineInfo, offered: tuple[str, ...]) -> None:
        self._connection = connection
        self._info = info
        self._offered = offered
        self._refused: set[str] = set()

    @property
    def info(self) -> EngineInfo:
        """Facts about the model, as far as the server tells them."""
        return self._info

    @property
    def batch_size(self) -> int:
        """1: requests are sent one after the other."""
        return 1

    def require_room(self, request: Request) -> None:
        """Return ``None``: only the server knows how many tokens may follow."""

    def seen(self, request: Request) -> tuple[SeenImage, ...]:
        """Return what the server tells about all images; see `engines.Engine.seen`."""
        info = self.info
        each = SeenImage(info.image_size, info.visual_tokens)
        return (each,) * len(request.conversation.images)

    def stream(
        self,
        requests: Iterable[Request | None],
        at_once: int | None = None,
        withdrawn: Container[int] = (),
    ) -> Generator[EngineEvent, None, None]:
        """Answer `requests`, always one after the other; see `engines.Engine.stream`."""
        open_rows: dict[int, Transcript] = {}
        try:
            for row, request in enumerate(filter(None, requests)):
                open_rows[row] = Transcript(request, row, self._connection)
                yield from self._listen(request, open_rows[row])
                finished = Finished(open_rows[row].finished(), row)
                del open_rows[row]
                yield finished
        except KeyboardInterrupt:
            pass  # raised again below, without the frames of the HTTP client
        else:
            return
        raise GenerationInterrupted(
            {row: each.generation("interrupted") for row, each in open_rows.items()}
        )

    def _listen(self, request: Request, transcript: Transcript) -> Iterator[EngineEvent]:
        try:
            yield from self._ask(request, transcript)
        except StatusError as refused:
            self._advise(refused, request)
            raise

    def _ask(self, request: Request, transcript: Transcript) -> Iterator[EngineEvent]:
        """Ask; if the server refuses, ask again without the parts that not every server takes."""
        request = _without(request, self._refused)
        extras = [name for name in _EXTRAS if _without(request, [name]) != request]
        attempts = [
            less for count in range(len(extras) + 1) for less in combinations(extras, count)
        ]
        for less in attempts:
            try:
                for event in self._exchange(_without(request, less), transcript):
                    self._refused |= set(less)
                    yield event
            except StatusError as refused:
                if refused.status not in _UNWANTED or less == attempts[-1]:
                    raise
            else:
                return

    def _exchange(self, request: Request, transcript: Transcript) -> Iterator[EngineEvent]:
        body = body_of(self._info.model, request)
        with self._connection.open("POST", "/chat/completions", body) as response:
            for data in self._connection.events(response):
                if data.strip() == _DONE:
                    transcript.done = True
                    break
                yield from transcript.take(data)
            yield from transcript.end()

    def _advise(self, refused: StatusError, request: Request) -> None:
        """Add advice to an error where the request explains the status."""
        if refused.status == httpx.codes.NOT_FOUND and self._offered:
            refused.advise(f"It serves {self._connection.said(_listed(self._offered))}.")
        if refused.status in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY):
            names = (*EXTENSIONS, "thinking", "effort", "max_thinking")
            sent = [name for name in names if getattr(request.sampling, name) is not None]
            partial = request.conversation.partial
            if sent:
                refused.advise(f"Not every server takes {' and '.join(sent)}; leave it out.")
            elif partial is not None and partial.thinking:
                refused.advise(code="server_cannot_think_on")

    def close(self) -> None:
        """Close the connection; the server keeps running."""
        self._connection.close()


def _without(request: Request, extras: Iterable[str]) -> Request:
    """Return a request without some of `_EXTRAS`."""
    for name in extras:
        if name == "constraint":
            request = replace(request, constraint=None)
        else:
            request = replace(request, sampling=replace(request.sampling, logprobs=None))
    return request


def _listed(names: Iterable[str]) -> str:
    few = list(names)
    more = f" and {len(few) - 10} more" if len(few) > 10 else ""
    return ", ".join(few[:10]) + more
