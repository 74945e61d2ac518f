"""The model to load, facts about a loaded one, and the progress of loading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from glm4v_magic.core.model_shape import MadeOf, ModelShape, ModuleTree
from glm4v_magic.core.options import Quantization
from glm4v_magic.core.placement import GivenMap, Place, PlacementOptions
from glm4v_magic.core.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = [
    "DEMO",
    "DEMOS",
    "NATIVE_DEMO",
    "Architecture",
    "EngineInfo",
    "LoadProgress",
    "ModelChoice",
    "Replica",
    "Sized",
]


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model and how to load it.

    Attributes:
        model: folder, repository id on the hub, ``demo``, or address of a server; ``None`` means
            ``demo``.
        revision: commit, branch or tag of the repository.
        options: placement options.
        device_map: device map or plan to follow; ``None`` makes a plan, or uses the CPU.
        served_model: name of a server's model; ``None`` for its only one.
        timeout: longest silence of a server in seconds; ``None`` for five minutes.
        keep: GiB for the prefix cache (prompts and images already read); ``None`` for what the plan
            allows.
        base: model that an adapter was trained on; ``None`` for what the adapter says itself.
        lora: folder of an adapter to merge into the model; ``None`` without one.
        replicas: number of copies in processes of their own, or ``max``; ``None`` for one in this
            process.
        cluster: address of the Ray cluster that they are on; ``None`` for this machine.
    """

    model: str | None = None
    revision: str | None = None
    options: PlacementOptions = field(default_factory=PlacementOptions)
    device_map: GivenMap | None = None
    served_model: str | None = None
    timeout: float | None = None
    keep: float | None = None
    base: str | None = None
    lora: str | None = None
    replicas: int | str | None = None
    cluster: str | None = None

    @property
    def name(self) -> str:
        """The model's name as the user would type it."""
        return self.model or DEMO

    @property
    def made_of(self) -> dict[str, Any]:
        """What finds the model beside its name, as `checkpoints.resolve` takes it."""
        return {"revision": self.revision, "base": self.base, "lora": self.lora}


DEMO = "demo"
"""Name of the embedded checkpoint in the layout of GLM-4V-9B."""

NATIVE_DEMO = "demo-4.6v"
"""Name of the one in the layout of GLM-4.6V: several images, boxes, video, thinking."""

DEMOS = (DEMO, NATIVE_DEMO)
"""Embedded checkpoints; each is in a folder of its name."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Progress of loading a model.

    Attributes:
        done_bytes: bytes of weights loaded so far.
        total_bytes: bytes of all weights.
        weight: name of the latest weight; empty before the first.
        device: device of that weight, such as ``cuda:1``; empty if no device map decides it.
        released: model that was released to make room; empty if none was.
    """

    done_bytes: int
    total_bytes: int
    weight: str
    device: str = ""
    released: str = ""


