"""What answers a request: this process (`engines.local`) or a server.

An engine is used from one thread at a time; `Session` sees to that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from glm4v_magic.conversation import Generation, Request

if TYPE_CHECKING:
    from glm4v_magic.placement.costs import Quantization
    from glm4v_magic.placement.device_map import Place
    from glm4v_magic.placement.stages import Plan

__all__ = ["BatchEngine", "Engine", "EngineInfo"]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is worth knowing about the model behind an engine.

    Attributes:
        model: name of the checkpoint, as the user would type it.
        notice: what a reader of every answer must know; empty for most models.
        max_images: pictures that one conversation may hold; ``None`` for no limit.
        image_size: width and height in pixels that a picture is resized to; ``None`` where it
            depends on the picture.
        visual_tokens: vectors that one picture becomes; ``None`` where it depends on the picture.
        context: longest prompt plus answer, in positions; ``None`` if a server does not tell.
        parameters: number of weights; ``None`` for those of a server.
        dtype: of the weights, for example ``bfloat16``; empty for those of a server.
        devices: where the weights are, for example ``("cuda:0", "cuda:1")``; none for a server.
        quantize: of the text part's linear layers, if they are quantised.
        device_map: module -> GPU index or ``cpu``; ``None`` if all is in one place.
        plan: that the map is from, if it is from one.
        server: address of the server that holds the model; ``None`` if it is in this process.
        thinks: whether it can think before it answers; ``None`` if a server does not tell.
    """

    model: str
    notice: str
    max_images: int | None
    image_size: tuple[int, int] | None
    visual_tokens: int | None
    context: int | None
    parameters: int | None
    dtype: str = ""
    devices: tuple[str, ...] = ()
    quantize: Quantization | None = None
    device_map: Mapping[str, Place] | None = None
    plan: Plan | None = None
    server: str | None = None
    thinks: bool | None = None


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
            ConversationError: if the model cannot take the messages (for example two pictures).
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
