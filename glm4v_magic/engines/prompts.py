"""The prompt of a row as the decode loop reads it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from glm4v_magic.checkpoints.encoding import EncodedImage
from glm4v_magic.engines.prefixes import Keys

__all__ = ["Prompt", "PromptImage"]


@dataclass(frozen=True, slots=True)
class PromptImage:
    """An image of a prompt, and its digest."""

    digest: str
    encoded: EncodedImage


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompt of one row.

    Attributes:
        ids: token ids with all ids of its images, (1, L).
        places: position of each token, (1, L) or (axes, 1, L).
        keys: key of each token for comparison with other prompts; see `prefixes`.
        images: its images, in order.
    """

    ids: Tensor
    places: Tensor
    keys: Keys
    images: tuple[PromptImage, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def whole_images(self, length: int) -> int:
        """Return the length of a prefix shortened so that it does not end inside an image."""
        spans = ((image.encoded.start, image.encoded.stop) for image in self.images)
        return next((start for start, stop in spans if start < length < stop), length)

    def images_in(self, start: int, end: int) -> list[PromptImage]:
        """Return the images in the tokens from `start` to `end`, neither inside an image."""
        return [image for image in self.images if start <= image.encoded.start < end]
