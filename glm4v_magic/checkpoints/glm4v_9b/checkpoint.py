"""GLM-4V-9B for the rest of the package: its files checked, its weights loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_magic.checkpoints.files import read_json, read_tensor_infos
from glm4v_magic.checkpoints.generation_file import read_generation_config
from glm4v_magic.checkpoints.glm4v_9b import layout
from glm4v_magic.checkpoints.glm4v_9b.architecture import Glm4v9bArchitecture
from glm4v_magic.checkpoints.pretrained import LoadOptions, load_weights, require_whole_blocks
from glm4v_magic.core.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from glm4v_magic.checkpoints import Loaded
    from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
    from glm4v_magic.checkpoints.glm4v_9b.processing import Glm4v9bProcessor
    from glm4v_magic.core.model import Architecture, LoadProgress
    from glm4v_magic.core.options import Quantization

__all__ = ["Glm4v9bCheckpoint"]

_UNQUANTIZED = ("lm_head", "model.vision")
_IGNORED_TENSOR = "transformer.rotary_pos_emb.inv_freq"


class Glm4v9bCheckpoint:
    """A folder with GLM-4V-9B; its files are checked before any weight is read.

    Args:
        name: name of the checkpoint, as the user typed it.
        folder: folder of its files.
        notice: note shown with every answer.

    Raises:
        CheckpointError: if a file is missing, damaged, or belongs to another model.
    """

    max_images: int | None = layout.MAX_IMAGES
    thinks = False
    tasks: tuple[str, ...] = ()
    takes_video = False
    efforts: tuple[str, ...] = ()

    def __init__(self, name: str, folder: Path, notice: str = "") -> None:
        self.name = name
        self.folder = folder
        self.notice = notice
        self.config = read_json(folder / "config.json")
        self.architecture: Architecture = Glm4v9bArchitecture(
            name, self.config, str(folder / "config.json")
        )
        self._generation = read_generation_config(folder)
        self.tensors = read_tensor_infos(folder)
        self._check_tensors()
        if not (folder / "tokenizer.model").is_file():
            raise CheckpointError(
                f"{folder} holds no tokenizer.model.",
                "It comes with the checkpoint; download it again.",
            )

    def _check_tensors(self) -> None:
        expected = layout.weight_shapes(self.config)
        for name, shape in expected.items():
            found = self.tensors.get(name)
            if found is None:
                missing = sum(name not in self.tensors for name in expected)
                raise CheckpointError(
                    f"{missing} of {len(expected)} weights are missing in {self.folder}, "
                    f"the first is {name}.",
                    "Config and weights do not belong together, or a shard is not in the index.",
                )
            if found.shape != shape:
                raise CheckpointError(
                    f"{name} in {found.file} has shape {list(found.shape)}; config.json asks for "
                    f"{list(shape)}.",
                    "Config and weights do not belong together; download them again.",
                )
        foreign = self.tensors.keys() - expected.keys() - {_IGNORED_TENSOR}
        if foreign:
            raise CheckpointError(
                f"{self.folder} holds {len(foreign)} weights that GLM-4V-9B does not have, "
                f"for example {min(foreign)}.",
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
        from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
        from glm4v_magic.checkpoints.glm4v_9b.inputs import Glm4v9bInputs
        from glm4v_magic.checkpoints.glm4v_9b.modeling import Glm4v9bForConditionalGeneration

        config = Glm4v9bConfig.from_pretrained(self.folder)
        processor = self._processor(config)
        sizes = self.config
        attention = sizes["num_attention_heads"] * sizes["kv_channels"]
        widths = (sizes["hidden_size"], sizes["ffn_hidden_size"], attention)
        require_whole_blocks(self.name, widths, quantize, device_map)
        model = load_weights(
            Glm4v9bForConditionalGeneration,
            config,
            self.folder,
            self.tensors,
            self._bytes_by_module(),
            self._generation.settings,
            LoadOptions(dtype, device_map, quantize, _UNQUANTIZED, arrived, options),
        )
        return Loaded(model, processor, Glm4v9bInputs(model), self._generation.notes)

    def processor(self) -> Glm4v9bProcessor:
        """Build the processor from tokenizer and configuration; reads no weights.

        Raises:
            CheckpointError: if the tokenizer is damaged.
        """
        from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig

        return self._processor(Glm4v9bConfig.from_pretrained(self.folder))

    def _processor(self, config: Glm4v9bConfig) -> Glm4v9bProcessor:
        from glm4v_magic.checkpoints.glm4v_9b.processing import Glm4v9bProcessor, load_tokenizer

        return Glm4v9bProcessor(load_tokenizer(self.folder / "tokenizer.model"), config)

    def _bytes_by_module(self) -> dict[str, int]:
        """Return bytes on disk by the name under which transformers reports a loaded weight."""
        from glm4v_magic.checkpoints.glm4v_9b import weights

        transforms = weights.conversions()
        sizes: dict[str, int] = {}
        for published, info in self.tensors.items():
            name = published
            for transform in transforms:
                name, _ = transform.rename_source_key(name)
            sizes[name] = info.nbytes
        return sizes
