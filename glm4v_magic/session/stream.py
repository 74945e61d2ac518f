"""`Stream`: the events of a call, until it is answered or stopped."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any

from glm4v_magic.core.errors import (
    ComparisonInterrupted,
    GenerationInterrupted,
    LoadInterrupted,
    MapInterrupted,
)
from glm4v_magic.core.events import ColumnDone, Done, Event, MapDone

__all__ = ["Stream"]

_TOLD = (GenerationInterrupted, MapInterrupted, LoadInterrupted, ComparisonInterrupted)


class Stream(Iterator[Event]):
    """The events of one call of a `Session`; see `core.events`.

    Nothing happens before the first event is requested, nor between two events: the reader may take
    as long as it likes. The session is busy from the first event to the last, or until the stream
    is closed. Read it in a loop within ``with``::

        with session.stream("What is this?", photo) as stream:
            for event in stream:
                print(event)
        print(stream.result)

    An interrupt may then come at any time, while the model works or the reader does: it leaves the
    block as GenerationInterrupted, MapInterrupted or LoadInterrupted, with what was done until
    then. Any other error of the reader closes the stream. `follow` does without a reader.

    Args:
        events: generator of the events; an interrupt may be thrown in at each event.

    Attributes:
        result: the answer, or the result of a map; ``None`` until the last event. Of a comparison
            what there is so far.
    """

    def __init__(self, events: Generator[Event, None, None]) -> None:
        self._events = events
        self.result: Any = None

    def __next__(self) -> Event:
        event = next(self._events)
        if isinstance(event, Done):
            self.result = event.answer
        elif isinstance(event, MapDone | ColumnDone):
            self.result = event.result
        return event

    def follow(self) -> Any:
        """Read the stream to its end; returns its `result`.

        Raises:
            GenerationInterrupted, MapInterrupted: on an interrupt, with the partial result.
            LoadInterrupted: on an interrupt after another model was released.
            Glm4vError: as the method that returned this stream.
        """
        with self:
            for _ in self:
                pass
        return self.result

    def close(self) -> None:
        """Stop the call. A partial answer stays in its chat; the session is free again."""
        try:
            self._events.throw(KeyboardInterrupt())
        except (KeyboardInterrupt, StopIteration):
            pass
        finally:
            self._events.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and not isinstance(error, _TOLD):
            self._interrupt(error)
        else:
            self.close()

    def _interrupt(self, interrupt: KeyboardInterrupt) -> None:
        """Interrupt the call; raises what the call makes of the interrupt."""
        try:
            self._events.throw(KeyboardInterrupt())
        except BaseException as stopped:
            # The frames of the interrupt that came first would keep the model alive.
            interrupt.__traceback__ = None
            stopped.__context__ = None
            raise
        finally:
            self._events.close()
