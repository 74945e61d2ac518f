"""Batches of images and labels, made by a worker process beside the training."""

from __future__ import annotations

import itertools
import multiprocessing
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from training.configuration import IMAGE_SIZE
from training.drawing import render
from training.labels import dense_labels
from training.prompts import rows
from training.questions import NO_IMAGE, Exchange, Language, conversation
from training.scenes import MAX_SHAPES, Scene, SceneKind, rng_for, sample_scene
from training.tokenizer import Tokenizer

__all__ = [
    "ConversationBatch",
    "ImageBatch",
    "Stream",
    "conversation_batches",
    "image_batches",
    "stream",
]

Batch = TypeVar("Batch")

_SEEDS = 1 << 20  # from the seed of a worker to that of the next


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """B images ``[B, S, S, 3]`` with dense labels (see `training.labels`)."""

    images: npt.NDArray[np.uint8]
    patches: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_]
    cells: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ConversationBatch:
    """B conversations, each about its own image; or about none at all.

    `ids` and `targets` are ``[B, T]``; the loss ignores targets of -100.
    """

    images: ImageBatch | None
    ids: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]


def labelled(scenes: list[Scene], rng: random.Random) -> ImageBatch:
    """Draw and label `scenes`."""
    labels = [dense_labels(scene) for scene in scenes]
    return ImageBatch(
        np.stack([np.asarray(render(scene, IMAGE_SIZE, rng)) for scene in scenes]),
        np.stack([label.patches for label in labels]),
        np.stack([label.masks for label in labels]),
        np.stack([label.cells for label in labels]),
    )


def image_batches(seed: int, size: int, progress: Synchronized[float]) -> Iterator[ImageBatch]:
    """Yield crowded images, since each labelled cell teaches the tower something."""
    rng = rng_for("train-tower", seed)
    kinds: tuple[SceneKind, ...] = ("shapes", "digit", "blank", "noise")
    while True:
        scenes = []
        for kind in rng.choices(kinds, (78, 16, 2, 4), k=size):
            crowded = rng.random() < 0.7
            shapes = (3, MAX_SHAPES + 1) if crowded else (1, 3)
            scenes.append(sample_scene(rng, kind, shapes))
        yield labelled(scenes, rng)


def conversation_batches(
    tokenizer_file: Path,
    length: int,
    more: Mapping[str, float],
    chinese: float,
    alike: float,
    seed: int,
    size: int,
    progress: Synchronized[float],
) -> Iterator[ConversationBatch]:
    """Yield conversations of up to `length` tokens; easy scenes come first, crowded ones later.

    `more` holds factors for how often kinds come up, `chinese` the share of the conversations that
    are in Chinese once the basics are known, `alike` that of images whose shapes differ in colour
    only.
    """
    tokenizer = Tokenizer.load(tokenizer_file)
    rng = rng_for("train-whole", seed)
    while True:
        talks: list[list[Exchange]] = []
        scenes: list[Scene] = []
        while len(talks) < size:
            scene = _sample_for(rng, progress.value, alike)
            others = min(1.0, max(0.1, 2 * progress.value - 0.1))
            language: Language = "chinese" if rng.random() < chinese * others else "english"
            talk = conversation(rng, scene, 6, language, others=others, more=more)
            if talk:
                talks.append(talk)
                scenes.append(scene)
        shown = rng.random() > 0.02 * progress.value
        if not shown:
            talks = [_without_image(talk) for talk in talks]
        ids, targets = rows(tokenizer, talks, length, image=shown)
        yield ConversationBatch(labelled(scenes, rng) if shown else None, ids, targets)


def _sample_for(rng: random.Random, progress: float, alike: float) -> Scene:
    most = 2 if progress < 0.08 else 3 if progress < 0.25 or rng.random() < 0.7 else MAX_SHAPES
    return sample_scene(rng, shapes=(1, most), alike=rng.random() < alike)


def _without_image(talk: list[Exchange]) -> list[Exchange]:
    chinese = not talk[0].question.isascii()
    answer = NO_IMAGE["chinese" if chinese else "english"]
    return [Exchange("no picture", exchange.question, answer) for exchange in talk]


class Stream(Generic[Batch]):
    """Batches of workers in turn; `progress` in [0, 1] tells them how far the training is."""

    def __init__(
        self, queues: Sequence[multiprocessing.Queue[Batch]], progress: Synchronized[float]
    ) -> None:
        self._turns = itertools.cycle(queues)
        self._progress = progress

    def next(self, progress: float) -> Batch:
        self._progress.value = progress
        return next(self._turns).get()


@contextmanager
def stream(
    make: Callable[[int, int, Synchronized[float]], Iterator[Batch]],
    seed: int,
    size: int,
    workers: int = 1,
) -> Iterator[Stream[Batch]]:
    """Run ``make(seed, size, progress)`` in processes of their own; yield batches as a stream.

    Each worker has a seed of its own, the first one `seed`; their batches come in turn.
    """
    context = multiprocessing.get_context("spawn")
    progress = context.Value("d", 0.0)
    queues: list[multiprocessing.Queue[Batch]] = [context.Queue(8) for _ in range(workers)]
    started = [
        context.Process(
            target=_work, args=(make, seed + index * _SEEDS, size, queue, progress), daemon=True
        )
        for index, queue in enumerate(queues)
    ]
    for worker in started:
        worker.start()
    try:
        yield Stream(queues, progress)
    finally:
        # Nobody reads the queues after this: a killed writer leaves its own unusable.
        for worker in started:
            worker.kill()
            worker.join()


def _work(
    make: Callable[[int, int, Synchronized[float]], Iterator[Batch]],
    seed: int,
    size: int,
    queue: multiprocessing.Queue[Batch],
    progress: Synchronized[float],
) -> None:
    for batch in make(seed, size, progress):
        queue.put(batch)
