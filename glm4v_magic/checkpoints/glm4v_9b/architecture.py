"""GLM-4V-9B without its weights, for plans and dry runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glm4v_magic.checkpoints.glm4v_9b.layout import weight_shapes
from glm4v_magic.checkpoints.glm4v_9b.units import model_shape
from glm4v_magic.checkpoints.packages import require_kernels
from glm4v_magic.checkpoints.trained_names import plain_name
from glm4v_magic.core.errors import CheckpointError, OptionError
from glm4v_magic.core.model_shape import MadeOf

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from glm4v_magic.checkpoints.contents import Contents
    from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
    from glm4v_magic.checkpoints.glm4v_9b.packed import OwnWeights
    from glm4v_magic.core.model_shape import ModelShape, ModuleTree

__all__ = ["Glm4v9bArchitecture", "model_config"]

_ROTARY = "transformer.rotary_pos_emb"
_TEXT_ID = 1  # any id that does not stand for an image


class Glm4v9bArchitecture:
    """An `Architecture`, from a published ``config.json``.

    Args:
        name: name of the checkpoint, as the user would type it.
        config: parsed content of the file.
        where: path of the file, for messages.
        packed: weights that were quantised before they were published.

    Raises:
        CheckpointError: if a key is missing or invalid.
    """

    max_images: int | None = 1
    thinks = False
    unseen_revision = ""
    made_of: MadeOf = ()

    def __init__(
        self, name: str, config: dict[str, Any], where: str, packed: OwnWeights | None = None
    ) -> None:
        from glm4v_magic.checkpoints.glm4v_9b.config_file import validate_config

        validate_config(config, where)
        self.name = name
        self.config = config
        self.packed = packed

    @classmethod
    def of(cls, name: str, contents: Contents, where: str) -> Glm4v9bArchitecture:
        """Return the architecture of a folder's content.

        Args:
            name: name of the checkpoint.
            contents: what is in the folder.
            where: path of its ``config.json``, for messages.

        Raises:
            CheckpointError: as the class, or if weights are quantised in a way that cannot be
                loaded.
        """
        from glm4v_magic.checkpoints.glm4v_9b.config_file import validate_config
        from glm4v_magic.checkpoints.glm4v_9b.packed import own_weights

        validate_config(contents.config, where)
        return cls(name, contents.config, where, own_weights(contents, where))

    def shape(self) -> ModelShape:
        """Return the model's sizes."""
        full = model_shape(self.config, self.name)
        full = replace(full, unseen_revision=self.unseen_revision, made_of=self.made_of)
        return full if self.packed is None else self.packed.stored.shape(full)

    def module_tree(self, *, fp8: bool = False) -> ModuleTree:
        """Return the names of the model's modules and weights."""
        from glm4v_magic.dispatch.module_tree import tree_of

        return tree_of(self.build_meta(self.shape().dtype))

    def own_names(self, name: str, tree: ModuleTree) -> tuple[str, ...] | None:
        """Return the modules or weights that a published name stands for; see `Architecture`."""
        from glm4v_magic.checkpoints.glm4v_9b.weights import own_names

        name = plain_name(name)
        if name in tree.modules or name in tree.tensors:
            return (name,)
        found = [
            own
            for published in weight_shapes(self.config)
            if published == name or published.startswith(f"{name}.")
            for own in own_names(published)
        ]
        if name == f"{_ROTARY}.inv_freq" or f"{_ROTARY}.".startswith(f"{name}."):
            found += ["model.language_model.rotary_emb"]
        return tuple(found) or None

    def build_meta(self, dtype: str, *, fp8: bool = False) -> PreTrainedModel:
        """Build the model on the ``meta`` device; no checkpoint of it is in FP8."""
        import torch

        from glm4v_magic.checkpoints.glm4v_9b.modeling import Glm4v9bForConditionalGeneration
        from glm4v_magic.torch_state import torch_state_kept

        config = self.model_config()
        config._attn_implementation = "sdpa"
        with torch_state_kept():
            with torch.device("meta"):
                model = Glm4v9bForConditionalGeneration(config)
            return model.to(getattr(torch, dtype)).eval()

    def model_config(self) -> Glm4v9bConfig:
        """Return the configuration as the model's class takes it.

        Raises:
            CheckpointError: if transformers does not accept it.
        """
        return model_config(self.config, self.name)

    def require_kernels(self) -> None:
        """Raise OptionError unless what computes with weights in FP8 is installed."""
        require_kernels()

    def prompt_inputs(
        self, images: int, text_tokens: int, batch: int = 1, patches: int | None = None
    ) -> dict[str, Tensor]:
        """Make ids, mask and pixels of a prompt; the image comes first in its row.

        Raises:
            OptionError: as `Architecture.prompt_inputs`.
        """
        import torch

        if images > 1:
            raise OptionError(f"{self.name} takes 1 image per conversation, not {images}.")
        if text_tokens < 1:
            raise OptionError(f"A prompt has at least 1 token of text, not {text_tokens}.")
        config, vision = self.config, self.config["vision_config"]
        visual = self.shape().visual_tokens
        image = [config["boi_token_id"], *[_TEXT_ID] * (visual - 2), config["eoi_token_id"]]
        ids = torch.tensor([image * images + [_TEXT_ID] * text_tokens]).repeat(batch, 1)
        mask = torch.ones_like(ids)
        if batch > 1:
            ids[0] = ids[0].roll(1)
            mask[0, 0] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        if images:
            side = vision["image_size"]
            inputs["pixel_values"] = torch.zeros(batch, vision["in_channels"], side, side)
        return inputs


def model_config(config: dict[str, Any], name: str) -> Glm4v9bConfig:
    """Return a published ``config.json`` as the model's class takes it.

    Args:
        config: its content.
        name: name of the checkpoint, for messages.

    Raises:
        CheckpointError: if transformers does not accept it.
    """
    from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig

    try:
        return Glm4v9bConfig.from_dict(config)
    except Exception as error:  # its checks raise half a dozen unrelated types
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"transformers cannot build {name} from its configuration ({why})."
        ) from error
