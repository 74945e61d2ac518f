"""Which model, what is known of it, and how far its load is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from glm4v_magic.core.model_shape import ModelShape
from glm4v_magic.core.options import Quantization
from glm4v_magic.core.placement import GivenMap, Place, PlacementOptions
from glm4v_magic.core.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["DEMO", "Architecture", "EngineInfo", "LoadProgress", "ModelChoice"]


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model, and how it is loaded.

    Attributes:
        model: folder, repository id on the hub, ``demo``, or the address of a server; ``None`` is
            ``demo``.
        revision: of a repository.
        options: how it is placed.
        device_map: a map or a plan to follow; ``None`` makes a plan, or takes the CPU.
        served_model: which model of a server; ``None`` for its only one.
        timeout: longest silence of a server in seconds; ``None`` for five minutes.
    """

    model: str | None = None
    revision: str | None = None
    options: PlacementOptions = field(default_factory=PlacementOptions)
    device_map: GivenMap | None = None
    served_model: str | None = None
    timeout: float | None = None

    @property
    def name(self) -> str:
        """The model's name as the user would type it."""
        return self.model or DEMO


DEMO = "demo"
"""Name of the embedded checkpoint."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load is.

    Attributes:
        done_bytes: weights that have arrived.
        total_bytes: all of them.
        weight: name of the latest one; empty before the first.
        device: where it went, such as ``cuda:1``; empty where that is not decided by a map.
    """

    done_bytes: int
    total_bytes: int
    weight: str
    device: str = ""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is worth knowing about the model behind an engine.

    Attributes:
        model: name of the checkpoint, as the user would type it.
        notice: what a reader of every answer must know; empty for most models.
        max_images: images that one conversation may hold; ``None`` for no limit.
        image_size: width and height in pixels that an image is resized to; ``None`` where it
            depends on the image.
        visual_tokens: vectors that one image becomes; ``None`` where it depends on the image.
        context: longest prompt plus answer, in positions; ``None`` if a server does not tell.
        parameters: number of weights; ``None`` for those of a server.
        dtype: of the weights, for example ``bfloat16``; empty for those of a server.
        devices: where the weights are, for example ``("cuda:0", "cuda:1")``; none for a server.
        quantize: of the text part's linear layers, if they are quantised.
        device_map: module -> GPU index or ``cpu``; ``None`` if all is in one place.
        plan: that the map is from, if it is from one.
        server: address of the server that holds the model; ``None`` if it is in this process.
        thinks: whether it can think before it answers; ``None`` if a server does not tell.
        notes: what was left out as the model was loaded, a sentence each: settings of its files
            that decoding here does not follow.
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
    notes: tuple[str, ...] = ()


class Architecture(Protocol):
    """A model without its weights.

    Attributes:
        name: what the user calls it.
        config: the parsed ``config.json``.
        max_images: most images of one row; ``None`` where any number goes.
    """

    name: str
    config: dict[str, Any]
    max_images: int | None

    def shape(self) -> ModelShape:
        """Describe the model in numbers; imports no torch."""

    def build_meta(self, dtype: str) -> PreTrainedModel:
        """Build the model on the ``meta`` device: real modules, no data.

        Args:
            dtype: of weights and activations, such as ``bfloat16``.
        """

    def prompt_inputs(self, images: int, text_tokens: int, batch: int = 1) -> dict[str, Tensor]:
        """Make the inputs of a prompt, as the checkpoint's processor would, on the CPU.

        The ids mean nothing, the images are black. In a batch the first row is one token
        shorter and padded on the left, because rows of one length are the exception.

        Args:
            images: images of each row.
            text_tokens: ids of each row that do not stand for an image; at least 1.
            batch: rows.

        Raises:
            OptionError: if the model does not take so many images, or there is no text.
        """
