"""One request to a server: without the parts that it refuses, and again while it is busy."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Container, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import httpx

from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Request
from glm4v_magic.engines.server.carried_on import Lengths
from glm4v_magic.engines.server.connection import (
    BrokenError,
    Connection,
    StatusError,
    content_type,
    read,
)
from glm4v_magic.engines.server.patience import Allowance, Patience
from glm4v_magic.engines.server.question import EXTENSIONS, body_of
from glm4v_magic.engines.server.replies import error_code, error_message, is_answer

__all__ = ["BUSY", "DONE", "Dialogue", "Manners", "listed"]

_log = logging.getLogger(__name__)

DONE = "[DONE]"
"""Data of the last event of a stream."""

_EXTRAS = ("constraint", "logprobs")
"""Parts of a request that not every server takes; without them the answer is checked here, or lacks
something."""

_UNWANTED = (
    httpx.codes.BAD_REQUEST,
    httpx.codes.FORBIDDEN,  # OpenAI's, of models whose log-probabilities are not told
    httpx.codes.UNPROCESSABLE_ENTITY,
)
"""Statuses with which servers refuse an unknown field."""

_REFUSED = (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)

BUSY = (
    httpx.codes.REQUEST_TIMEOUT,
    httpx.codes.CONFLICT,  # OpenAI's own client asks again, too
    httpx.codes.TOO_EARLY,
    httpx.codes.TOO_MANY_REQUESTS,
    httpx.codes.BAD_GATEWAY,  # of a gateway whose server does not take the request now
    httpx.codes.SERVICE_UNAVAILABLE,
    httpx.codes.GATEWAY_TIMEOUT,
    *(520, 521, 522, 523, 524),  # of Cloudflare, whose server does not answer now
    529,  # overloaded
)
"""Statuses of a server that may answer later."""

_MOST_BREAKS = 3
"""Most times that a request is sent again after its connection broke before any answer."""

_FIELDS = ("stream_options", "max_completion_tokens", "json_object", "stream")
"""Fields that a server may refuse or want under another name, if its message says so."""

_NO_FORM = re.compile(r"The (?:schema|regex|form) cannot be followed: ")
"""What our own server says of a form that no model can follow; asking without it pays for an answer
that breaks it."""

_FAULTY = "response_format"
"""Field whose unknown values llama-cpp-python's server (0.3.36) answers with 500."""


