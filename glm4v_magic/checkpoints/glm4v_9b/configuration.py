"""Configuration of GLM-4V-9B, read from and written to the published ``config.json``.

The published file is flat: text keys stand beside a nested ``vision_config``, under names of
their own (``num_layers``, ``padded_vocab_size``, ...). The classes here keep those names, so that
a checkpoint written by us has the layout of a published one, and derive from them the
`GlmConfig` that the text part needs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import GlmConfig, PretrainedConfig

__all__ = ["Glm4v9bConfig", "Glm4v9bVisionConfig"]


class Glm4v9bVisionConfig(PretrainedConfig):
    """The vision tower: a post-norm ViT, a 2x2 merge and a gated projection.

    Defaults are the published values of GLM-4V-9B.
    """

    model_type = "chatglm_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1792
    num_hidden_layers: int = 63
    num_heads: int = 16
    intermediate_size: int = 15360
    patch_size: int = 14
    image_size: int = 1120
    num_positions: int = 6401
    in_channels: int = 3
    hidden_act: str = "gelu"
    dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-6
    scaling_factor: float = 8

    @property
    def num_patches(self) -> int:
        """Patches of one image after the 2x2 merge: 1,600 for the published checkpoint."""
        return (self.image_size // self.patch_size // 2) ** 2

    @property
    def num_visual_tokens(self) -> int:
        """Vectors that one image becomes: the patches and the learned begin and end vectors."""
        return self.num_patches + 2


class Glm4v9bConfig(PretrainedConfig):
    """GLM-4V-9B under the key names of the published ``config.json``.

    Defaults are the published values. Keys that the published file carries and that change
    nothing here (``apply_query_key_layer_scaling``, which cancels out; dropouts of zero) are kept
    as they are and written back.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    # A plain class attribute, as transformers before 5.20 had it: `text_config` is derived from
    # the flat keys, so the newer `sub_configs_defaults`, which builds sub-configs, does not fit.
    sub_configs: ClassVar[dict[str, type[PretrainedConfig]]] = {
        "text_config": GlmConfig,
        "vision_config": Glm4v9bVisionConfig,
    }

    num_layers: int = 40
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    num_attention_heads: int = 32
    kv_channels: int = 128
    multi_query_attention: bool = True
    multi_query_group_num: int = 2
    padded_vocab_size: int = 151552
    seq_length: int = 8192
    layernorm_epsilon: float = 1.5625e-07
    rope_ratio: float = 1.0
    add_qkv_bias: bool = True
    add_bias_linear: bool = False
    rmsnorm: bool = True
    post_layer_norm: bool = True
    original_rope: bool = True
    apply_residual_connection_post_layernorm: bool = False
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = 151329
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    boi_token_id: int = 151339
    eoi_token_id: int = 151340
    vision_config: Any = None  # read as an object of JSON, kept as a `Glm4v9bVisionConfig`

    def __post_init__(self, **kwargs: Any) -> None:
        if self.eos_token_id is None:
            self.eos_token_id = [151329, 151336, 151338]
        if not isinstance(self.vision_config, PretrainedConfig):
            self.vision_config = Glm4v9bVisionConfig(**(self.vision_config or {}))
        # Written by `to_dict` of other versions; always derived again from the flat keys.
        kwargs.pop("text_config", None)
        self.text_config = GlmConfig(
            vocab_size=self.padded_vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.ffn_hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=(
                self.multi_query_group_num
                if self.multi_query_attention
                else self.num_attention_heads
            ),
            head_dim=self.kv_channels,
            max_position_embeddings=self.seq_length,
            rms_norm_eps=self.layernorm_epsilon,
            attention_bias=self.add_qkv_bias,
            initializer_range=self.initializer_range,
            tie_word_embeddings=self.tie_word_embeddings,
            use_cache=self.use_cache,
            pad_token_id=self.pad_token_id,
            eos_token_id=self.eos_token_id,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0 * self.rope_ratio,
                "partial_rotary_factor": 0.5,
            },
        )
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the flat layout of the published file, without the derived `text_config`."""
        flat: dict[str, Any] = super().to_dict()
        flat.pop("text_config", None)
        return flat

    def to_diff_dict(self) -> dict[str, Any]:
        """Return every key: a checkpoint must be readable without knowing our defaults."""
        return self.to_dict()
