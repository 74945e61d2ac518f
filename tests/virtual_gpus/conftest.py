"""Tiny models with the architecture of the real ones, saved as a checkpoint would be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    GenerationConfig,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    GlmConfig,
    GlmForCausalLM,
)

VOCABULARY = 97


@pytest.fixture(scope="session")
def glm() -> GlmForCausalLM:
    """A GLM of four layers on the CPU."""
    torch.manual_seed(0)
    config = GlmConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        attention_bias=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GlmForCausalLM(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
    return model


@pytest.fixture(scope="session")
def glm_folder(glm: GlmForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm")
    glm.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def glm4v() -> Glm4vForConditionalGeneration:
    """A GLM-4.1V with a vision tower of two layers on the CPU."""
    torch.manual_seed(0)
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
    }
    config = Glm4vConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rope_parameters": rope,
            "pad_token_id": 0,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "num_heads": 4,
            "patch_size": 4,
            "image_size": 16,
        },
        image_token_id=90,
        image_start_token_id=91,
        image_end_token_id=92,
        video_token_id=93,
        video_start_token_id=94,
        video_end_token_id=95,
    )
    model = Glm4vForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
    return model


@pytest.fixture(scope="session")
def glm4v_folder(
    glm4v: Glm4vForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("glm4v")
    glm4v.save_pretrained(folder)
    return folder