@dataclass(slots=True)
class Manners:
    """What is known of a server from its behaviour.

    Attributes:
        refused: parts of a request that it does not take, whatever they are.
        constraints: constraints that it does not take; it may take others.
        fields: fields of `_FIELDS` that are sent in another way.
        lengths: token counts of its latest answers.
        limits_thinking: whether it is known to keep to the maximum number of thinking tokens.
        most_at_once: number of requests that it is best asked at once.
    """

    refused: set[str] = field(default_factory=set)
    constraints: set[Constraint] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    lengths: Lengths = field(default_factory=Lengths)
    limits_thinking: bool = False
    most_at_once: int = 1

    def of(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a body as this server wants it."""
        body = dict(body)
        if "max_completion_tokens" in self.fields:
            body["max_completion_tokens"] = body.pop("max_tokens")
        if self.fields & {"stream_options", "stream"}:
            del body["stream_options"]
        if "stream" in self.fields:
            body["stream"] = False
        form = body.get("response_format", {}).get("json_schema")
        if form is not None and "json_object" in self.fields:  # of llama.cpp and its kin
            body["response_format"] = {"type": "json_object", "schema": form["schema"]}
        return body

    def taken(self, request: Request) -> Request:
        """Return a request without the parts that this server is known not to take."""
        unwanted = request.constraint in self.constraints
        return without(request, [*self.refused, *(["constraint"] if unwanted else [])])

    def note(self, request: Request, less: Iterable[str]) -> None:
        """Note that a request was taken without some of its parts, and not with them."""
        for name in less:
            if name != "constraint":
                self.refused.add(name)
            elif request.constraint is not None:
                self.constraints.add(request.constraint)

    def learn(self, refused: StatusError, known: Container[str]) -> set[str]:
        """Return the field, if any, that a refusal names and that can be sent in another way.

        Args:
            refused: the refusal.
            known: fields that were sent in another way already.
        """
        words = set(re.findall(r"\w+", refused.said))  # "upstream" is not "stream"
        new = [name for name in _FIELDS if name in words and name not in known][:1]
        self.fields |= set(new)
        return set(new)


class Dialogue:
    """Asks one server.

    Args:
        connection: connection to it.
        name: the server's name of the model.
        image_size: width and height in pixels that it resizes images to, if it tells.
        offered: names of all its models.
        manners: what it has shown so far; added to.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        image_size: tuple[int, int] | None,
        offered: tuple[str, ...],
        manners: Manners,
    ) -> None:
        self.connection = connection
        self._name, self._image_size = name, image_size
        self._offered, self.manners = offered, manners
        self._is_told = False

    async def ask(self, request: Request, allowance: Allowance) -> AsyncGenerator[str, None]:
        """Yield the data of each event of the answer.

        Args:
            request: request to send.
            allowance: told of each refusal.

        Raises:
            EngineError: if there is none.
        """
        patience, is_begun = Patience(), False
        while True:
            sent = time.monotonic()
            try:
                async with aclosing(self._attempts(request)) as events:
                    async for data in events:
                        is_begun = True
                        yield data
            except (StatusError, BrokenError) as error:
                seconds = None if is_begun else self._wait(error, patience)
                if seconds is None:
                    if isinstance(error, StatusError):
                        self._advise(error, request)
                    raise
                allowance.refused(sent)
            else:
                return
            await asyncio.sleep(seconds)

    def _wait(self, error: StatusError | BrokenError, patience: Patience) -> float | None:
        """Return the seconds after which to ask again; ``None`` if that would not help."""
        told = None
        if isinstance(error, StatusError):
            if error.status not in BUSY:
                return None
            told = error.wait
        elif patience.count >= _MOST_BREAKS:
            return None
        seconds = patience.wait(told)
        if seconds is not None and seconds >= 1 and not self._is_told:
            self._is_told = True
            _log.warning("%s It is asked again in %.0f s.", error.what, seconds)
        return seconds

    async def _attempts(self, request: Request) -> AsyncGenerator[str, None]:
        """Ask; if the server refuses, ask again without the parts that not every server takes."""
        request = self.manners.taken(request)
        extras = [name for name in _EXTRAS if without(request, [name]) != request]
        attempts = [
            less for count in range(len(extras) + 1) for less in combinations(extras, count)
        ]
        learnt: set[str] = set()
        while attempts:
            less, sent = attempts[0], frozenset(self.manners.fields)
            try:
                async with aclosing(self._exchange(without(request, less))) as events:
                    async for data in events:
                        self.manners.note(request, less)
                        yield data
            except StatusError as refused:
                is_faulty = refused.status == httpx.codes.INTERNAL_SERVER_ERROR
                is_unwanted = refused.status in _UNWANTED or (is_faulty and _FAULTY in refused.said)
                is_unwanted &= _NO_FORM.match(refused.said) is None
                # Others in flight may have taught it since this was sent.
                if is_unwanted and (new := self.manners.learn(refused, sent | learnt)):
                    learnt |= new
                    continue
                if not is_unwanted or len(attempts) == 1:
                    self.manners.fields -= learnt  # it was not for these
                    raise
                attempts.pop(0)
            else:
                return

    async def _exchange(self, request: Request) -> AsyncGenerator[str, None]:
        # In another thread: images take long to encode, and other answers go on meanwhile.
        made = await asyncio.to_thread(body_of, self._name, request, self._image_size)
        body = self.manners.of(made)
        async with self.connection.open("POST", "/chat/completions", body) as response:
            if content_type(response) == "application/json":
                whole = await read(response)
                if is_answer(whole):  # of a server that does not stream
                    yield whole.decode("utf-8", "replace")
                    yield DONE
                    return
                self._refuse(whole)
            is_first = True
            async with aclosing(self.connection.events(response)) as events:
                async for data in events:
                    if is_first and (status := error_code(data)) in BUSY:
                        raise self._refusal(status, error_message(data))
                    is_first = False
                    yield data
                    if data.strip() == DONE:
                        return

    def _refuse(self, body: bytes) -> None:
        """Raise EngineError if the JSON of a body is an error, though its status is 200."""
        message = error_message(body)
        if message:
            status = error_code(body.decode("utf-8", "replace"))
            raise self._refusal(status or httpx.codes.OK, message)

    def _refusal(self, status: int, message: str) -> StatusError:
        said = self.connection.said(message)
        what = f"{self.connection.url} answers {status}: {said.rstrip('.')}."
        if status == httpx.codes.OK:
            what = f"{self.connection.url} answers with an error: {said.rstrip('.')}."
        error = StatusError(status, what)
        error.said = said
        return error

    def _advise(self, refused: StatusError, request: Request) -> None:
        """Add advice to an error where the request explains the status."""
        if refused.status == httpx.codes.NOT_FOUND and self._offered:
            refused.advise(f"It serves {self.connection.said(listed(self._offered))}.")
        is_about_form = _NO_FORM.match(refused.said) is not None
        if refused.status in _REFUSED and not is_about_form:
            names = (*EXTENSIONS, "thinking", "effort")
            sent = [name for name in names if getattr(request.sampling, name) is not None]
            partial = request.conversation.partial
            if sent:
                refused.advise(f"Not every server takes {' and '.join(sent)}; leave it out.")
            elif partial is not None and partial.thinking:
                refused.advise(code="server_cannot_think_on")
            elif partial is not None:
                refused.advise(code="server_cannot_carry_on")


def without(request: Request, extras: Iterable[str]) -> Request:
    """Return a request without some of `_EXTRAS`."""
    for name in extras:
        if name == "constraint":
            request = replace(request, constraint=None)
        else:
            request = replace(request, sampling=replace(request.sampling, logprobs=None))
    return request


def listed(names: Iterable[str]) -> str:
    """Return the first of some names in words."""
    few = list(names)
    more = f" and {len(few) - 10} more" if len(few) > 10 else ""
    return ", ".join(few[:10]) + more
