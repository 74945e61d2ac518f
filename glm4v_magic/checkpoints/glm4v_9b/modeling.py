"""GLM-4V-9B for transformers 5: the vision tower in front of transformers' own GLM decoder.

Shapes: B rows, L ids of a prompt with all ids of its images, V = n + 2 visual tokens of an image
(1,602 for the published checkpoint), H width of the text part.

An image is ``boi, n x placeholder, eoi`` in the ids. The tower's vectors, the learned begin and end
included, replace the embeddings of these V ids. All n patches share one position: position ids
count an image as three, while the KV cache holds V entries.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from glm4v_magic.checkpoints.glm4v_9b import weights
from glm4v_magic.checkpoints.glm4v_9b.configuration import Glm4v9bConfig
from glm4v_magic.checkpoints.glm4v_9b.text import SHARED_ARGUMENTS, TextModel
from glm4v_magic.checkpoints.glm4v_9b.vision import VisionTower
from glm4v_magic.core.wording import counted

__all__ = ["Glm4v9bForConditionalGeneration", "Glm4v9bModel", "positions", "visual_span"]


def visual_span(input_ids: Tensor, boi_token_id: int, num_visual_tokens: int) -> Tensor:
    """Mark the ids that stand for an image: (B, L) ids -> (B, L) bool.

    A conversation holds at most one image, so a span starts at a row's first begin-of-image id;
    a begin-of-image id that the model itself generates later starts none.
    """
    begins = input_ids == boi_token_id
    first = begins.long().argmax(dim=-1, keepdim=True)
    offset = torch.arange(input_ids.shape[-1], device=input_ids.device) - first
    return begins.any(dim=-1, keepdim=True) & (offset >= 0) & (offset < num_visual_tokens)


def positions(span: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return position ids, one for all patches of an image: (B, L) bool -> (B, L) int64.

    Args:
        span: `visual_span` of the ids.
        attention_mask: 0 marks padding, which gets position 0; (B, L).
    """
    # Only the first patch advances: begin, first patch, end and every text token count one each.
    previous = torch.roll(span, 1, dims=-1)
    previous[..., 0] = False
    following = torch.roll(span, -1, dims=-1)
    following[..., -1] = False
    second = torch.roll(previous, 1, dims=-1)
    second[..., 0] = False
    repeated = span & previous & second & following
    steps = (~repeated).long()
    if attention_mask is not None:
        steps = steps * attention_mask.to(steps.device)
    position_ids = steps.cumsum(dim=-1) - 1
    if attention_mask is not None:
        position_ids = position_ids.masked_fill(attention_mask.to(steps.device) == 0, 0)
    return position_ids


class Glm4v9bPreTrainedModel(PreTrainedModel):
    """Base of the model classes: features that transformers may use, and initial weights."""

    config_class = Glm4v9bConfig
    config: Glm4v9bConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = [
        "PatchEmbedding",
        "VisionLayer",
        "GatedProjection",
        "TextLayer",
    ]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values", *SHARED_ARGUMENTS]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = list(weights.IGNORED)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        for name in ("boi", "eoi", "cls_embedding"):
            vector = getattr(module, name, None)
            # Weights from a checkpoint carry this mark and must not be initialised again.
            if vector is not None and not getattr(vector, "_is_hf_initialized", False):
                nn.init.normal_(vector, std=std)


