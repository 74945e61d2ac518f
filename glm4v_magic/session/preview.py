"""Preview of a question: the prompt, images and tokens that a model would get."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glm4v_magic.calls.refusals import refuse_too_many, refuse_video

if TYPE_CHECKING:
    from glm4v_magic.checkpoints import Checkpoint
    from glm4v_magic.core.conversation import Conversation
    from glm4v_magic.core.image import SeenImage
    from glm4v_magic.core.video import Media

__all__ = ["Piece", "Preview", "preview"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rendered prompt: one special token, or text between two of them."""

    text: str
    special: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """A conversation in the form that a model would get.

    Attributes:
        model: name of the checkpoint.
        pieces: the prompt in its published form, where an image is three special tokens.
        media: images and videos, in order; videos with the frames that the model sees.
        seen: what the model sees of each image.
        text_tokens: text tokens of the prompt, special ones included.
        frame_tokens: visual tokens of the frames of all videos.
        room: tokens that are left for the answer; below 1 the model refuses the prompt.
    """

    model: str
    pieces: tuple[Piece, ...]
    media: tuple[Media, ...]
    seen: tuple[SeenImage, ...]
    text_tokens: int
    room: int
    frame_tokens: int = 0

    @property
    def prompt(self) -> str:
        """The prompt as one text. A special token that a user has typed looks like a real one."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def all_visual_tokens(self) -> int:
        """Visual tokens of all images and frames."""
        return sum(each.visual_tokens or 0 for each in self.seen) + self.frame_tokens


def preview(
    checkpoint: Checkpoint, conversation: Conversation, image_size: int | None = None
) -> Preview:
    """Render a conversation; reads tokenizer and configuration, and no weight.

    Args:
        checkpoint: checkpoint that would be asked.
        conversation: the question.
        image_size: as in `Checkpoint.processor`.

    Raises:
        ConversationError: if the checkpoint cannot take the messages.
        CheckpointError: if its tokenizer is damaged.
    """
    refuse_too_many(conversation, checkpoint.name, checkpoint.max_images)
    if conversation.videos:
        refuse_video(checkpoint.name, checkpoint.takes_video)
    processor = checkpoint.processor(image_size)
    encoded = processor.encode(conversation.as_written())
    return Preview(
        model=checkpoint.name,
        pieces=tuple(_pieces(processor.tokenizer, encoded.published)),
        media=conversation.media,
        seen=encoded.seen,
        text_tokens=len(encoded.ids) - encoded.visual_tokens,
        room=checkpoint.architecture.shape().max_context - encoded.length,
        frame_tokens=sum(each.visual_tokens for each in encoded.images if each.second is not None),
    )


def _pieces(tokenizer: Any, ids: Sequence[int]) -> Iterator[Piece]:
    special = frozenset(tokenizer.get_added_vocab().values())
    for is_special, run in itertools.groupby(ids, special.__contains__):
        if is_special:
            yield from (Piece(tokenizer.convert_ids_to_tokens(each), True) for each in run)
        else:
            yield Piece(tokenizer.decode(list(run)), False)
