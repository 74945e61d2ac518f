"""A tiny model with random weights that transformers' own server can load without torchvision.

GLM's processors of videos need it, so that the model is a LLaVA.
"""

from __future__ import annotations

from pathlib import Path

import tiny_native
import torch

SIDE, PATCH = 28, 14
TEMPLATE = """\
{%- for message in messages -%}
<|{{ message.role }}|>
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == "text" %}{{ part.text }}{% else %}<image>{% endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>
{% endif -%}"""


def write(folder: Path) -> Path:
    """Write the model; returns its folder."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tiny_native.tokenizer("glm46v")
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    words.chat_template = TEMPLATE
    size = {"height": SIDE, "width": SIDE}
    LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False),
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=LlamaConfig(
                vocab_size=len(words),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                eos_token_id=words.eos_token_id,
                pad_token_id=words.pad_token_id,
                bos_token_id=None,
            ),
            vision_config=CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                image_size=SIDE,
                patch_size=PATCH,
                projection_dim=32,
            ),
            image_token_id=words.convert_tokens_to_ids("<image>"),
        )
    )
    model.generation_config.eos_token_id = None  # answers are as long as they may be
    model.save_pretrained(folder)
    return folder
