"""Tiny checkpoints of the newer GLM vision models with random weights, in their published form.

`write` makes the files; `oracle` and `oracle_inputs` are transformers' own way of asking.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
from transformers.models.glm5_next.processing_glm5_next import Glm5NextProcessor
from transformers.models.glm46v.processing_glm46v import Glm46VProcessor
from transformers.utils.logging import disable_progress_bar

from glm4v_magic.checkpoints.glm_native.families import FAMILIES
from glm4v_magic.core.conversation import Conversation
from glm4v_magic.images import SourcedImage, to_image

KINDS = ("glm4v", "glm46v", "glmga", "glm_ocr", "glm4v_moe", "glm5_next")
ALWAYS = ("glm4v", "glm_ocr", "glm5_next")
"""Those whose template here knows of no choice to think."""

SPECIALS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
    "<|assistant|>", "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>",
    "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>",
)  # fmt: skip
TAGS = ("<think>", "</think>", "<|begin_of_box|>", "<|end_of_box|>")
"""Tokens that are not special: the published files may or may not say so of them."""

PLAIN_TEMPLATE = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif p.type == 'video' %}<|begin_of_video|><|video|><|end_of_video|>"
    "{% elif p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Always thinks."""

EFFORT_TEMPLATE = (
    "{% if reasoning_effort is defined %}<|system|>\nEffort: {{ reasoning_effort }}.{% endif %}"
    + PLAIN_TEMPLATE
)
"""Always thinks, as much as it is told."""

THINKING_TEMPLATE = (
    "[gMASK]<sop>\n{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'user' %}\n{% for p in m.content %}"
    "{% if p.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif p.type == 'video' %}<|begin_of_video|><|video|><|end_of_video|>"
    "{% elif p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    "{{ '/nothink' if enable_thinking is defined and not enable_thinking }}"
    "{% elif m.role == 'assistant' %}\n<think></think>"
    "{{ '\n' + m.content.split('</think>')[-1].strip() }}"
    "{% else %}\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{{ '\n<think></think>' if enable_thinking is defined and not enable_thinking }}{% endif %}"
)
"""Looks into what was said: strips, splits and appends, as the published ones do."""

_IMAGES = {
    "glm4v": ("Glm4vImageProcessor", "Glm4vProcessor"),
    "glm4v_moe": ("Glm4vImageProcessor", "Glm4vProcessor"),
    "glm46v": ("Glm46VImageProcessor", "Glm46VProcessor"),
    "glm_ocr": ("Glm46VImageProcessor", "Glm46VProcessor"),
    "glmga": ("GlmgaImageProcessor", "Glm46VProcessor"),
    "glm5_next": ("Glm5NextImageProcessor", "Glm5NextProcessor"),
}
_WORDS = "What do the images show? A red square, a blue circle and some text of ours. 1 2 3 四 five"


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the published special tokens."""
    plain = Tokenizer(BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    plain.train_from_iterator([_WORDS] * 2, trainer)
    plain.add_special_tokens([AddedToken(each, normalized=False) for each in SPECIALS])
    plain.add_tokens([AddedToken(each, normalized=False) for each in TAGS])
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    made.chat_template = PLAIN_TEMPLATE if kind in ALWAYS else THINKING_TEMPLATE
    if kind == "glm5_next":
        made.chat_template = EFFORT_TEMPLATE
    return made


def config(kind: str, words: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A ``config.json`` of four text layers and two vision blocks."""
    token = words.convert_tokens_to_ids
    text: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": token("<|endoftext|>"),
        "eos_token_id": [token(each) for each in ("<|endoftext|>", "<|user|>", "<|observation|>")],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
        },
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "num_heads": 4,
        "patch_size": 14,
        "image_size": 112,
        "in_channels": 3,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    names = {"image": "image", "video": "video"}
    ids = {f"{name}_token_id": token(f"<|{name}|>") for name in names}
    ids |= {f"{name}_start_token_id": token(f"<|begin_of_{name}|>") for name in names}
    ids |= {f"{name}_end_token_id": token(f"<|end_of_{name}|>") for name in names}
    if kind in ("glm46v", "glmga"):
        text["model_type"], vision["model_type"] = "glm4v_text", "glm4v_vision"
    if kind == "glm4v_moe":
        text |= {
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 1,
            "head_dim": 16,
            "n_group": 1,
            "topk_group": 1,
            "attention_bias": True,
        }
    if kind == "glm_ocr":
        text["head_dim"] = 16
    if kind == "glm5_next":
        del text["rope_parameters"]
        text |= {
            "num_hidden_layers": 5,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 64,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "kv_lora_rank": 32,
            "q_lora_rank": 24,
            "v_head_dim": 16,
            "qk_nope_head_dim": 20,
            "index_topk": 32,
            "index_kpool": 16,
            "index_head_dim": 16,
            "index_n_heads": 16,  # with few, many scores are 0, and padding decides among them
            "linear_head_dim": 16,
            "linear_num_heads": 3,
        }
        vision["projection_intermediate_size"] = 80
    return {
        "model_type": kind,
        "dtype": "float32",
        **ids,
        "text_config": text,
        "vision_config": vision,
    }


