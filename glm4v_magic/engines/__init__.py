"""What answers a request: this process (`engines.local`) or a server.

An engine is used from one thread at a time; `Session` sees to that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from glm4v_magic.core.conversation import Generation, Request
from glm4v_magic.core.model import EngineInfo

__all__ = [
    "BatchEngine",
    "Engine",
]


class Engine(Protocol):
    """Turns a request into text."""

    @property
    def info(self) -> EngineInfo:
        """What is worth knowing about the model."""

    def generate(
        self,
        request: Request,
        on_text: Callable[[str], None],
        on_thinking: Callable[[str], None] | None = None,
    ) -> Generation:
        """Answer `request`, calling `on_text` with each new piece of text as it appears.

        Pieces are never cut inside a character; their concatenation, stripped, is the text of
        the result.

        A model that thinks before it answers has each piece of that told to `on_thinking`. Some
        servers tell the two apart only when the thinking ends: pieces that `on_text` was told
        before were thinking, then, and `on_thinking` is told them once more.

        Raises:
            GenerationInterrupted: on an interrupt, with the text until then.
            ConversationError: if the model cannot take the messages (for example two images).
            OutOfMemoryError: if a GPU ran out; the engine can be used again.
            EngineError: if a server does not answer as it should; it can be asked again.
        """

    def close(self) -> None:
        """Give the model's memory back. The engine cannot be used afterwards."""


@runtime_checkable
class BatchEngine(Engine, Protocol):
    """An engine that answers several requests at once."""

    def require_room(self, request: Request) -> int:
        """Return how many tokens may follow a prompt.

        Raises:
            ConversationError: if there is no room for one.
        """

    def generate_batch(
        self,
        requests: Sequence[Request],
        on_row: Callable[[int, Generation], None],
        on_step: Callable[[], None],
    ) -> None:
        """Answer all `requests`, which sample alike, and call `on_row` as each of them is done.

        A row says what it would say alone, but for rounding; of sampled rows, what it would say
        alone with its seed. `on_step` is called after each token of all rows. On an interrupt
        `on_row` gets what the open rows have said until then, and the interrupt goes on.

        Raises:
            ConversationError: if the model cannot take the messages of one.
            OutOfMemoryError: if a GPU ran out; the engine can be used again.
        """