class Glm4v9bModel(Glm4v9bPreTrainedModel):
    """Vision tower and decoder without the head."""

    def __init__(self, config: Glm4v9bConfig) -> None:
        super().__init__(config)
        self.vision = VisionTower(config.vision_config, config.hidden_size, config.ffn_hidden_size)
        self.language_model = TextModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.language_model.embed_tokens = value

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Encode images: (images, 3, S, S) -> (images, V, H)."""
        features: Tensor = self.vision(pixel_values.to(self.vision.boi.dtype))
        return features

    def visual_span(self, input_ids: Tensor) -> Tensor:
        """Mark the ids that stand for an image: (B, L) -> (B, L) bool."""
        visual_tokens = self.config.vision_config.num_visual_tokens
        return visual_span(input_ids, self.config.boi_token_id, visual_tokens)

    def splice(self, inputs_embeds: Tensor, input_ids: Tensor, features: Tensor) -> Tensor:
        """Replace the embeddings of image ids by visual tokens.

        Args:
            inputs_embeds: embeddings of `input_ids`, (B, L, H).
            input_ids: (B, L); rows with an image correspond to the rows of `features`, in order.
            features: (images, V, H).

        Raises:
            ValueError: if `input_ids` do not have V ids for each image.
        """
        span = self.visual_span(input_ids)
        images, visual_tokens, _ = features.shape
        ends = input_ids[span][visual_tokens - 1 :: visual_tokens]
        complete = int(span.sum()) == images * visual_tokens
        if not complete or not bool((ends == self.config.eoi_token_id).all()):
            raise ValueError(
                f"The pixels are of {counted(images, 'image')} with {visual_tokens} visual "
                f"tokens each, but the ids hold {int(span.sum())} ids for images; let the "
                "processor write them."
            )
        mask = span.to(inputs_embeds.device).unsqueeze(-1)
        return inputs_embeds.masked_scatter(
            mask, features.to(device=inputs_embeds.device, dtype=inputs_embeds.dtype)
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run tower and decoder.

        Args:
            input_ids: (B, L), with all ids of each image.
            attention_mask: 0 marks padding; (B, cached + L), or a prepared 4-d mask.
            position_ids: (B, L); derived from the ids when nothing is cached.
            past_key_values: KV cache of earlier calls.
            inputs_embeds: (B, L, H), instead of `input_ids`.
            pixel_values: (images, 3, S, S), for the rows that hold an image, in order.
            image_features: (images, V, H), instead of `pixel_values`.
            use_cache: whether to return a KV cache.
            kwargs: further arguments of `GlmModel`.

        Raises:
            ValueError: if ids and images do not match, or if the cache is not empty and
                `position_ids` are missing (ids alone do not tell how often positions were shared).
        """
        if inputs_embeds is None:
            inputs_embeds = self.language_model.embed_tokens(input_ids)
        if image_features is None and pixel_values is not None:
            image_features = self.get_image_features(pixel_values)
        if image_features is not None:
            if input_ids is None:
                raise ValueError("Images need input_ids, which tell where they stand.")
            inputs_embeds = self.splice(inputs_embeds, input_ids, image_features)

        device = inputs_embeds.device
        cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = self._positions(input_ids, inputs_embeds, attention_mask, cached)
        if attention_mask is None and not (cached and inputs_embeds.shape[1] == 1):
            # Shared positions look like packed sequences to transformers unless a mask is given.
            shape = (inputs_embeds.shape[0], int(cached) + inputs_embeds.shape[1])
            attention_mask = torch.ones(shape, dtype=torch.long, device=device)
        output: BaseModelOutputWithPast = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=None if attention_mask is None else attention_mask.to(device),
            position_ids=position_ids.to(device),
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return output

    def _positions(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        cached: int | Tensor,
    ) -> Tensor:
        if cached:
            raise ValueError("position_ids are needed when something is cached already.")
        mask = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
        if input_ids is None:
            span = torch.zeros(
                inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device
            )
        else:
            span = self.visual_span(input_ids)
        return positions(span, mask)


class Glm4v9bForConditionalGeneration(Glm4v9bPreTrainedModel, GenerationMixin):
    """GLM-4V-9B with its head, ready for `generate`."""

    def __init__(self, config: Glm4v9bConfig) -> None:
        super().__init__(config)
        self.model = Glm4v9bModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.post_init()

    @property
    def device(self) -> torch.device:
        """Device of the first weight that is in memory; offloaded weights are on ``meta``."""
        devices = (parameter.device for parameter in self.parameters())
        return next((device for device in devices if device.type != "meta"), torch.device("meta"))

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Encode images: (images, 3, S, S) -> (images, V, H)."""
        return self.model.get_image_features(pixel_values)

    def position_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return `positions` of all tokens: (B, L) ids and mask -> (B, L) int64."""
        return positions(self.model.visual_span(input_ids), attention_mask)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the next id; arguments as in `Glm4v9bModel.forward`, and two more.

        `labels` (B, L) hold -100 where no loss is wanted. `logits_to_keep` says how many last
        positions get logits (0 for all), or gives their indices.

        Returns:
            Logits of shape (B, kept, vocabulary), and the loss if `labels` were given.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_features=image_features,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            vocabulary = self.config.padded_vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocabulary)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Prepare one step; image features, like pixels, are for the prefill only."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        if not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True):
            inputs.pop("image_features", None)
        return inputs

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]
    ) -> Tensor:
        ids = model_kwargs.get("input_ids")
        if ids is None or ids.shape[1] == 0:
            ids = inputs_tensor
        if ids.is_floating_point():  # embeddings do not tell where an image is
            inferred: Tensor = super()._prepare_position_ids_for_generation(
                inputs_tensor, model_kwargs
            )
            return inferred
        mask = model_kwargs.get("attention_mask")
        return positions(self.model.visual_span(ids), mask)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, *args: Any, **model_kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        # Beams share an image: encode it once and repeat its visual tokens, not its pixels.
        if expand_size > 1 and model_kwargs.get("pixel_values") is not None:
            pixel_values = model_kwargs.pop("pixel_values")
            model_kwargs["image_features"] = self.get_image_features(pixel_values)
        expanded: tuple[Tensor, dict[str, Any]] = super()._expand_inputs_for_generation(
            expand_size, *args, **model_kwargs
        )
        return expanded


register_checkpoint_conversion_mapping(
    Glm4v9bForConditionalGeneration.__name__, weights.conversions(), overwrite=True
)
