"""The prompt of a row as the decode loop reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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
        forks: lengths of prefixes after which other prompts are likely to go on in another way.
    """

    ids: Tensor
    places: Tensor
    keys: Keys
    images: tuple[PromptImage, ...] = ()
    forks: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def extended(self, ids: Sequence[int]) -> Prompt:
        """Return the prompt with tokens after it."""
        if not ids:
            return self
        after = torch.tensor([ids], device=self.ids.device)
        steps = torch.arange(1, len(ids) + 1, device=self.places.device)
        return Prompt(
            torch.cat((self.ids, after), dim=1),
            torch.cat((self.places, self.places[..., -1:] + steps), dim=-1),
            (*self.keys, *ids),
            self.images,
            self.forks,
        )

    def whole_images(self, length: int) -> int:
        """Return the length of a prefix shortened so that it does not end inside an image."""
        spans = ((image.encoded.start, image.encoded.stop) for image in self.images)
        return next((start for start, stop in spans if start < length < stop), length)

    def images_in(self, start: int, end: int) -> list[PromptImage]:
        """Return the images in the tokens from `start` to `end`, neither inside an image."""
        return [image for image in self.images if start <= image.encoded.start < end]
