"""Measure the second demo on scenes it never saw, through the code that users run.

``python -m training.native.evaluate [--per-kind 300] [CHECKPOINT]`` loads the checkpoint (the
embedded one by default) as `glm4v_magic` does, asks with its processor and decodes greedily, with
thinking and without, and prints for each kind of question how many answers are exactly right. Of
boxes it prints the mean intersection over union, which is 0 where a box is missing or too many.
"""

from __future__ import annotations

import argparse
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

import glm4v_magic
from glm4v_magic.calls.boxes import marks
from glm4v_magic.core.boxes import Box
from glm4v_magic.core.conversation import Conversation, Message, Request
from glm4v_magic.core.events import Finished
from glm4v_magic.core.model import NATIVE_DEMO
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import Engine
from glm4v_magic.images import SourcedImage
from glm4v_magic.images.video import to_video
from training.drawing import draw_scene
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
from training.questions import NO_IMAGE, Language, Split
from training.scenes import Scene, rng_for

__all__ = ["Case", "Question", "cases", "main", "overlap", "questions", "scores"]

_BOXED = frozenset({"box", "box in", "boxes"})
_LANGUAGES: tuple[tuple[Language, str], ...] = (("english", ""), ("chinese", " (Chinese)"))
_COLUMNS: dict[str, tuple[Split, bool]] = {
    "as trained": ("trained", False),
    "thinking": ("trained", True),
    "new phrasings": ("held_out", False),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its images, or the frames of its clip, and the right answer."""

    exchange: Exchange
    images: tuple[Image.Image, ...] = ()
    frames: tuple[Image.Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of question and how to make one: ``None`` where a scene does not fit."""

    name: str
    make: Callable[[random.Random, Split], Question | None]
    is_boxed: bool = False


def cases() -> list[Case]:
    """Return every kind that the model is trained for."""
    found: list[Case] = []
    for language, suffix in _LANGUAGES:
        for kinds, make in ((IMAGE_KINDS, _of_image), (PAIR_KINDS, _of_pair)):
            for kind in kinds[language]:
                bound = functools.partial(make, kind, language)
                found.append(Case(f"{kind}{suffix}", bound, kind in _BOXED))
    found += [Case(kind, functools.partial(_of_clip, kind)) for kind in CLIP_KINDS]
    return [*found, Case("no image", _of_nothing)]


def _drawn(rng: random.Random, *scenes: Scene) -> tuple[Image.Image, ...]:
    return tuple(draw_scene(scene, rng.choice((112, 224, 336, 448))) for scene in scenes)


def _of_image(kind: str, language: Language, rng: random.Random, split: Split) -> Question | None:
    scene = sampled(rng, sampled_grid(rng), (1, 3), alike=False)
    exchange = ask_about_image(rng, scene, kind, language, split)
    return None if exchange is None else Question(exchange, _drawn(rng, scene))


def _of_pair(kind: str, language: Language, rng: random.Random, split: Split) -> Question | None:
    grid = sampled_grid(rng)
    one = sampled(rng, grid, (1, 3), alike=False)
    is_near = kind == "difference" or rng.random() < 0.3
    other = changed(rng, one) if is_near else sampled(rng, grid, (1, 3), alike=False)
    pair = (one, other) if rng.random() < 0.5 else (other, one)
    exchange = ask_about_pair(rng, pair, kind, language, split)
    return None if exchange is None else Question(exchange, _drawn(rng, *pair))


def _of_clip(kind: str, rng: random.Random, split: Split) -> Question | None:
    scene = sampled(rng, (8, 8), (1, 2), alike=False)
    clip = sampled_clip(rng, scene, rng.choice((4, 6)))
    if clip is None:
        return None
    exchange = ask_about_clip(rng, clip, kind, split)
    if exchange is None:
        return None
    side = rng.choice((112, 224, 336))
    return Question(exchange, frames=tuple(draw_scene(each, side) for each in clip.frames))


def _of_nothing(rng: random.Random, split: Split) -> Question | None:
    scene = sampled(rng, (8, 8), (1, 3), alike=False)
    exchange = ask_about_image(rng, scene, "colour", "english", split)
    if exchange is None:
        return None
    answer = NO_IMAGE["english"]
    return Question(Exchange(exchange.kind, exchange.question, exchange.thought, answer))


def questions(case: Case, count: int, seed: int, split: Split) -> Iterator[Question]:
    """Yield `count` held-out questions of one case, each about images of its own."""
    rng = rng_for("held-out-native", seed, sum(map(ord, case.name + split)))
    while count:
        question = case.make(rng, split)
        if question is not None:
            count -= 1
            yield question


def overlap(found: Sequence[Box], right: Sequence[Box]) -> float:
    """Return the mean intersection over union of boxes in order; 0 for each that has no partner."""
    pairs = zip(found, right, strict=False)
    total = sum(_overlap(one, other) for one, other in pairs)
    return total / max(len(found), len(right), 1)


def _overlap(one: Box, other: Box) -> float:
    if one.image != other.image:
        return 0.0
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box.x1 - box.x0) * (box.y1 - box.y0) for box in (one, other)]
    return shared / (sum(areas) - shared)


def scores(
    engine: Engine, asked: Sequence[Question], *, thinking: bool, is_boxed: bool
) -> list[float]:
    """Ask with greedy decoding; return 1 for each right answer, or the overlap of its boxes."""
    sampling = Sampling(max_tokens=200, temperature=0, thinking=thinking)
    requests = [Request(_conversation(each), sampling) for each in asked]
    said = {
        event.row: event.generation.text
        for event in engine.stream(requests, at_once=32)
        if isinstance(event, Finished)
    }
    found = []
    for row, question in enumerate(asked):
        sizes = [each.size for each in question.images]
        right, given = (marks(t, sizes).boxes for t in (question.exchange.answer, said[row]))
        if is_boxed and right:
            found.append(overlap(given, right))
        else:
            found.append(float(said[row] == question.exchange.answer))
    return found


def _conversation(question: Question) -> Conversation:
    images = tuple(SourcedImage(each, "held-out", each.size) for each in question.images)
    videos = (to_video(list(question.frames), "held-out", fps=2.0),) if question.frames else ()
    return Conversation((Message("user", question.exchange.question, images, videos=videos),))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default=NATIVE_DEMO, help="folder or name")
    parser.add_argument("--per-kind", type=int, default=300, help="questions a kind and column")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", help="only these kinds")
    options = parser.parse_args()
    engine = glm4v_magic.load(options.checkpoint, gpus="cpu").engine
    assert engine is not None
    print("| kind | " + " | ".join(_COLUMNS) + " |")
    print("| --- |" + " ---: |" * len(_COLUMNS))
    for case in cases():
        if options.kinds and case.name not in options.kinds:
            continue
        cells = []
        for split, thinking in _COLUMNS.values():
            asked = list(questions(case, options.per_kind, options.seed, split))
            found = scores(engine, asked, thinking=thinking, is_boxed=case.is_boxed)
            mean = sum(found) / len(found)
            cells.append(f"{mean:.3f} IoU" if case.is_boxed else f"{mean:.1%}")
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
