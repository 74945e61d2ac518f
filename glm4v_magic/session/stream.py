"""`Stream`: the events of a call, until it is answered or stopped."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Any

from glm4v_magic.core.errors import GenerationInterrupted, LoadInterrupted, MapInterrupted
from glm4v_magic.core.events import Done, Event, MapDone

__all__ = ["Stream"]


class Stream(Iterator[Event]):
    """The events of one call of a `Session`; see `core.events`.

    Nothing happens before the first event is requested, nor between two events: the reader may
    take any time. The session is busy from the first event to the last, or until the stream is
    closed. Use it in a loop, with ``with``, or through `follow`.

    Args:
        events: returns the generator of the events; an interrupt may be thrown in at each event.
    """

    def __init__(self, events: Generator[Event, None, None]) -> None:
        self._events = events

    def __next__(self) -> Event:
        return next(self._events)

    def follow(self, show: Callable[[Event], object] | None = None) -> Any:
        """Pass all events to `show`; returns the answer, or the result of a map.

        An interrupt may come at any time: while the model works, or while `show` does. Whatever
        else `show` raises closes the stream.

        Raises:
            GenerationInterrupted, MapInterrupted: on an interrupt, with the partial result.
            LoadInterrupted: on an interrupt after another model was released.
            Glm4vError: as the method that returned this stream.
        """
        result: Any = None
        try:
            for event in self._events:
                if show is not None:
                    show(event)
                if isinstance(event, Done):
                    result = event.answer
                elif isinstance(event, MapDone):
                    result = event.result
        except (GenerationInterrupted, MapInterrupted, LoadInterrupted):
            raise
        except KeyboardInterrupt:
            pass
        except BaseException:
            self.close()
            raise
        else:
            return result
        # Raised here, the exception has no __context__, whose frames would keep the model alive.
        self._events.throw(KeyboardInterrupt())
        raise KeyboardInterrupt

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
        self.close()
