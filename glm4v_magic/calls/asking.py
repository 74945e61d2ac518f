"""The one loop over an engine's events: for one question, the rows of a map, and our server.

`Session` asks a batch of one, `mapping.runner` the rows of a map, and the server what its clients
send. What is the same for all of them is here: the tags around boxes are taken out, and an
interrupt, wherever it comes, leaves what every open row has said.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from glm4v_magic.calls.tags import Untagged
from glm4v_magic.core.conversation import ENDED, Generation, Request
from glm4v_magic.core.errors import GenerationInterrupted
from glm4v_magic.core.events import EngineEvent, Failed, Finished, Piece, Waiting

if TYPE_CHECKING:
    from glm4v_magic.engines import Engine

__all__ = ["asking"]


@contextmanager
def asking(
    engine: Engine,
    requests: Iterable[Request | None],
    at_once: int | None = None,
    withdrawn: Container[int] = (),
    *,
    tags: bool = False,
) -> Iterator[Iterator[EngineEvent]]:
    """Send requests to an engine; yields its events, to be read inside the ``with`` block.

    Leaving the context stops the engine, wherever it is.

    Args:
        engine: the engine.
        requests: as in `engines.Engine.stream`.
        at_once: maximum number of requests answered at once; see there.
        withdrawn: numbers of requests that are given up; see there.
        tags: whether the pieces keep the tags around boxes; generations always do.

    Raises:
        GenerationInterrupted: on an interrupt, of the engine or of the reader, with what the open
            rows have said until then. The row that ended last is among them, because its reader
            may not have taken it yet.
        KeyboardInterrupt: if no row had begun.
        Glm4vError: as `engines.Engine.stream`.
    """
    telling = _Telling(requests, tags)
    stream = engine.stream(telling.requests(), at_once, withdrawn)
    try:
        yield telling.events(stream)
    except KeyboardInterrupt as interrupt:
        partial = interrupt.generations if isinstance(interrupt, GenerationInterrupted) else {}
        stopped = partial or _stopped(stream) or telling.ended
        if not stopped:
            raise KeyboardInterrupt from None
        interrupt.__traceback__ = None  # its frames would keep the model alive
        raise GenerationInterrupted(telling.ended | stopped) from None
    finally:
        stream.close()


class _Telling:
    """What the caller has been told about the rows.

    Args:
        requests: their requests.
        tags: whether pieces keep their tags.

    Attributes:
        ended: generation of the row that ended last, by its number.
    """

    def __init__(self, requests: Iterable[Request | None], tags: bool) -> None:
        self._requests = requests
        self._keeps_tags = tags
        self._untagged: dict[int, Untagged] = {}
        self.ended: dict[int, Generation] = {}

    def requests(self) -> Iterator[Request | None]:
        """Yield the requests; each is the next row."""
        if self._keeps_tags:
            yield from self._requests
            return
        row = 0
        for request in self._requests:
            if request is not None:
                self._untagged[row] = Untagged(request.conversation.unfinished or "")
                row += 1
            yield request

    def events(self, stream: Generator[EngineEvent, None, None]) -> Iterator[EngineEvent]:
        """Yield the engine's events as the caller gets them."""
        for event in stream:
            if isinstance(event, Finished):
                self.ended = {event.row: event.generation}
            if self._keeps_tags or isinstance(event, Waiting):
                yield event
            elif isinstance(event, Failed | Finished):
                yield from self._rest(event)
                yield event
            else:
                yield from self._untagged[event.row].take(event)

    def _rest(self, event: Failed | Finished) -> Iterator[Piece]:
        """Yield the text that was held back from a row that has ended."""
        row = self._untagged.pop(event.row)
        if isinstance(event, Finished):
            yield from row.end(event.row, complete=event.generation.finish_reason in ENDED)


def _stopped(stream: Generator[EngineEvent, None, None]) -> dict[int, Generation]:
    """Interrupt an engine, and return what its open rows have said."""
    try:
        stream.throw(KeyboardInterrupt())
    except GenerationInterrupted as stopped:
        return stopped.generations
    except KeyboardInterrupt:
        pass
    return {}
