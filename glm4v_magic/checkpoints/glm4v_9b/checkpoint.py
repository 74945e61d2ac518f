"""GLM-4V-9B as the rest of the package sees it: checked, described, loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_magic.checkpoints.files import read_json, read_tensor_infos
from glm4v_magic.checkpoints.glm4v_9b import layout
from glm4v_magic.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from glm4v_magic.checkpoints import Loaded, LoadProgress

__all__ = ["Glm4v9bCheckpoint"]

_IGNORED_TENSOR = "transformer.rotary_pos_emb.inv_freq"


class Glm4v9bCheckpoint:
    """A folder with GLM-4V-9B, found complete before any weight is read.

    Args:
        name: what the user calls it.
        folder: where its files are.
        notice: what every answer must say about it.

    Raises:
        CheckpointError: if a file is missing, damaged, or not of this model.
    """

    def __init__(self, name: str, folder: Path, notice: str = "") -> None:
        self.name = name
        self.folder = folder
        self.notice = notice
        self.config = read_json(folder / "config.json")
        layout.validate_config(self.config, str(folder / "config.json"))
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
        device_map: dict[str, Any] | str | None = None,
        on_progress: Callable[[LoadProgress], None] | None = None,
        **options: Any,
    ) -> Loaded:
        """Load the weights.

        Args:
            dtype: one dtype for text part and tower.
            device_map: as in `from_pretrained`; ``None`` is the CPU.
            on_progress: called as weights arrive.
            options: further options of `from_pretrained`, such as ``quantization_config``.

        Raises:
            CheckpointError: if transformers cannot read a weight after all.
        """
        from glm4v_magic.checkpoints import Loaded
        from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
        from glm4v_magic.checkpoints.glm4v_9b.modeling import Glm4v9bForConditionalGeneration
        from glm4v_magic.checkpoints.glm4v_9b.processing import Glm4v9bProcessor, load_tokenizer
        from glm4v_magic.checkpoints.progress import report_progress

        config = Glm4v9bConfig.from_pretrained(self.folder)
        tokenizer = load_tokenizer(self.folder / "tokenizer.model")
        with report_progress(self._bytes_by_module(), on_progress):
            model, info = Glm4v9bForConditionalGeneration.from_pretrained(
                self.folder,
                config=config,
                dtype=dtype,
                device_map=device_map,
                output_loading_info=True,
                **options,
            )
        faults = {kind: names for kind, names in info.items() if names}
        if faults:
            raise CheckpointError(f"{self.folder} could not be loaded completely: {faults}.")
        return Loaded(model=model.eval(), processor=Glm4v9bProcessor(tokenizer, config))

    def _bytes_by_module(self) -> dict[str, int]:
        """Bytes on disk by the name under which transformers reports a loaded weight."""
        from glm4v_magic.checkpoints.glm4v_9b import weights

        transforms = weights.conversions()
        sizes: dict[str, int] = {}
        for published, info in self.tensors.items():
            name = published
            for transform in transforms:
                name, _ = transform.rename_source_key(name)
            sizes[name] = info.nbytes
        return sizes
