"""A byte-level BPE in transformers' files, with GLM-4's pattern and its special tokens."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from glm4v_magic.checkpoints.glm4v_9b.processing import PATTERN
from training.native.configuration import (
    BINS,
    CHAT_TEMPLATE,
    PALETTE,
    SPECIAL_TOKENS,
    STEP,
    TAGS,
)
from training.native.drawn import sampled, sampled_grid
from training.native.questions import (
    CLIP_KINDS,
    IMAGE_KINDS,
    PAIR_KINDS,
    Exchange,
    ask_about_clip,
    ask_about_image,
    ask_about_pair,
    changed,
    sampled_clip,
)
from training.phrases import CHINESE_COLOURS, CHINESE_SHAPES
from training.questions import CANNOT_TELL, NO_IMAGE, Language
from training.scenes import rng_for

__all__ = ["EDGES", "load", "save", "trained"]

EDGES = tuple(str(STEP * step + STEP // 2) for step in range(BINS))
"""What an edge of a box may be, each one token."""

_CHINESE = (
    *CHINESE_COLOURS.values(), *CHINESE_SHAPES.values(), "图形", "形状", "图中", "图片", "颜色",
    "什么", "没有", "多少", "背景", "哪里",
)  # fmt: skip
_LANGUAGES: tuple[Language, ...] = ("english", "chinese")


def trained(seed: int, size: int, scenes: int = 3000) -> PreTrainedTokenizerFast:
    """Return a tokenizer of `size` tokens, special ones included, for questions and answers."""
    plain = Tokenizer(BPE())
    plain.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL_TOKENS) - len(TAGS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain.train_from_iterator(_texts(seed, scenes), trainer)
    plain.add_special_tokens([AddedToken(each, normalized=False) for each in SPECIAL_TOKENS])
    plain.add_tokens([AddedToken(each, normalized=False) for each in TAGS])
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        **dict.fromkeys(("pad_token", "eos_token"), "<|endoftext|>"),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def load(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a checkpoint folder."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer's files, without what `load` has noted of where they came from."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    kept = {name: value for name, value in described.items() if "local" not in name}
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _texts(seed: int, scenes: int) -> Iterator[str]:
    rng = rng_for("native-tokenizer", seed)
    names = [*PALETTE.colours, *PALETTE.shapes, *(f"{each}s" for each in PALETTE.shapes)]
    for edge in EDGES:
        yield from [edge] * (20 * scenes)
    for name in (*names, "crosses"):
        yield from [f"{name} The {name} {name.capitalize()}"] * (scenes // 10)
    for word in _CHINESE:
        yield from [word] * (scenes // 10)
    for word in ("/nothink", "?/", ".", "/", "0.5 seconds", "Nothing moves"):
        yield from [word] * scenes
    for exchange in _exchanges(rng, scenes):
        for text in (exchange.question, exchange.thought, exchange.answer):
            # Chinese is written without spaces: free merges would cut a word by its neighbours.
            yield from re.findall("|".join(_CHINESE) + r"|[\u3000-\uffef]|[^\u3000-\uffef]+", text)
    for answers in (CANNOT_TELL, NO_IMAGE):
        yield from [answers["english"]] * (scenes // 10)


def _exchanges(rng: random.Random, scenes: int) -> Iterator[Exchange]:
    for _ in range(scenes):
        grid = sampled_grid(rng)
        one, two = (sampled(rng, grid, (0, 3), alike=False) for _ in range(2))
        language = rng.choices(_LANGUAGES, (4, 1))[0]
        found = [ask_about_image(rng, one, kind, language) for kind in IMAGE_KINDS[language]]
        pair = (one, changed(rng, one)) if rng.random() < 0.4 else (one, two)
        found += [ask_about_pair(rng, pair, kind, language) for kind in PAIR_KINDS[language]]
        clip = sampled_clip(rng, one, 4)
        if clip is not None:
            found += [ask_about_clip(rng, clip, kind) for kind in CLIP_KINDS]
        yield from (each for each in found if each is not None)
