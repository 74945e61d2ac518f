"""Engine for a model on a server: `connect` looks up the model, `ServerEngine` asks it.

An answer is streamed as server-sent events. An interrupt, an error or a stream that is closed
closes the connection, which makes such a server stop generating.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Generator, Iterable, Mapping
from dataclasses import replace

import httpx
from pydantic import ValidationError

from glm4v_magic.core.conversation import Request
from glm4v_magic.core.errors import EngineError, GenerationInterrupted, OptionError, reason
from glm4v_magic.core.events import EngineEvent, Waiting
from glm4v_magic.core.image import SeenImage
from glm4v_magic.core.model import EngineInfo
from glm4v_magic.core.server_address import ServerAddress
from glm4v_magic.engines.server.background import Background
from glm4v_magic.engines.server.connection import (
    KEY_WANTED,
    REPLY_SECONDS,
    Connection,
    StatusError,
    content_type,
    read,
)
from glm4v_magic.engines.server.dialogue import BUSY, Dialogue, Manners, listed
from glm4v_magic.engines.server.flight import Flight
from glm4v_magic.engines.server.patience import Patience
from glm4v_magic.engines.server.replies import ModelEntry, ModelList, OwnFacts

__all__ = ["ServerEngine", "connect"]

_log = logging.getLogger(__name__)
_AT_ONCE = 16
_ONE_BY_ONE = "me"
"""Owner that llama-cpp-python's server (0.3.36) names for its models: it cuts an answer off when
another request comes (``interrupt_requests``, which is on by default)."""


def connect(address: ServerAddress) -> Generator[Waiting, None, ServerEngine]:
    """Look up the models of a server and return an engine for one of them.

    Yields that it is waited for.

    Raises:
        EngineError: if the server cannot be reached, or does not speak the protocol.
        OptionError: if it has several models and none was chosen, or if it is our own server, which
            has no models but those in its list, and another was chosen.
    """
    try:
        connection = Connection(address)
    except (httpx.InvalidURL, ValueError, ImportError) as error:  # the address, or a proxy for it
        raise EngineError(
            f"{address.url} cannot be asked: {reason(error)}.",
            "Check the address, and the proxy in the environment if there is one.",
        ) from None
    with Background() as background:
        entries = yield from background.result(_entries(connection, address), connection.url)
    name = _named(connection, address.served_model or _only(connection, entries), entries)
    if name not in entries and any(entry.glm4v_magic for entry in entries.values()):
        raise OptionError(
            f"{connection.url} serves {connection.said(listed(entries))}, not "
            f"{connection.said(name)}.",
            code="server_has_many_models",
        )
    entry = entries.get(name) or ModelEntry(id=name)
    info = _described(connection, entry)
    if entries and name not in entries:
        # It is left to the server, for some load models on request.
        there = connection.said(listed(entries))
        note = f"{connection.url} does not list {connection.said(name)}, but {there}"
        info = replace(info, notes=(note,))
        _log.warning("%s.", note)
    # Our own limits the thinking exactly; what it counts as thinking includes all tags.
    manners = Manners(
        limits_thinking=entry.glm4v_magic is not None,
        most_at_once=1 if entry.owned_by == _ONE_BY_ONE else _AT_ONCE,
    )
    return ServerEngine(connection, info, name, tuple(entries), manners)


def _named(connection: Connection, given: str, entries: Iterable[str]) -> str:
    """Return the server's own spelling of a name that is given as messages show it."""
    shown = {connection.said(each): each for each in entries}
    return given if given in entries else shown.get(given, given)


