"""The model types of this family and what differs between them; a line each.

All of them run through transformers' own classes. `Family` says which image processor goes with a
type, and what its models can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BESIDE_WEIGHTS",
    "FAMILIES",
    "KNOWN",
    "OCR_PROMPTS",
    "Family",
    "family_of",
    "matches",
]

BESIDE_WEIGHTS = (
    ("tokenizer.json", "preprocessor_config.json"),
    ("tokenizer.json", "processor_config.json"),
)
"""Files that come with weights; transformers 5 saves processors together."""


@dataclass(frozen=True, slots=True)
class Family:
    """A model type.

    Attributes:
        images: module and name of transformers' class that turns images into patches.
        thinks: whether its models think before they answer.
        video: rule by which the frames of a video are chosen; ``None`` if its models take no video.
        tasks: tasks that they have published prompts for.
        efforts: levels of reasoning effort that they offer.
        is_recurrent: whether linear attention keeps a state instead of keys and values, which
            cannot be cut.
        counts_tokens: whether their ``preprocessor_config.json`` limits images in visual tokens
            instead of pixels.
        image_tokens: most visual tokens of an image, by the published file.
        ignored: patterns of weights in published files that the models do not have: layers for
            multi-token prediction, as in transformers' ``_keys_to_ignore_on_load_unexpected``.
    """

    images: tuple[str, str]
    thinks: bool = True
    video: str | None = None
    tasks: tuple[str, ...] = ()
    efforts: tuple[str, ...] = ()
    is_recurrent: bool = False
    counts_tokens: bool = False
    image_tokens: int = 6144
    ignored: tuple[str, ...] = ()

    @property
    def takes_video(self) -> bool:
        """Whether its models take video."""
        return self.video is not None


OCR_PROMPTS: Mapping[str, str] = {
    "text": "Text Recognition:",
    "table": "Table Recognition:",
    "formula": "Formula Recognition:",
    # "Output the information in the image in the following JSON format:", which is the next line.
    "extract": "请按下列JSON格式输出图中信息:",
}
"""Prompts that GLM-OCR was trained on, by task (https://huggingface.co/zai-org/GLM-OCR, "Prompt
Limited")."""

_MODELS = "transformers.models"
_GLM4V = (f"{_MODELS}.glm4v.image_processing_pil_glm4v", "Glm4vImageProcessorPil")
_GLM46V = (f"{_MODELS}.glm46v.image_processing_pil_glm46v", "Glm46VImageProcessorPil")
_GLM5 = (f"{_MODELS}.glm5_next.image_processing_pil_glm5_next", "Glm5NextImageProcessorPil")
_GLMGA = (f"{_MODELS}.glmga.image_processing_pil_glmga", "GlmgaImageProcessorPil")

FAMILIES: Mapping[str, Family] = {
    "glm4v": Family(_GLM4V, video="glm4v"),  # GLM-4.1V
    "glm46v": Family(_GLM46V, video="glm46v"),  # GLM-4.6V-Flash
    "glmga": Family(_GLMGA, video="glmga"),
    "glm_ocr": Family(  # GLM-OCR
        _GLM46V,
        thinks=False,
        tasks=tuple(OCR_PROMPTS),
        ignored=(r"model\.language_model\.layers\.16.*",),
    ),
    "glm4v_moe": Family(  # GLM-4.5V, GLM-4.6V
        _GLM4V, video="glm4v", ignored=(r"model\.layers\.92.*", r"model\.layers\.46.*")
    ),
    "glm5_next": Family(  # GLM-5.3-Flash
        _GLM5,
        video="glm5_next",
        efforts=("low", "high", "max"),
        is_recurrent=True,
        counts_tokens=True,
        image_tokens=8000,
        ignored=(r"layers\.45\.", r"layers\.\d+\.shared_head\."),
    ),
}
"""All families, by the ``model_type`` of a ``config.json``."""

KNOWN = ("chatglm (with a vision_config)", *sorted(FAMILIES))
"""Every ``model_type`` that can be planned and loaded, for messages."""


def matches(config: Mapping[str, Any]) -> bool:
    """Tell whether a ``config.json`` is of this family."""
    kind = config.get("model_type")
    return isinstance(kind, str) and kind in FAMILIES


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a ``config.json`` that `matches`."""
    return FAMILIES[config["model_type"]]
