"""The newer GLM vision models for the rest of the package: files checked, weights loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_magic.checkpoints.contents import Contents
from glm4v_magic.checkpoints.files import TensorInfo, require_file, stamp_of
from glm4v_magic.checkpoints.generation_file import read_generation_config
from glm4v_magic.checkpoints.glm_native.architecture import NativeArchitecture
from glm4v_magic.checkpoints.glm_native.families import family_of
from glm4v_magic.checkpoints.glm_native.fp8 import SCALE, Fp8
from glm4v_magic.checkpoints.glm_native.hybrid import FLOAT32_MODULES
from glm4v_magic.checkpoints.glm_native.processor_files import require_image_settings
from glm4v_magic.checkpoints.glm_native.weight_names import require_weights
from glm4v_magic.checkpoints.pretrained import (
    LoadOptions,
    load_weights,
    require_mergeable,
)
from glm4v_magic.checkpoints.reading import FP8, Restored
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.wording import readable_count
from glm4v_magic.images.messages import one_line
from glm4v_magic.planning.precision import require_whole_blocks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from glm4v_magic.checkpoints import Loaded
    from glm4v_magic.checkpoints.files import Stamp
    from glm4v_magic.checkpoints.glm_native.processing import NativeProcessor
    from glm4v_magic.core.model import Architecture, LoadProgress
    from glm4v_magic.core.options import Quantization

__all__ = ["NativeCheckpoint"]

_UNQUANTIZED = ("lm_head", "model.visual")
_FREQUENCIES = ".inv_freq"  # in some files; each model computes them itself
_BUFFERS = (_FREQUENCIES, ".e_score_correction_bias")  # in files, but no weights
_HERE = "glm4v_magic.checkpoints.glm_native"
_MODULES = (
    f"{_HERE}.processing",
    f"{_HERE}.inputs",
    "transformers.conversion_mapping",
    "transformers.models.auto.modeling_auto",
    "glm4v_magic.checkpoints.progress",
)
_TOKENIZER = "tokenizer.json"


class NativeCheckpoint:
    """A folder with one of these models; its files are checked before any weight is read.

    Args:
        name: name of the checkpoint, as the user typed it.
        folder: folder of its files.
        contents: what is in it.
        notice: note shown with every answer.

    Raises:
        CheckpointError: if a file is missing, damaged, or belongs to another model.
    """

    max_images: int | None = None

    def __init__(self, name: str, folder: Path, contents: Contents, notice: str = "") -> None:
        self.name = name
        self.folder = folder
        self.notice = notice
        config = contents.config
        self._adapter, self._merges = contents.adapter, contents.merges
        self._family = family_of(config)
        self.thinks, self.tasks = self._family.thinks, self._family.tasks
        self.takes_video = self._family.takes_video
        self.efforts = self._family.efforts
        where = str(folder / "config.json")
        ignored = [re.compile(pattern) for pattern in self._family.ignored]
        self.tensors = {
            weight: info
            for weight, info in contents.tensors.items()
            if not any(pattern.search(weight) for pattern in ignored)
        }
        self.config = config
        self._architecture = NativeArchitecture.of(name, contents, where)
        self._stored = self._architecture.stored
        self.architecture: Architecture = self._architecture
        self._fp8 = self._architecture.fp8
        self._check_tensors()
        require_file(folder / _TOKENIZER)
        require_image_settings(folder)
        self._generation = read_generation_config(folder)
        self._notes = (*contents.notes, *self._generation.notes)

    def _check_tensors(self) -> None:
        """Raise CheckpointError unless the files hold as many values as the model."""
        for weight, info in self.tensors.items():
            if info.dtype == FP8 and self._fp8 is not None:
                self._check_scales(weight, info, self._fp8)
        counted = {
            weight: info
            for weight, info in self.tensors.items()
            if not weight.endswith((*_BUFFERS, SCALE))
        }
        if self._stored is None:
            found: int | None = sum(math.prod(info.shape) for info in counted.values())
        else:
            found = self._stored.count(counted)
        expected = self.architecture.shape().values
        if self._architecture.ties_embeddings and "lm_head.weight" not in self.tensors:
            text = self._architecture.text
            expected -= text["vocab_size"] * text["hidden_size"]
        if found is not None and found != expected:
            raise CheckpointError(
                f"{self.folder} holds {readable_count(found)} weights ({found:,}), but its "
                f"config.json describes {readable_count(expected)} ({expected:,}).",
                "Config and weights do not belong together, or a shard is not in the index.",
            )

    def _check_scales(self, weight: str, info: TensorInfo, fp8: Fp8) -> None:
        scales = self.tensors.get(weight + SCALE)
        grid = tuple(-(-n // size) for n, size in zip(info.shape[-2:], fp8.block, strict=False))
        if scales is None or (*info.shape[:-2], *grid) != scales.shape:
            there = "none" if scales is None else f"those of shape {list(scales.shape)}"
            raise CheckpointError(
                f"{one_line(weight)} in {info.file} needs scales of shape {list(grid)} for blocks "
                f"of {fp8.block[0]} x {fp8.block[1]}, but there are {there}.",
                "The file is of another kind, or damaged; download it again.",
            )

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights on disk."""
        return sum(info.nbytes for info in self.tensors.values())

    def load(
        self,
        *,
        dtype: torch.dtype,
        device_map: Mapping[str, int | str] | None = None,
        quantize: Quantization | None = None,
        arrived: Callable[[LoadProgress], None] | None = None,
        fp8: bool = False,
        image_size: int | None = None,
        **options: Any,
    ) -> Loaded:
        """Load each weight from its shard directly to its device.

        Args:
            dtype: dtype of text part and vision tower.
            device_map: module -> GPU index or ``cpu``; ``None`` is the CPU.
            quantize: quantisation of the text part's linear layers, except head and experts; needs
                bitsandbytes.
            arrived: called after each weight that has arrived; transformers loads in its own loop.
            fp8: whether weights in FP8 stay so, computed by transformers' own code.
            image_size: as in `processor`.
            options: further options of `from_pretrained`.

        Raises:
            CheckpointError: if transformers cannot read a weight, or some are missing.
            OptionError: if the layers cannot be quantised.
        """
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

        from glm4v_magic.checkpoints import Loaded
        from glm4v_magic.checkpoints.glm_native.inputs import NativeInputs

        places = {"": "cpu"} if device_map is None else device_map
        require_whole_blocks(self._architecture.shape(), quantize, places.values())
        processor = self.processor(image_size)
        config = self._architecture.model_config()
        restored = None
        if self._fp8 is not None and fp8:
            config.quantization_config = self._fp8.for_transformers()
        elif self._stored is not None:
            config.quantization_config = self._stored.for_devices(device_map)
        elif self._fp8 is not None:
            restored = Restored(self._fp8.block, SCALE, dtype)
        model, files = load_weights(
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)],
            config,
            self.folder,
            self.tensors,
            self._bytes_by_parameter(),
            self._generation.settings,
            LoadOptions(
                dtype,
                device_map,
                quantize,
                _UNQUANTIZED,
                arrived,
                options,
                restored,
                self._merges,
                self._casts(dtype),
            ),
        )
        if self._family.is_recurrent:
            # Frames come as images, with the same features: no token is one of a video then.
            model.config.video_start_token_id = -1
        inputs = NativeInputs(model, is_recurrent=self._family.is_recurrent)
        return Loaded(model, processor, inputs, self._notes, files)

    def processor(self, image_size: int | None = None) -> NativeProcessor:
        """Build the processor from tokenizer and configuration; see `Checkpoint.processor`.

        Raises:
            CheckpointError: if a file of it is missing or damaged.
        """
        if image_size not in self._made:
            self._made[image_size] = self._make(image_size)
        return self._made[image_size]

    @property
    def stamp(self) -> Stamp:
        """What tells that the files are still the same."""
        adapter = self._adapter
        return stamp_of(self.folder, *(() if adapter is None else (adapter.folder,)))

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that `load` imports."""
        return (*_MODULES, self._family.images[0])

    def require_usable(self) -> None:
        """Raise CheckpointError unless all but the weights can be read."""
        require_mergeable(self._merges, self.tensors)
        self.processor()
        self._require_weights(self._architecture.build_meta(self._architecture.shape().dtype))
        if self._stored is not None:
            self._stored.require()

    def _require_weights(self, model: PreTrainedModel) -> None:
        """Raise CheckpointError unless names and shapes in the files are those of the model."""
        packed: set[str] = set()
        if self._stored is not None:
            packed = {each.module for each in self._stored.packed} | self._stored.restored.keys()
        published = {
            name: info
            for name, info in self.tensors.items()
            if not name.endswith((SCALE, _FREQUENCIES))
        }
        tied = {"lm_head.weight"} if self._architecture.ties_embeddings else set()
        require_weights(
            self.folder, published, model, packed=frozenset(packed), optional=frozenset(tied)
        )

    @cached_property
    def _made(self) -> dict[int | None, NativeProcessor]:
        return {}

    def _make(self, image_size: int | None) -> NativeProcessor:
        from glm4v_magic.checkpoints.glm_native.processing import NativeProcessor

        own = None if self._adapter is None else self._adapter.folder
        if own is not None and not (own / _TOKENIZER).is_file():
            own = None
        return NativeProcessor(self.name, self.folder, self.config, self._family, own, image_size)

    def _casts(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """Return the dtypes of the full weights beside those that were published quantised."""
        if self._stored is None:
            return {}
        import torch
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        transforms = get_checkpoint_conversion_mapping(self.config["model_type"]) or ()
        stay = FLOAT32_MODULES if self._family.is_recurrent else ()
        found = {}
        for name in self._stored.full(self.tensors):
            if not name.endswith(_BUFFERS):
                own = _renamed(name, transforms) if stay else name
                found[name] = torch.float32 if any(each in own for each in stay) else dtype
        return found

    def _bytes_by_parameter(self) -> dict[str, int]:
        """Return bytes on disk by parameter; the experts of a layer are parts of one."""
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        transforms = get_checkpoint_conversion_mapping(self.config["model_type"]) or ()
        sizes: dict[str, int] = {}
        for stored, info in self.tensors.items():
            name = _renamed(stored.removesuffix(SCALE), transforms)
            sizes[name] = sizes.get(name, 0) + info.nbytes
        return sizes


def _renamed(name: str, transforms: Any) -> str:
    for transform in transforms:
        name, _ = transform.rename_source_key(name)
    return name