def widened(described: dict[str, Any]) -> dict[str, Any]:
    """The same with some hundred million values, so that a prompt takes far more than a block."""
    text, vision = dict(described["text_config"]), dict(described["vision_config"])
    text |= {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "max_position_embeddings": 32_768,
    }
    if "rope_parameters" in text:
        section = {"mrope_section": [8, 4, 4]}
        text |= {"num_key_value_heads": 4, "head_dim": 64}
        text["rope_parameters"] = text["rope_parameters"] | section
    else:
        text["num_key_value_heads"] = 16
        text |= {"kv_lora_rank": 256, "q_lora_rank": 256, "v_head_dim": 64, "linear_head_dim": 64}
        text |= {"qk_nope_head_dim": 64, "linear_num_heads": 16}
    if "moe_intermediate_size" in text:
        text["moe_intermediate_size"] = 512
    vision |= {"depth": 6, "hidden_size": 512, "intermediate_size": 2048, "num_heads": 8}
    vision["out_hidden_size"] = 1024
    if "projection_intermediate_size" in vision:
        vision["projection_intermediate_size"] = 2048
    return described | {"text_config": text, "vision_config": vision}


def build(kind: str, described: dict[str, Any], device: str = "cpu") -> Any:
    """The model, seeded."""
    torch.manual_seed(0)
    made = AutoConfig.for_model(**described)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(made, attn_implementation="sdpa").eval()
    for matrix in (each for each in model.parameters() if each.dim() > 1):
        torch.nn.init.normal_(matrix, std=0.2)  # as initialised, it says one word for ever
    return model


def write(
    kind: str,
    folder: Path,
    shard_size: str = "5GB",
    wide: bool = False,
    device: str = "cpu",
    text: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of a model type, made on a device; returns its folder.

    `text` is what the text part has instead of what it usually has.
    """
    words = tokenizer(kind)
    described = config(kind, words)
    if wide:
        described = widened(described)
    if text:
        described["text_config"] |= text
        described["vision_config"]["out_hidden_size"] = described["text_config"]["hidden_size"]
    model = build(kind, described, device)
    model.generation_config = GenerationConfig(
        eos_token_id=described["text_config"]["eos_token_id"],
        pad_token_id=words.pad_token_id,
        do_sample=True,
        temperature=0.8,
        top_p=0.6,
        top_k=2,
        repetition_penalty=1.1,
    )
    disable_progress_bar()
    model.save_pretrained(folder, max_shard_size=shard_size)
    words.save_pretrained(folder)
    images, whole = _IMAGES[kind]
    fewest_and_most = {"min_image_tokens": 8, "max_image_tokens": 1600 if wide else 64}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "size": {"shortest_edge": 12544, "longest_edge": 2 * 1120**2 if wide else 100352},
                **(fewest_and_most if kind == "glm5_next" else {}),
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "image_processor_type": images,
                "processor_class": whole,
            }
        )
    )
    return folder


def image(width: int, height: int, seed: int = 0) -> SourcedImage:
    """An image unlike any other, with a name."""
    return to_image(noise(width, height, seed), f"{seed}.png")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image unlike any other."""
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype="uint8")
    return Image.fromarray(values)


def oracle(folder: Path) -> Any:
    """transformers' own processor, without its part for videos, which needs torchvision."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    module, name = FAMILIES[kind].images
    image_processor = getattr(importlib.import_module(module), name).from_pretrained(folder)
    base: Any = Glm4vProcessor if kind in ("glm4v", "glm4v_moe") else Glm46VProcessor
    base = Glm5NextProcessor if kind == "glm5_next" else base

    class WithoutVideo(base):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def check_argument_for_proper_class(self, _name: str, argument: Any) -> type:
            return type(argument)

    words = PreTrainedTokenizerFast.from_pretrained(os.fspath(folder))
    return WithoutVideo(
        image_processor=image_processor,
        tokenizer=words,
        video_processor=None,
        chat_template=words.chat_template,
    )


def oracle_inputs(
    processor: Any, conversations: Sequence[Conversation], **options: Any
) -> dict[str, torch.Tensor]:
    """What transformers' own processor makes of conversations, padded on the left."""
    texts, images = [], []
    for conversation in conversations:
        messages = [
            {
                "role": message.role,
                "content": message.text
                if message.role != "user"
                else [
                    *({"type": "image"} for _ in message.images),
                    {"type": "text", "text": message.text},
                ],
            }
            for message in conversation.messages
        ]
        texts.append(
            processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **options
            )
        )
        images += [each.image for each in conversation.images]
    with warnings.catch_warnings():  # it makes arrays of tensors in a way that numpy deprecates
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return dict(
            processor(
                text=texts,
                images=images or None,
                padding=True,
                return_tensors="pt",
                add_special_tokens=False,
            )
        )


class Says:
    """Makes a model say a text, whatever it is asked, and end its turn as often as it may."""

    def __init__(self, engine, text):
        ids = engine.processor.tokenizer.encode(text, add_special_tokens=False)
        self.ids = [*ids, engine.processor.end_token_ids[0]]
        self.engine, self.step, self.was_prompt = engine, 0, False

    def __enter__(self):
        self.handle = self.engine.model.register_forward_hook(self.say, with_kwargs=True)

    def __exit__(self, *_exception):
        self.handle.remove()

    def say(self, _module, _args, given, output):
        is_prompt = given["input_ids"].shape[1] > 1
        # With states to keep, a prompt is read in two parts; the first has no next token.
        if is_prompt and self.was_prompt and self.engine.kept.is_recurrent:
            self.step -= 1
        self.was_prompt = is_prompt
        output.logits[:] = 0
        output.logits[..., self.ids[min(self.step, len(self.ids) - 1)]] = 1
        self.step += 1
        return output
