"""Engines, which answer requests: a model in this process (`local`) or one on a server (`server`).

Imports `checkpoints`, `planning`, `dispatch`, `images` and `core`, and torch in the modules of a
local model. An engine is used from one thread at a time, which `Session` makes sure of. Begin with
`Engine`; `decoding` is the decode loop, `prefixes` the prefix cache, `row` a request on its way
through them.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Iterable
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
        self,
        requests: Iterable[Request | None],
        at_once: int | None = None,
        withdrawn: Container[int] = (),
    ) -> Generator[EngineEvent, None, None]:
        """Answer `requests`, `at_once` of them at a time; by default `batch_size`.

        As soon as one request has ended, the next takes its place. Requests are taken from
        `requests` when there is room, a few ahead, and numbered in that order; they may begin and
        end in another. ``None`` among them means that none has arrived yet; more are asked for
        before the next step.

        A request whose number is in `withdrawn` is given up before the next step, without an event;
        the caller may add to it at any time, also from another thread.

        Yields `Text`, `Thinking` and `Reclassified` as they come, each with the number of its
        request, and `Finished` as each of them ends. The pieces of `Text` of a row, joined and
        stripped, are the text of its generation. `Failed` ends a request that cannot be answered
        (too many images, say). An engine elsewhere yields `Waiting` while nothing comes from it.
        Nothing happens before the first event is asked for.

        A row gets the same answer as it would alone (with its seed, if it is sampled), apart from
        rounding.

        Closing the stream at any event, like any error, releases everything that the call holds,
        such as the connection to a server; only the prefix cache stays, within its budget.

        Raises:
            GenerationInterrupted: on an interrupt, also one that is thrown in at an event; it has
                what the open rows said until then, and nothing for requests that were not begun.
            OutOfMemoryError: if a GPU ran out; the engine can be used again.
            EngineError: if no request can be answered.
        """

    def close(self) -> None:
        """Release the model's memory. The engine cannot be used afterwards."""
