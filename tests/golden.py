"""The reference data in tests/data/golden: outputs of the original code on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file

from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.placement import Place
from glm4v_magic.images import SourcedImage

FOLDER = Path(__file__).parent / "data" / "golden"
CHECKPOINT = FOLDER / "checkpoint"
SHARDED = FOLDER / "checkpoint_sharded"
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
SINGLE_ROW = [
    "image_text",
    "text_only",
    "image_two_turn",
    "image_second_turn",
    "image_no_text",
    "unicode_text",
]

_TEXT = "model.language_model."
SPLIT: dict[str, Place] = {
    "model.vision": 1,
    f"{_TEXT}embed_tokens": 0,
    f"{_TEXT}rotary_emb": 0,
    f"{_TEXT}layers.0": 0,
    f"{_TEXT}layers.1": 1,
    f"{_TEXT}layers.2": 2,
    f"{_TEXT}layers.3": 1,
    f"{_TEXT}norm": 2,
    "lm_head": 0,
}
"""Device map of `CHECKPOINT` whose hidden state goes through three GPUs and back."""


def tensors(case: str) -> dict[str, Any]:
    return load_file(FOLDER / f"{case}.safetensors")


def photo(name: str) -> SourcedImage:
    image = Image.open(FOLDER / name)
    image.load()
    return SourcedImage(image=image, source=name, original_size=image.size)


def conversation(case: str) -> Conversation:
    return Conversation(
        tuple(
            Message(
                turn["role"],
                turn["content"],
                (photo(turn["image"]),) if "image" in turn else (),
            )
            for turn in CASES[case]["conversation"]
        )
    )
