"""Arguments of the forward of transformers' own classes, see `encoding.ModelInputs`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from glm4v_magic.checkpoints.encoding import DecodeStep, Encoded, EncodedImage
from glm4v_magic.checkpoints.glm_native.text_step import text_step

__all__ = ["NativeInputs"]

_IMAGE = 1  # in `mm_token_type_ids`


class NativeInputs:
    """Positions and visual tokens of a loaded model.

    Positions are always given: without them the model uses its `rope_deltas`, which belong to the
    latest prompt, whichever that was.

    Args:
        model: the model.
        is_recurrent: see `encoding.ModelInputs`.
    """

    def __init__(self, model: Any, *, is_recurrent: bool = False) -> None:
        self._model = model
        self.is_recurrent = is_recurrent

    def positions(self, encoded: Encoded) -> Tensor:
        """Return the position of every token in time, height and width: (3, 1, L) int64.

        Models without positions in the text part count their tokens: (1, L).
        """
        if not hasattr(self._model.model, "get_rope_index"):
            return torch.arange(len(encoded.ids))[None]
        ids = torch.tensor([encoded.ids])
        types = torch.zeros_like(ids, dtype=torch.int)
        for image in encoded.images:
            types[0, image.start : image.stop] = _IMAGE
        positions, _ = self._model.model.get_rope_index(
            ids, mm_token_type_ids=types, image_grid_thw=_grids(encoded.images)
        )
        found: Tensor = positions
        return found

    def features(self, images: Sequence[EncodedImage]) -> list[Tensor]:
        """Return visual tokens of each image, (V, H); one at a time, to need the memory of one."""
        return [self._encoded(image) for image in images]

    def _encoded(self, image: EncodedImage) -> Tensor:
        device = self._model.device
        if device.type == "meta":  # the hooks of an offloaded tower move its input
            device = torch.device("cpu")
        grids = _grids([image])
        assert grids is not None
        output = self._model.model.get_image_features(
            image.pixels().to(device), grids.to(device), return_dict=True
        )
        (features,) = output.pooler_output
        found: Tensor = features
        return found

    def arguments(self, features: Sequence[Tensor]) -> dict[str, Any]:
        """Return the visual tokens of all images as the output of the vision tower."""
        output = BaseModelOutputWithPooling(pooler_output=tuple(features))
        return {"mm_encoder_outputs": {"image": output}}

    def decode_step(self) -> DecodeStep | None:
        """Return the step of `text_step`; ``None`` for a split, changed or unusual model."""
        return text_step(self._model)


def _grids(images: Sequence[EncodedImage]) -> Tensor | None:
    return torch.tensor([image.grid for image in images]) if images else None
