"""The sizes of the second demo model, written as GLM-4.6V writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.scenes import Palette

__all__ = [
    "BINS",
    "CHAT_TEMPLATE",
    "GRIDS",
    "LAYERS",
    "PALETTE",
    "PATCH",
    "SPECIAL_TOKENS",
    "STEP",
    "TAGS",
    "checkpoint_config",
    "generation_config",
    "preprocessor_config",
    "video_preprocessor_config",
]

PATCH = 14
BINS = 50
"""Values that an edge of a box has: the middles of fiftieths of the image."""
STEP = 1000 // BINS

PALETTE = Palette(
    ("red", "green", "blue", "yellow", "orange", "purple", "pink", "black"),
    ("circle", "square", "triangle", "star", "cross", "heart"),
    ("white", "gray", "black", "yellow", "blue"),
)
"""What the model knows: less than the first demo, which needs hours to learn all."""

GRIDS: Mapping[tuple[int, int], tuple[float, tuple[float, float]]] = {
    (8, 8): (0.6, (0.97, 1.03)),
    (6, 8): (0.13, (1.08, 1.6)),
    (8, 6): (0.13, (0.625, 0.925)),
    (6, 10): (0.07, (1.6, 1.9)),
    (10, 6): (0.07, (0.53, 0.625)),
}
"""Rows and columns in patches of images in training -> their share, and the ratios of width and
height of what the image processor resizes to them."""

SPECIAL_TOKENS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
    "<|assistant|>", "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>",
    "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>",
)  # fmt: skip
TAGS = ("<think>", "</think>", "<|begin_of_box|>", "<|end_of_box|>")
"""Tokens that are not special: they are part of an answer."""

CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>"
    "{{ '\n' }}{% if m.role == 'user' %}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif p.type == 'video' %}<|begin_of_video|><|video|><|end_of_video|>"
    "{% elif p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ '/nothink' if enable_thinking is defined and not enable_thinking }}"
    "{% elif m.role == 'assistant' %}<think></think>"
    "{{ '\n' + m.content.split('</think>')[-1].strip() }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{{ '\n<think></think>' if enable_thinking is defined and not enable_thinking }}{% endif %}"
)
"""The turns as the published template writes them, without its tools."""

_NORMAL = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


LAYERS = 4
"""Layers of the text part."""


def checkpoint_config(ids: Mapping[str, int], layers: int = LAYERS) -> dict[str, Any]:
    """Return `config.json`.

    Args:
        ids: id of every token.
        layers: of the text part.
    """
    hidden, heads = 128, 4
    return {
        "model_type": "glm46v",
        "architectures": ["Glm46VForConditionalGeneration"],
        "dtype": "float16",
        "tie_word_embeddings": False,
        "image_token_id": ids["<|image|>"],
        "video_token_id": ids["<|video|>"],
        "image_start_token_id": ids["<|begin_of_image|>"],
        "image_end_token_id": ids["<|end_of_image|>"],
        "video_start_token_id": ids["<|begin_of_video|>"],
        "video_end_token_id": ids["<|end_of_video|>"],
        "text_config": {
            "model_type": "glm4v_text",
            # A multiple of 32, for fast matrix products.
            "vocab_size": -(-(max(ids.values()) + 1) // 32) * 32,
            "hidden_size": hidden,
            "intermediate_size": 384,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 2,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "max_position_embeddings": 2048,
            "attention_dropout": 0.0,
            "eos_token_id": _stops(ids),
            "pad_token_id": ids["<|endoftext|>"],
            "rope_parameters": {
                "rope_type": "default",
                # 8 frequencies of a head of 32, made for hundreds of tokens.
                "rope_theta": 100.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 3, 3],
            },
        },
        "vision_config": {
            "model_type": "glm4v_vision",
            "depth": 4,
            "hidden_size": 128,
            "num_heads": 4,
            "hidden_act": "silu",
            "intermediate_size": 256,
            "out_hidden_size": hidden,
            "image_size": 112,
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "rms_norm_eps": 1e-05,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0},
        },
    }


def generation_config(ids: Mapping[str, int]) -> dict[str, Any]:
    """Return `generation_config.json`: greedy, since each question has one right answer."""
    return {
        "do_sample": False,
        "eos_token_id": _stops(ids),
        "pad_token_id": ids["<|endoftext|>"],
    }


def preprocessor_config() -> dict[str, Any]:
    """Return `preprocessor_config.json`: images of about 112 x 112 pixels, 12 to 16 tokens."""
    return {
        # Pixels of two frames, as this type of processor counts.
        "size": {"shortest_edge": 18000, "longest_edge": 25600},
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **_NORMAL,
        "image_processor_type": "Glm46VImageProcessor",
        "processor_class": "Glm46VProcessor",
    }


def video_preprocessor_config() -> dict[str, Any]:
    """Return `video_preprocessor_config.json`: four to six frames are as large as an image."""
    return {
        "size": {"shortest_edge": 18000, "longest_edge": 6 * 112 * 112},
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **_NORMAL,
        "video_processor_type": "Glm46VVideoProcessor",
        "processor_class": "Glm46VProcessor",
    }


def _stops(ids: Mapping[str, int]) -> list[int]:
    return [ids[each] for each in ("<|endoftext|>", "<|user|>", "<|observation|>")]
