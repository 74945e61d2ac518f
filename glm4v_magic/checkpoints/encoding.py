"""Prompts as a model takes them: output of a family's processor, and input of its model.

`Processor` and `ModelInputs` are all that engines and previews know about a family's prompt.
Shapes: L ids of a prompt with all ids of its images, V visual tokens of an image, H width of the
text part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from glm4v_magic.core.image import SeenImage, SourcedImage

if TYPE_CHECKING:
    from torch import Tensor

    from glm4v_magic.core.conversation import Conversation

__all__ = ["DecodeStep", "Encoded", "EncodedImage", "ModelInputs", "Processor"]


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image of a prompt.

    Attributes:
        image: the image, as it was given.
        start: index of the first of its ids in the prompt.
        stop: index past the last; ``stop - start`` is V.
        size: width and height in pixels that the model sees.
        pixels: returns the model's input for this image; nothing is computed until it is called.
        grid: frames, rows and columns of its patches; ``None`` in families without a grid.
        second: the following frame, if this is a pair of frames of a video.
    """

    image: SourcedImage
    start: int
    stop: int
    size: tuple[int, int]
    pixels: Callable[[], Tensor]
    grid: tuple[int, int, int] | None = None
    second: SourcedImage | None = None

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the image."""
        return self.stop - self.start

    @property
    def cells(self) -> tuple[int, int, int]:
        """Tokens before that of the first patch; rows and columns of tokens.

        Images without a grid are square, with a learned token before and after their patches. With
        one, a square of patches is merged into a token.
        """
        if self.grid is None:
            side = math.isqrt(self.visual_tokens - 2)
            return 1, side, side
        frames, rows, columns = self.grid
        merged = math.isqrt(frames * rows * columns // self.visual_tokens)
        return 0, rows // merged, columns // merged

    @property
    def seen(self) -> SeenImage:
        """What the model sees of it."""
        return SeenImage(self.size, self.visual_tokens)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as ids.

    Attributes:
        ids: ids of the prompt with all ids of its images, L of them.
        published: ids of the prompt in its published form, where an image is a few ids.
        images: its images and pairs of frames, in order.
        length: tokens of the context length that the prompt takes up.
        inside_thinking: whether the prompt ends within the model's thinking.
    """

    ids: tuple[int, ...]
    published: tuple[int, ...]
    images: tuple[EncodedImage, ...]
    length: int
    inside_thinking: bool = False

    @property
    def seen(self) -> tuple[SeenImage, ...]:
        """What the model sees of each image, frames of videos not included."""
        return tuple(image.seen for image in self.images if image.second is None)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of all images and frames."""
        return sum(image.visual_tokens for image in self.images)


class Processor(Protocol):
    """Converts conversations to prompts; reads no weights."""

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the checkpoint."""

    @property
    def max_images(self) -> int | None:
        """Maximum number of images in a conversation; ``None`` for no limit."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height in pixels that images are resized to; ``None`` if it differs."""

    @property
    def num_visual_tokens(self) -> int | None:
        """Visual tokens of every image; ``None`` if it depends on the image."""

    @property
    def end_token_ids(self) -> Sequence[int]:
        """Ids that end a turn of this kind of model."""

    @property
    def opening_ids(self) -> Sequence[int]:
        """Ids that the model writes before the text of every answer, such as a newline."""

    @property
    def told_token_ids(self) -> Collection[int]:
        """Ids of special tokens that are kept in an answer's text, such as ``<think>``."""

    @property
    def thinks(self) -> bool:
        """Whether the model can think before it answers."""

    @property
    def takes_video(self) -> bool:
        """Whether it takes video."""

    def text_ids(self, text: str) -> list[int]:
        """Encode a text by itself; special tokens in it are ordinary text."""

    @property
    def efforts(self) -> tuple[str, ...]:
        """Levels of reasoning effort that it offers; empty if there is no choice."""

    def encode(
        self,
        conversation: Conversation,
        *,
        thinking: bool | None = None,
        effort: str | None = None,
    ) -> Encoded:
        """Encode a conversation that ends with a question, or an incomplete answer to continue.

        Text is never searched for special tokens: ``<|user|>`` inside a message is ordinary text.

        Args:
            conversation: the turns.
            thinking: whether the model is to think first; ``None`` for the model's default.
            effort: how much it is to think, one of `efforts`; ``None`` for the model's default.

        Raises:
            ConversationError: if the model cannot take the messages.
        """


class DecodeStep(Protocol):
    """One decode step of B rows, with the logits of the model's forward."""

    def __call__(
        self, ids: Tensor, mask: Tensor | None, position_ids: Tensor, cache: Any
    ) -> Tensor:
        """Return the logits of the next token, (B, vocabulary), and add a column to the cache.

        Args:
            ids: (B, 1).
            mask: 1 marks the columns of each row that are in use, the new one included, (B, W + 1);
                ``None`` if all are.
            position_ids: (..., B, 1).
            cache: KV cache of W columns, at least one.
        """


class ModelInputs(Protocol):
    """Makes the arguments of a model's forward that depend on its family."""

    @property
    def is_recurrent(self) -> bool:
        """Whether the cache holds a recurrent state, which cannot be cropped."""

    def positions(self, encoded: Encoded) -> Tensor:
        """Return the position of every token: (1, L), or (axes, 1, L) where a token has several."""

    def features(self, images: Sequence[EncodedImage]) -> list[Tensor]:
        """Run the vision tower: visual tokens of each image, (V, H), on its own device."""

    def arguments(self, features: Sequence[Tensor]) -> dict[str, Any]:
        """Return the arguments that put visual tokens in place of their ids.

        Args:
            features: visual tokens of each image in the ids of the call, in the order of rows.
        """

    def decode_step(self) -> DecodeStep | None:
        """Return a faster decode step of the model as it is now; ``None`` if there is none."""
