"""Deadlines of connections, so that none is held by a client that is silent, slow or does not read.

uvicorn closes a connection that is idle after an answer. In everything else it lets a client take
as long as it likes: in sending the head of a request, and in reading an answer. The body of a
request has its deadline where it is read, in `app`.

At most `MOST_CONNECTIONS` may be open at once. One more takes the place of the one that has been
sending its request for the longest time; if all have sent theirs, it is told that the server is
busy.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from glm4v_magic.server.app import too_many

__all__ = ["HEAD_SECONDS", "IDLE_SECONDS", "MOST_CONNECTIONS", "READ_SECONDS", "Impatient"]

HEAD_SECONDS = 30.0
"""Longest time in seconds for the head of a request, from the connection or the answer before."""

IDLE_SECONDS = 5
"""Longest silence in seconds between two requests of a connection."""

READ_SECONDS = 60.0
"""Longest time in seconds for which a client may leave what it was sent unread."""

MOST_CONNECTIONS = 768
"""Most connections at once: more than requests may wait, less than a process may usually have
files open (1,024)."""

_MOST_REFUSED = 64  # connections beyond those, which are told so


class Impatient(H11Protocol):
    """uvicorn's connection, which is cut where its client misses a deadline.

    It is cut rather than closed: closing waits until everything that was sent has been read.
    """

    _head: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _sends_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of a request."""
        super().connection_made(transport)
        self._sends_since = self.loop.time()
        self._expect_head()
        if len(self.connections) > MOST_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        super().connection_lost(exc)
        for timer in (self._head, self._reading):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Take what has arrived; with the head of a request its deadline has been kept."""
        super().data_received(data)
        self._expect_head()

    def on_response_complete(self) -> None:
        """Begin to wait for the head of the next request, or for the answer to be read."""
        super().on_response_complete()
        self._sends_since = self.loop.time()
        self._expect_head()

    def pause_writing(self) -> None:
        """Begin to wait until the client reads; called when much is unread."""
        super().pause_writing()
        self._reading = self.loop.call_later(READ_SECONDS, self._cut)

    def resume_writing(self) -> None:
        """Go on; called when most has been read."""
        if self._reading is not None:
            self._reading.cancel()
        super().resume_writing()

    def _make_room(self) -> None:
        """Cut the connection that has been sending for the longest time, or refuse this one."""
        others: Any = self.connections - {self}
        sending = [each for each in others if each.is_sending]
        if sending:
            min(sending, key=lambda each: each._sends_since)._cut()
        elif len(others) < MOST_CONNECTIONS + _MOST_REFUSED:
            self.app = too_many
        else:
            self._cut()

    @property
    def is_sending(self) -> bool:
        """Whether a request is expected, or the rest of one."""
        cycle: Any = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    def _expect_head(self) -> None:
        cycle: Any = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if is_answering and self._head is not None:
            self._head.cancel()
            self._head = None
        elif not is_answering and self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self._cut)

    def _cut(self) -> None:
        # It would be lost in a later turn of the loop, until when others would still count it.
        self.connections.discard(self)
        self.transport.abort()
