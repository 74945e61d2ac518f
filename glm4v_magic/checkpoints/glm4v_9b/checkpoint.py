"""GLM-4V-9B for the rest of the package: its files checked, its weights loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_magic.checkpoints.added_tokens import read_added
from glm4v_magic.checkpoints.contents import Contents
from glm4v_magic.checkpoints.files import require_file, stamp_of
from glm4v_magic.checkpoints.generation_file import read_generation_config
from glm4v_magic.checkpoints.glm4v_9b import layout
from glm4v_magic.checkpoints.glm4v_9b.architecture import Glm4v9bArchitecture, model_config
from glm4v_magic.checkpoints.glm4v_9b.packed import with_own_shapes
from glm4v_magic.checkpoints.pretrained import (
    LoadOptions,
    load_weights,
    require_mergeable,
)
from glm4v_magic.checkpoints.stored import is_told_by
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.images.messages import one_line
from glm4v_magic.planning.precision import require_whole_blocks

if TYPE_CHECKING:
    import torch

    from glm4v_magic.checkpoints import Loaded
    from glm4v_magic.checkpoints.files import Stamp
    from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
    from glm4v_magic.checkpoints.glm4v_9b.processing import Glm4v9bProcessor
    from glm4v_magic.core.model import Architecture, LoadProgress
    from glm4v_magic.core.options import Quantization

__all__ = ["Glm4v9bCheckpoint"]

_UNQUANTIZED = ("lm_head", "model.vision")
_HERE = "glm4v_magic.checkpoints.glm4v_9b"
_MODULES = (
    f"{_HERE}.configuration",
    f"{_HERE}.processing",
    f"{_HERE}.inputs",
    f"{_HERE}.modeling",
    "glm4v_magic.checkpoints.progress",
)
_IGNORED_TENSOR = "transformer.rotary_pos_emb.inv_freq"
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer


class Glm4v9bCheckpoint:
    """A folder with GLM-4V-9B; its files are checked before any weight is read.

    Args:
        name: name of the checkpoint, as the user typed it.
        folder: folder of its files.
        contents: what is in it.
        notice: note shown with every answer.

    Raises:
        CheckpointError: if a file is missing, damaged, or belongs to another model.
    """

    max_images: int | None = layout.MAX_IMAGES
    thinks = False
    tasks: tuple[str, ...] = ()
    takes_video = False
    efforts: tuple[str, ...] = ()

    def __init__(self, name: str, folder: Path, contents: Contents, notice: str = "") -> None:
        self.name = name
        self.folder = folder
        self.notice = notice
        self.config = contents.config
        self._adapter, self._merges = contents.adapter, contents.merges
        known = Glm4v9bArchitecture.of(name, contents, str(folder / "config.json"))
        self.architecture: Architecture = known
        self._packed = known.packed
        self._generation = read_generation_config(folder)
        self.tensors = contents.tensors
        self._check_tensors()
        require_file(folder / "tokenizer.model")
        self._notes = (*contents.notes, *self._generation.notes)
        self._processor: Glm4v9bProcessor | None = None

    def _check_tensors(self) -> None:
        expected = layout.weight_shapes(self.config)
        packed = {} if self._packed is None else self._packed.published
        for name, shape in expected.items():
            found = self.tensors.get(name)
            if found is None:
                missing = sum(name not in self.tensors for name in expected)
                raise CheckpointError(
                    f"{missing} of {len(expected)} weights are missing in {self.folder}, "
                    f"the first is {name}.",
                    "Config and weights do not belong together, or a shard is not in the index.",
                )
            matrix = packed.get(name)
            if matrix is not None:
                is_right = matrix.values == math.prod(shape)
            else:
                is_right = found.shape == shape
            if not is_right:
                raise CheckpointError(
                    f"{name} in {found.file} has shape {list(found.shape)}; config.json asks for "
                    f"{list(shape)}.",
                    "Config and weights do not belong together; download them again.",
                )
        told = {name for name in self.tensors if is_told_by(name, packed)}
        foreign = self.tensors.keys() - expected.keys() - {_IGNORED_TENSOR} - told
        if foreign:
            raise CheckpointError(
                f"{self.folder} holds {len(foreign)} weights that GLM-4V-9B does not have, "
                f"for example {one_line(min(foreign))}.",
                "Config and weights do not belong together.",
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
        **options: Any,
    ) -> Loaded:
        """Load each weight from its shard directly to its device.

        Args:
            dtype: dtype of text part and vision tower.
            device_map: module -> GPU index or ``cpu``; ``None`` is the CPU.
            quantize: quantisation of the text part's linear layers, except the head; needs
                bitsandbytes.
            arrived: called after each weight that has arrived; transformers loads in a loop of its
                own.
            options: further options of `from_pretrained`.

        Raises:
            CheckpointError: if transformers cannot read a weight.
            OptionError: if the layers cannot be quantised.
        """
        from glm4v_magic.checkpoints import Loaded
        from glm4v_magic.checkpoints.glm4v_9b.inputs import Glm4v9bInputs
        from glm4v_magic.checkpoints.glm4v_9b.modeling import Glm4v9bForConditionalGeneration

        config = self._model_config()
        processor = self._processor or self._made(config)
        places = {"": "cpu"} if device_map is None else device_map
        require_whole_blocks(self.architecture.shape(), quantize, places.values())
        tensors, packed = self.tensors, self._packed
        if packed is not None:
            tensors = packed.tensors
            config.quantization_config = dict(packed.stored.config)
        model, files = load_weights(
            Glm4v9bForConditionalGeneration,
            config,
            self.folder,
            tensors,
            self._bytes_by_module(),
            self._generation.settings,
            LoadOptions(
                dtype,
                device_map,
                quantize,
                _UNQUANTIZED,
                arrived,
                options,
                merges=self._merges,
                casts={} if packed is None else dict.fromkeys(packed.stored.full(tensors), dtype),
            ),
        )
        if packed is not None:
            with_own_shapes(model)
        return Loaded(model, processor, Glm4v9bInputs(model), self._notes, files)

    def processor(self, image_size: int | None = None) -> Glm4v9bProcessor:
        """Build the processor from tokenizer and configuration; reads no weights.

        Args:
            image_size: ignored; all images are resized to one size, and `planning` refuses another.

        Raises:
            CheckpointError: if the tokenizer is damaged.
        """
        return self._processor or self._made(self._model_config())

    @property
    def stamp(self) -> Stamp:
        """What tells that the files are still the same."""
        adapter = self._adapter
        return stamp_of(self.folder, *(() if adapter is None else (adapter.folder,)))

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that `load` imports."""
        return _MODULES

    def require_usable(self) -> None:
        """Raise CheckpointError unless all but the weights can be read."""
        require_mergeable(self._merges, self.tensors)
        self.processor()
        if self._packed is not None:
            self._packed.stored.require()

    def _made(self, config: Glm4v9bConfig) -> Glm4v9bProcessor:
        from glm4v_magic.checkpoints.glm4v_9b.processing import Glm4v9bProcessor, load_tokenizer

        file = self._file_of_tokenizer("tokenizer.model")
        own = self._file_of_tokenizer("tokenizer_config.json").parent
        adapter = None if own == self.folder else own
        size = self.config["padded_vocab_size"]
        tokenizer = load_tokenizer(file, read_added(own), size, adapter)
        made = Glm4v9bProcessor(tokenizer, config)
        ids = {"boi_token_id": "<|begin_of_image|>", "eoi_token_id": "<|end_of_image|>"}
        for name, token in ids.items():
            found = made.token_id(token)
            if found != self.config[name]:
                raise CheckpointError(
                    f"{file} gives {token} the id {found}, but config.json has "
                    f"{self.config[name]} for {name}.",
                    "The tokenizer is of another model; download it again.",
                )
        self._processor = made
        return made

    def _file_of_tokenizer(self, name: str) -> Path:
        """Return a file of the adapter's, if it has one, or the checkpoint's tokenizer."""
        own = None if self._adapter is None else self._adapter.folder / name
        return own if own is not None and own.is_file() else self.folder / name

    def _model_config(self) -> Glm4v9bConfig:
        return model_config(self.config, self.name)

    def _bytes_by_module(self) -> dict[str, int]:
        """Return bytes on disk by the name under which transformers reports a loaded weight."""
        from glm4v_magic.checkpoints.glm4v_9b import weights

        if self._packed is not None:
            return {name: info.nbytes for name, info in self._packed.tensors.items()}
        transforms = weights.conversions()

        @cache
        def renamed(name: str) -> str:
            for transform in transforms:
                name, _ = transform.rename_source_key(name)
            return name

        sizes: dict[str, int] = {}
        for published, info in self.tensors.items():
            # Layers are renamed alike, and renaming is slow.
            number = _NUMBER.search(published)
            name = renamed(_NUMBER.sub("0", published, count=1))
            name = name if number is None else _NUMBER.sub(number[0], name, count=1)
            sizes[name] = info.nbytes
        return sizes
