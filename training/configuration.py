"""The sizes of the demo model, written as GLM-4V-9B writes them."""

from __future__ import annotations

from typing import Any

from glm4v_magic.checkpoints.glm4v_9b.processing import SPECIAL_TOKENS

__all__ = [
    "IMAGE_SIZE",
    "PATCH_SIZE",
    "checkpoint_config",
    "generation_config",
    "special_ids",
    "tokenizer_config",
]

IMAGE_SIZE = 112
PATCH_SIZE = 14


def special_ids(ranks: int) -> dict[str, int]:
    """Return the ids of the special tokens, for a tokenizer with `ranks` ordinary tokens."""
    return {token: ranks + offset for offset, token in enumerate(SPECIAL_TOKENS)}


def checkpoint_config(ranks: int) -> dict[str, Any]:
    """Return `config.json` for a tokenizer with `ranks` ordinary tokens."""
    ids = special_ids(ranks)
    grid = IMAGE_SIZE // PATCH_SIZE
    return {
        "_name_or_path": "glm4v-magic-demo",
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "vision_config": {
            "dropout_prob": 0.0,
            "hidden_act": "gelu",
            "in_channels": 3,
            "num_hidden_layers": 3,
            "hidden_size": 128,
            "patch_size": PATCH_SIZE,
            "num_heads": 4,
            "intermediate_size": 256,
            "layer_norm_eps": 1e-06,
            "num_positions": grid * grid + 1,
            "image_size": IMAGE_SIZE,
            "scaling_factor": 8,
        },
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "attn_implementation": "sdpa",
        "bias_dropout_fusion": True,
        "ffn_hidden_size": 384,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": 128,
        "kv_channels": 32,
        "layernorm_epsilon": 1.5625e-07,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 4,
        "num_layers": 4,
        "original_rope": True,
        # A multiple of 32, for fast matrix products. The original's is one of 64.
        "padded_vocab_size": -(-(ranks + len(SPECIAL_TOKENS)) // 32) * 32,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 1024,
        "use_cache": True,
        "torch_dtype": "float16",
        "transformers_version": "4.44.0",
        "tie_word_embeddings": False,
        "eos_token_id": _stops(ids),
        "pad_token_id": ids["<|endoftext|>"],
        "boi_token_id": ids["<|begin_of_image|>"],
        "eoi_token_id": ids["<|end_of_image|>"],
    }


def generation_config(ranks: int) -> dict[str, Any]:
    """Return `generation_config.json`: greedy, since each question has one right answer."""
    ids = special_ids(ranks)
    return {
        "eos_token_id": _stops(ids),
        "pad_token_id": ids["<|endoftext|>"],
        "do_sample": False,
        "max_length": 1024,
        "transformers_version": "4.44.0",
    }


def tokenizer_config(ranks: int) -> dict[str, Any]:
    """Return `tokenizer_config.json` in the original layout."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "added_tokens_decoder": {
            str(index): {"content": token, **flags, "special": True}
            for token, index in special_ids(ranks).items()
        },
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "clean_up_tokenization_spaces": False,
        "do_lower_case": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 1000000000000000019884624838656,
        "padding_side": "left",
        "remove_space": False,
        "tokenizer_class": "ChatGLM4Tokenizer",
        "image_size": IMAGE_SIZE,
    }


def _stops(ids: dict[str, int]) -> list[int]:
    return [ids["<|endoftext|>"], ids["<|user|>"], ids["<|observation|>"]]