async def _entries(connection: Connection, address: ServerAddress) -> dict[str, ModelEntry]:
    """Return the server's entry for each of its models, by name."""
    seconds = min(address.timeout, REPLY_SECONDS)
    patience = Patience()
    try:
        while True:
            try:
                body, kind = await _reply(connection, seconds)
                break
            except StatusError as refused:
                wait = patience.wait(refused.wait) if refused.status in BUSY else None
                if wait is None:
                    raise
            await asyncio.sleep(wait)
    except StatusError as refused:
        if address.served_model is None or refused.status in KEY_WANTED:
            raise
        # Not every proxy has this list; transformers serve (5.23) fails at it without a hub cache.
        return {}
    try:
        return ModelList.model_validate_json(body).by_name()
    except ValidationError:
        raise EngineError(
            f"{connection.url}/models answers with {kind or 'something'} that is not a list of "
            "models.",
            "The address of an OpenAI-compatible API usually ends in /v1.",
        ) from None


async def _reply(connection: Connection, seconds: float) -> tuple[bytes, str]:
    """Return the body of the list of models, and its type."""
    has_begun = False
    try:
        # It may come a byte at a time, its headers too; what connecting takes is bounded there.
        async with (
            asyncio.timeout(2 * seconds) as deadline,
            connection.open("GET", "/models", seconds=seconds) as response,
        ):
            has_begun = True
            deadline.reschedule(asyncio.get_running_loop().time() + seconds)
            return await read(response), content_type(response)
    except TimeoutError:
        if not has_begun:
            raise connection.silent(seconds) from None
    raise EngineError(
        f"{connection.url} has not sent its whole list of models within {seconds:g} s.",
        code="server_is_silent",
    )


def _only(connection: Connection, names: Mapping[str, object]) -> str:
    """Return the name of the only model."""
    if not names:
        raise EngineError(
            f"{connection.url} lists no model.",
            code="server_has_no_model",
        )
    if len(names) > 1:
        raise OptionError(
            f"{connection.url} serves {connection.said(listed(names))}.",
            code="server_has_many_models",
        )
    (name,) = names
    return name


def _described(connection: Connection, entry: ModelEntry) -> EngineInfo:
    """Return the facts that a server tells, on one line each: everything shows them."""
    own, said = entry.glm4v_magic or OwnFacts(), connection.said
    return EngineInfo(
        model=said(entry.id),
        notice=said(own.notice or ""),
        max_images=own.max_images,
        image_size=own.image_size,
        visual_tokens=own.visual_tokens,
        largest_image=own.largest_image,
        tells_images=entry.glm4v_magic is not None,
        context=entry.max_model_len,
        parameters=None,
        server=connection.url,
        thinks=own.thinks,
        efforts=tuple(each for each in own.efforts if each and each == said(each)),
    )


class ServerEngine:
    """A served model; see `engines.Engine`. Made by `connect`.

    Args:
        connection: connection to the server.
        info: facts about the chosen model.
        name: the server's name of it, as requests have it.
        offered: names of all models of the server.
        manners: what the server has shown of itself.
    """

    def __init__(
        self,
        connection: Connection,
        info: EngineInfo,
        name: str,
        offered: tuple[str, ...],
        manners: Manners,
    ) -> None:
        self._connection = connection
        self._info, self._name = info, name
        self._offered = offered
        self._manners = manners

    @property
    def info(self) -> EngineInfo:
        """Facts about the model, as far as the server tells them."""
        return self._info

    @property
    def batch_size(self) -> int:
        """16, since a server answers many together; 1 for one that answers one by one."""
        return self._manners.most_at_once

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
        """Answer `requests`, many at once; see `engines.Engine.stream`.

        A server that is busy is asked again, with fewer requests at once.
        """
        flight: Flight | None = None
        try:
            with Background() as background:
                count = self.batch_size if self.batch_size == 1 else at_once or self.batch_size
                flight = Flight(self._dialogue(), background, count, withdrawn)
                yield from flight.answers(requests)
        except KeyboardInterrupt:
            pass  # raised again below, without the frames of the HTTP client
        else:
            return
        raise GenerationInterrupted({} if flight is None else flight.interrupted())

    def _dialogue(self) -> Dialogue:
        return Dialogue(
            self._connection, self._name, self._info.image_size, self._offered, self._manners
        )

    def close(self) -> None:
        """Nothing is open between two calls; the server keeps running."""
