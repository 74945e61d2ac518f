"""Measure a checkpoint on scenes it never saw, through the code that users run.

``python -m training.evaluate [--per-kind 500] [CHECKPOINT]`` loads the checkpoint (the embedded
one by default) as `glm4v_magic` does, asks with its processor and its greedy `generate`, and
prints the exact-match accuracy for each kind of question.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from glm4v_magic.checkpoints import Loaded, resolve
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.model import DEMO
from glm4v_magic.images import SourcedImage
from training.drawing import draw_scene
from training.questions import CHINESE_KINDS, KINDS, NO_IMAGE, Exchange, Language, Split, ask
from training.scenes import MAX_SHAPES, Scene, SceneKind, rng_for, sample_scene

__all__ = ["answers", "cases", "main"]

_COLUMNS: dict[str, tuple[Split, int]] = {
    "1-3 shapes": ("trained", 3),
    f"1-{MAX_SHAPES} shapes": ("trained", MAX_SHAPES),
    "new phrasings, 1-3 shapes": ("held_out", 3),
}
_DIGIT_KINDS = ("digit", "digit colour")


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of question: what is asked in which language about which scenes."""

    name: str
    kind: str
    language: Language = "english"
    scenes: SceneKind = "shapes"
    image: bool = True


def cases() -> list[Case]:
    """Return every kind that the model is trained for."""
    english = [Case(k, k, scenes="digit" if k in _DIGIT_KINDS else "shapes") for k in KINDS]
    chinese = [
        Case(f"{k} (Chinese)", k, "chinese", "digit" if k in _DIGIT_KINDS else "shapes")
        for k in CHINESE_KINDS
    ]
    return [
        *english,
        Case("out of scope", "out of scope"),
        Case("noise", "colour", scenes="noise"),
        Case("no picture", "colour", image=False),
        *chinese,
        Case("out of scope (Chinese)", "out of scope", "chinese"),
        Case("noise (Chinese)", "colour", "chinese", scenes="noise"),
        Case("no picture (Chinese)", "colour", "chinese", image=False),
    ]


def exchanges(
    case: Case, count: int, seed: int, split: Split, most: int
) -> Iterator[tuple[Conversation, Exchange]]:
    """Yield `count` held-out questions of one case, each about an image of its own."""
    rng = rng_for("held-out", seed, most, sum(map(ord, case.name + split)))
    found = 0
    while found < count:
        scene = sample_scene(rng, case.scenes, (1, most))
        exchange = ask(rng, scene, case.kind, case.language, split)
        if exchange is None:
            continue
        found += 1
        images: tuple[SourcedImage, ...] = ()
        if case.image:
            images = (_sourced(scene, rng),)
        else:
            exchange = Exchange(case.kind, exchange.question, NO_IMAGE[case.language])
        yield Conversation((Message("user", exchange.question, images),)), exchange


def answers(loaded: Loaded, conversations: list[Conversation], batch: int = 50) -> list[str]:
    """Return greedy answers, `batch` conversations at a time."""
    texts: list[str] = []
    processor: Any = loaded.processor  # GLM-4V-9B's own encodes whole batches
    for start in range(0, len(conversations), batch):
        inputs: dict[str, Any] = processor(conversations[start : start + batch])
        with torch.inference_mode():
            ids = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=48)
        new = ids[:, inputs["input_ids"].shape[1] :].tolist()
        texts += [processor.decode(row).strip() for row in new]
    return texts


def accuracy(loaded: Loaded, case: Case, column: str, options: argparse.Namespace) -> float:
    """Return the exact-match accuracy; mistakes are printed with ``--mistakes``."""
    split, most = _COLUMNS[column]
    asked = list(exchanges(case, options.per_kind, options.seed, split, most))
    given = answers(loaded, [conversation for conversation, _ in asked])
    wrong = [
        (exchange, text)
        for (_, exchange), text in zip(asked, given, strict=True)
        if text != exchange.answer
    ]
    for exchange, text in wrong[: options.mistakes]:
        print(f"    {exchange.question!r}: {text!r}, not {exchange.answer!r}")
    return 1 - len(wrong) / len(asked)


def _sourced(scene: Scene, rng: random.Random) -> SourcedImage:
    image = draw_scene(scene, rng.choice((112, 224, 336, 448)))
    return SourcedImage(image, "held-out scene", image.size)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default=DEMO, help="folder or name")
    parser.add_argument("--per-kind", type=int, default=500, help="questions a kind and column")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", help="only these kinds")
    parser.add_argument("--mistakes", type=int, default=0, help="wrong answers to print a kind")
    options = parser.parse_args()
    loaded = resolve(options.checkpoint).load(dtype=torch.float32)
    loaded.model.generation_config.max_length = None  # `max_new_tokens` alone sets the length
    print("| kind | " + " | ".join(_COLUMNS) + " |")
    print("| --- |" + " ---: |" * len(_COLUMNS))
    for case in cases():
        if options.kinds and case.name not in options.kinds:
            continue
        shares = [accuracy(loaded, case, column, options) for column in _COLUMNS]
        cells = " | ".join(f"{share:.1%}" for share in shares)
        print(f"| {case.name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
