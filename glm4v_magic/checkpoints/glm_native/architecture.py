"""Newer GLM vision models through transformers' own classes, for plans and dry runs.

Shapes: P patches of an image, n = P / merge^2 visual tokens, H width of the text part. An image is
``start, n x image, end`` in the ids, each id with its own KV cache entry. These models keep the
proportions of images; plans and dry runs use the largest image that the model will see, see
`planning.seen`. The context length counts visual tokens.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_magic.checkpoints.contents import Contents
from glm4v_magic.checkpoints.files import TensorInfo
from glm4v_magic.checkpoints.glm_native.config_file import has_experts, read_config
from glm4v_magic.checkpoints.glm_native.families import family_of
from glm4v_magic.checkpoints.glm_native.fp8 import SCALE, Fp8, read_fp8
from glm4v_magic.checkpoints.glm_native.hybrid import (
    FLOAT32_MODULES,
    can_compute_in_fp8,
    hybrid_units,
)
from glm4v_magic.checkpoints.glm_native.image_limits import image_limits
from glm4v_magic.checkpoints.glm_native.text import text_units
from glm4v_magic.checkpoints.glm_native.tower import (
    VISION,
    grid_of,
    patch_values,
    vision_units,
)
from glm4v_magic.checkpoints.packages import require_kernels
from glm4v_magic.checkpoints.quantized import refused, require_full, without_quantization
from glm4v_magic.checkpoints.reading import FP8
from glm4v_magic.checkpoints.stored import Stored, read_stored
from glm4v_magic.checkpoints.trained_names import plain_name
from glm4v_magic.core.errors import CheckpointError, OptionError
from glm4v_magic.core.model_shape import MadeOf, ModelShape, ModuleTree

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["NativeArchitecture"]

_OCR, _HYBRID = "glm_ocr", "glm5_next"
_FULL = ("lm_head", f"{VISION}.blocks.0.attn.qkv", f"{VISION}.merger.proj")
_EXPERT = re.compile(r"(\.experts)\.[0-9]+$")
_OLDER = {
    "": "",
    "visual": "model.visual",
    "language_model.model": "model.language_model",
    "language_model.lm_head": "lm_head",
    "language_model": "model.language_model",
    "model": "model.language_model",
}
"""Beginning of a published name -> that of the name here."""
_OF_LAYERS = {
    "self_attn.f_a_proj": "self_attn.forget_gate.f_a_proj",
    "self_attn.f_b_proj": "self_attn.forget_gate.f_b_proj",
    "self_attn.indexers_proj": "self_attn.indexer.weights_proj",
}
"""Published name within a layer -> the name here."""
_KERNELS = "transformers.integrations.hub_kernels"
_TEXT_ID = 1  # any id that does not stand for an image


class NativeArchitecture:
    """An `Architecture` whose modules are transformers' own.

    Args:
        name: name of the checkpoint, as the user would type it.
        config: a published ``config.json``, with a ``text_config`` or, in older files, with the
            text keys at the top level.
        where: path of the file, for messages; what is beside it of its image processor is read.
        keeps_fp8: whether weights in FP8 may stay so; not if an adapter is merged into them.
        stored: how weights were quantised before they were published, if not in FP8 by block.

    Attributes:
        text: its ``text_config``, with the ``attention_bias`` that the model type has.
        ties_embeddings: whether the head shares the weights of the embedding.
        fp8: how the weights were published in FP8; ``None`` for full weights.

    Raises:
        CheckpointError: if a key is missing or invalid, or weights are quantised but neither in FP8
            nor as `stored` says.
    """

    max_images: int | None = None
    unseen_revision = ""
    made_of: MadeOf = ()

    def __init__(
        self,
        name: str,
        config: dict[str, Any],
        where: str,
        *,
        keeps_fp8: bool = True,
        stored: Stored | None = None,
    ) -> None:
        self._can_keep_fp8, self.stored = keeps_fp8, stored
        self.name = name
        self.config = config
        self.thinks = family_of(config).thinks
        self._is_hybrid = config.get("model_type") == _HYBRID
        fp8 = read_fp8(config, where) if stored is None else None
        self.fp8 = None if fp8 is None else fp8.renamed(_own_fp8_names)
        self._nested = read_config(without_quantization(config), where)
        text = self._nested["text_config"]
        self.text: Mapping[str, Any] = {**text, "attention_bias": _has_bias(config, text)}
        self.ties_embeddings = bool(self._nested.get("tie_word_embeddings"))
        self._vision: Mapping[str, Any] = config["vision_config"]
        self._limits = image_limits(Path(where).parent, family_of(config), self._vision)

    @classmethod
    def of(cls, name: str, contents: Contents, where: str) -> NativeArchitecture:
        """Return the architecture of a folder's content.

        Args:
            name: name of the checkpoint.
            contents: what is in the folder.
            where: path of its ``config.json``, for messages.

        Raises:
            CheckpointError: as the class, or if weights are quantised in a way that cannot be
                loaded.
        """
        stored = read_stored(contents, where)
        # transformers computes with all experts of a layer as one weight, never quantised.
        if stored is not None and any(".experts." in each.module for each in stored.packed):
            raise refused(where, stored.scheme)
        keeps = contents.merges is None
        found = cls(name, contents.config, where, keeps_fp8=keeps, stored=stored)
        if stored is None:
            found._require_known(contents.tensors)
        return found

    def _require_known(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Raise CheckpointError unless weights are full, or in the FP8 that the config names."""
        ignored = [re.compile(pattern) for pattern in family_of(self.config).ignored]
        read = {
            name: info
            for name, info in tensors.items()
            if not any(pattern.search(name) for pattern in ignored)
        }
        require_full(read, () if self.fp8 is None else (FP8,))

    def module_tree(self, *, fp8: bool = False) -> ModuleTree:
        """Return the names of the model's modules and weights; see `Architecture.module_tree`."""
        from glm4v_magic.dispatch.module_tree import tree_of

        tree = tree_of(self.build_meta(self.shape().dtype, fp8=fp8))
        scales = {name for name in tree.tensors if name.endswith(SCALE)}
        return replace(tree, computed=tree.computed | scales)

    def own_names(self, name: str, tree: ModuleTree) -> tuple[str, ...] | None:
        """Return the modules or weights that a published name stands for; see `Architecture`.

        Older files lack ``model.`` before the tower and ``language_model.`` before the layers;
        experts are published one by one, and are one weight here.
        """
        name = plain_name(name).removesuffix(SCALE)
        ignored = family_of(self.config).ignored
        if any(re.search(pattern, f"{name}.") for pattern in ignored):
            return ()
        known = {*tree.modules, *tree.tensors}
        found = (self._renamed(each) for each in _own_modules(name))
        return next(((each,) for each in found if each in known), None)

    def _renamed(self, name: str) -> str:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        for transform in get_checkpoint_conversion_mapping(self.config["model_type"]) or ():
            name, _ = transform.rename_source_key(name)
        return _EXPERT.sub(r"\1", name)

    def build_meta(self, dtype: str, *, fp8: bool = False) -> PreTrainedModel:
        """Build the model on the ``meta`` device; see `Architecture.build_meta`.

        Raises:
            CheckpointError: if transformers does not accept the configuration.
        """
        import torch
        from transformers import AutoModelForImageTextToText

        from glm4v_magic.torch_state import torch_state_kept

        with torch_state_kept():
            config = self.model_config()
            try:
                with torch.device("meta"):
                    model = AutoModelForImageTextToText.from_config(
                        config, attn_implementation="sdpa"
                    )
            except Exception as error:  # its checks raise half a dozen unrelated types
                raise self._unusable(error) from error
            model.to(getattr(torch, dtype))
            if self._is_hybrid:
                for name, parameter in model.named_parameters():
                    if any(each in name for each in FLOAT32_MODULES):
                        parameter.data = parameter.data.float()
            if fp8 and self.fp8 is not None:
                self.fp8.put_on(model, getattr(torch, dtype))
            return model.eval()

    def model_config(self) -> PreTrainedConfig:
        """Return the configuration as transformers' classes take it.

        Raises:
            CheckpointError: if transformers does not accept it.
        """
        from transformers import AutoConfig

        if self._is_hybrid:  # it would tell in the midst of an answer what the documentation tells
            logging.getLogger(_KERNELS).setLevel(logging.ERROR)
        try:
            return AutoConfig.for_model(**self._nested)
        except Exception as error:  # its checks raise half a dozen unrelated types
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> CheckpointError:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return CheckpointError(
            f"transformers cannot build {self.name} from its configuration ({reason})."
        )

    def require_kernels(self) -> None:
        """Raise OptionError unless what computes with weights in FP8 is installed."""
        require_kernels()

    def prompt_inputs(
        self, images: int, text_tokens: int, batch: int = 1, patches: int | None = None
    ) -> dict[str, Tensor]:
        """Make ids, types, mask, pixels and grids of a prompt; images come first in their row.

        Raises:
            OptionError: as `Architecture.prompt_inputs`.
        """
        import torch

        if text_tokens < 1:
            raise OptionError(f"A prompt has at least 1 token of text, not {text_tokens}.")
        config, vision, shape = self.config, self._vision, self.shape()
        merge = vision["spatial_merge_size"]
        tokens = (patches or shape.patches) // merge**2
        rows, columns = grid_of(tokens)
        text_tokens += images * (tokens - rows * columns)  # the prompt is as long as planned
        image = [
            config["image_start_token_id"],
            *[config["image_token_id"]] * (rows * columns),
            config["image_end_token_id"],
        ]
        ids = torch.tensor([image * images + [_TEXT_ID] * text_tokens]).repeat(batch, 1)
        mask = torch.ones_like(ids)
        if batch > 1:
            ids[0] = ids[0].roll(1)
            mask[0, 0] = 0
        types = (ids == config["image_token_id"]).int()
        inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}
        if images:
            count, grid = batch * images, [1, rows * merge, columns * merge]
            inputs["pixel_values"] = torch.zeros(count * grid[1] * grid[2], patch_values(vision))
            inputs["image_grid_thw"] = torch.tensor([grid] * count)
        return inputs

    def shape(self) -> ModelShape:
        """Return the model's sizes."""
        text, vision = self.text, self._vision
        merge = vision["spatial_merge_size"]
        visual_tokens = self._limits.most + 2  # with start and end
        # transformers writes the dtype of saved weights at the top, and leaves that of the text
        # part as it was before.
        given = (part.get(key) for part in (self.config, text) for key in ("dtype", "torch_dtype"))
        dtype = next(filter(None, given), "bfloat16")
        shape = ModelShape(
            name=self.name,
            units=(
                *vision_units(
                    vision,
                    text["vocab_size"],
                    is_plain=self.config["model_type"] in (_OCR, _HYBRID),
                    is_clamped=self._is_hybrid,
                ),
                *(hybrid_units if self._is_hybrid else text_units)(text, self._kept_fp8()),
            ),
            vision_modules=(VISION,),
            dtype=str(dtype),
            max_context=text["max_position_embeddings"],
            patches=self._limits.most * merge**2,
            visual_tokens=visual_tokens,
            image_positions=visual_tokens,
            fp8=self.fp8 is not None,
            token_side=vision["patch_size"] * merge,
            patches_per_token=merge**2,
            least_image_tokens=self._limits.least,
            tower_first=True,  # `generate` encodes images before its first forward
            masks_pairs=not self._is_hybrid,
            unseen_revision=self.unseen_revision,
            made_of=self.made_of,
        )
        return shape if self.stored is None else self.stored.shape(shape, _own_modules)

    def _kept_fp8(self) -> Fp8 | None:
        """FP8 scheme of weights that can stay in FP8.

        ``None`` unless only the text part is in FP8, the matrices of experts that are joined from
        two meet at a border of blocks, and the model's class computes with what is.
        """
        if self.fp8 is None or not self._can_keep_fp8 or any(map(self.fp8.holds, _FULL)):
            return None
        if has_experts(self.text) and self.text["moe_intermediate_size"] % self.fp8.block[0]:
            return None
        if self._is_hybrid and not can_compute_in_fp8(self.text, self.fp8):
            return None
        return self.fp8


def _own_fp8_names(name: str) -> Iterator[str]:
    """Yield the modules here that a name stands for in a list of those that are not in FP8.

    Like weights, they are published with names of other versions: ``model.layers`` for the text
    part, and within it those of GLM-5.3's files, whose index GLM-5 called ``indexers_proj``.
    """
    for each in _own_modules(name):
        for published, own in _OF_LAYERS.items():
            each = each.replace(published, own)
        yield each


def _own_modules(name: str) -> Iterator[str]:
    """Yield what a published name may be here."""
    for beginning, inside in _OLDER.items():
        if name.startswith(beginning):
            yield inside + name.removeprefix(beginning)


def _has_bias(config: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """Tell whether query, key and value have biases; only files of models with experts say it."""
    if has_experts(text):  # GLM-5.3-Flash among them
        return bool(text.get("attention_bias", False))
    return config["model_type"] != _OCR