@dataclass(frozen=True, slots=True)
class Replica:
    """A copy of a model in a process of its own.

    Attributes:
        number: its number, from 0.
        machine: address of its machine.
        devices: devices of its weights there.
        process: id of its process there.
        used_bytes: memory that it held when it last answered: on its GPUs, or of its process if it
            runs on the CPU; ``None`` before its first answer.
        lost: whether it has ended by itself.
    """

    number: int
    machine: str
    devices: tuple[str, ...] = ()
    process: int = 0
    used_bytes: int | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts about the model behind an engine.

    Attributes:
        model: name of the checkpoint, as the user would type it.
        notice: what a reader of every answer must know; empty for most models.
        max_images: maximum number of images in a conversation; ``None`` for no limit.
        image_size: width and height in pixels that images are resized to; ``None`` if it depends
            on the image.
        visual_tokens: tokens of one image; ``None`` if it depends on the image.
        context: context length in tokens (prompt and answer); ``None`` if a server does not tell.
        parameters: number of weights; ``None`` for a server.
        dtype: dtype of the weights, such as ``bfloat16``; empty for a server.
        devices: devices of the weights, such as ``("cuda:0", "cuda:1")``; empty for a server.
        quantize: quantisation of the text part's linear layers, if any.
        device_map: module -> GPU index or ``cpu``; ``None`` if all weights are on one device.
        plan: plan that the device map comes from, if any.
        server: address of the server that runs the model; ``None`` if it runs in this process.
        thinks: whether the model can think before it answers; ``None`` if a server does not tell.
        takes_video: whether it takes video; ``None`` if a server does not tell.
        efforts: levels of reasoning effort that it offers; empty where there is no choice.
        tasks: tasks that it has published prompts for; ``None`` if a server does not tell.
        largest_image: side in pixels of the largest square image that is seen, where images keep
            their sizes; ``None`` if they do not, or a server does not tell.
        tells_images: whether ``None`` above means what is said there; ``False`` for a server that
            does not tell what it sees of images.
        least_image: fewest tokens that an image takes; 1 if that is not known.
        notes: how the model differs from its files, a sentence each: another dtype, or settings
            that decoding here does not follow.
        replicas: copies of the model that share the requests; empty if it is in this process. Then
            `devices` and `plan` are those of the first.
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
    takes_video: bool | None = None
    efforts: tuple[str, ...] = ()
    tasks: tuple[str, ...] | None = None
    largest_image: int | None = None
    tells_images: bool = True
    least_image: int = 1
    notes: tuple[str, ...] = ()
    replicas: tuple[Replica, ...] = ()


class Sized(Protocol):
    """A model as far as a plan needs to know it, such as an `Architecture`."""

    @property
    def name(self) -> str:
        """Name of the checkpoint, as the user would type it."""

    @property
    def max_images(self) -> int | None:
        """Maximum number of images in a row; ``None`` for no limit."""

    def shape(self) -> ModelShape:
        """Return the model's sizes; imports no torch."""


class Architecture(Protocol):
    """A model without its weights.

    Attributes:
        name: name of the checkpoint, as the user would type it.
        config: the parsed ``config.json``.
        max_images: maximum number of images in a row; ``None`` for no limit.
        thinks: whether the model can think before it answers.
        unseen_revision: revision that was asked for, but is not here; see `ModelShape`.
        made_of: what was given beside its name to find it.
    """

    name: str
    config: dict[str, Any]
    max_images: int | None
    thinks: bool
    unseen_revision: str
    made_of: MadeOf

    def shape(self) -> ModelShape:
        """Return the model's sizes; imports no torch."""

    def module_tree(self, *, fp8: bool = False) -> ModuleTree:
        """Return the names of the model's modules and weights; imports torch.

        Args:
            fp8: whether weights that were published in FP8 stay so. Their scales need no entry in a
                device map, as what is computed needs none.
        """

    def own_names(self, name: str, tree: ModuleTree) -> tuple[str, ...] | None:
        """Return the modules or weights of the model that a published name stands for.

        Args:
            name: name of a weight in the published files, or the beginning of some, as in
                ``transformer.vision``.
            tree: result of `module_tree`.

        Returns:
            Names in `tree`; none for a weight that the model does without; ``None`` if `name` is no
            published one.
        """

    def build_meta(self, dtype: str, *, fp8: bool = False) -> PreTrainedModel:
        """Build the model on the ``meta`` device: real modules, no data.

        Args:
            dtype: dtype of weights and activations, such as ``bfloat16``.
            fp8: whether weights that were published in FP8 stay so.
        """

    def require_kernels(self) -> None:
        """Raise OptionError unless what computes with weights in FP8 is installed."""

    def prompt_inputs(
        self, images: int, text_tokens: int, batch: int = 1, patches: int | None = None
    ) -> dict[str, Tensor]:
        """Make model inputs on the CPU, shaped as the checkpoint's processor would make them.

        The token ids are arbitrary and the images black. In a batch the first row is one token
        shorter and left-padded, because rows rarely have equal lengths.

        Args:
            images: number of images in each row.
            text_tokens: text tokens of each row, at least 1.
            batch: number of rows.
            patches: patches of each image, where images differ; ``None`` for the largest.

        Raises:
            OptionError: if the model does not take that many images, or there is no text.
        """
