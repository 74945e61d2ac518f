"""What answers requests: a model in this process (`engines.local`) or a server (`engines.server`).

An engine is used from one thread at a time; `Session` sees to that.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Protocol

from glm4v_magic.core.conversation import Request
from glm4v_magic.core.events import EngineEvent
from glm4v_magic.core.image import SeenImage
from glm4v_magic.core.model import EngineInfo

__all__ = ["Engine"]


class Engine(Protocol):
    """Generates answers to requests."""

    @property
    def info(self) -> EngineInfo:
        """Facts about the model."""

    @property
    def batch_size(self) -> int:
        """Number of requests that are best answered at once."""

    def require_room(self, request: Request) -> int | None:
        """Return the number of tokens that may follow a prompt; ``None`` if a server does not tell.

        Raises:
            ConversationError: if there is no room for one, or the model cannot take the messages.
        """

    def seen(self, request: Request) -> tuple[SeenImage, ...]:
        """Return what the model sees of each image of a request.

        Raises:
            ConversationError: if the model cannot take the messages.
        """

    def stream(
        self, requests: Iterable[Request], at_once: int | None = None
    ) -> Generator[EngineEvent, None, None]:
        """Answer `requests`, `at_once` of them at a time; by default `batch_size`.

        A request takes the place of one that has ended. They are taken from `requests` when there
        is room for them, a few ahead, and numbered in this order; not in this order do they begin
        and end.

        Yields `Text`, `Thinking` and `Reclassified` as they come, each with the number of its
        request, and `Finished` as each of them ends. The pieces of `Text` of a row, joined and
        stripped, are the text of its generation. Nothing happens before the first event is asked
        for.

        A row says what it would say alone, but for rounding; a sampled row, what it would say
        alone with its seed.

        Closing the stream at any event releases everything that the call holds, such as the
        connection to a server, but for what an engine keeps within its budget so as not to read
        it again. So does every error.

        Raises:
            GenerationInterrupted: on an interrupt, also one that is thrown in at an event; with
                what the open rows have said until then. Requests that were not begun are not
                among them.
            ConversationError: if the model cannot take the messages of a request (for example two
                images).
            OutOfMemoryError: if a GPU ran out; the engine can be used again.
            EngineError: if a server does not answer as it should; it can be asked again.
        """

    def close(self) -> None:
        """Release the model's memory. The engine cannot be used afterwards."""
