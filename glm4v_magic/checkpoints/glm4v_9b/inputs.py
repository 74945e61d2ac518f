"""Arguments of GLM-4V-9B's forward, see `encoding.ModelInputs`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glm4v_magic.checkpoints.encoding import DecodeStep, Encoded, EncodedImage
from glm4v_magic.checkpoints.glm4v_9b.text_step import text_step

if TYPE_CHECKING:
    from glm4v_magic.checkpoints.glm4v_9b.modeling import Glm4v9bForConditionalGeneration

__all__ = ["Glm4v9bInputs"]


class Glm4v9bInputs:
    """Positions and visual tokens of a loaded model."""

    is_recurrent = False

    def __init__(self, model: Glm4v9bForConditionalGeneration) -> None:
        self._model = model

    def positions(self, encoded: Encoded) -> Tensor:
        """Return the position of every token, (1, L) int64; all patches of an image share one."""
        ids = torch.tensor([encoded.ids])
        return self._model.position_ids(ids, torch.ones_like(ids))

    def features(self, images: Sequence[EncodedImage]) -> list[Tensor]:
        """Encode all images in one call: visual tokens of each, (V, H)."""
        pixels = torch.stack([image.pixels() for image in images])
        device = self._model.device
        encoded = self._model.get_image_features(
            pixels if device.type == "meta" else pixels.to(device)
        )
        # A slice of a batch would keep all of it alive.
        return [each.clone() for each in encoded] if len(images) > 1 else [encoded[0]]

    def arguments(self, features: Sequence[Tensor]) -> dict[str, Any]:
        """Return the visual tokens of all images, (images, V, H)."""
        return {"image_features": torch.stack(list(features))}

    def decode_step(self) -> DecodeStep | None:
        """Return the step of `text_step`; ``None`` for a model that is split or changed."""
        return text_step(self._model)
