"""Batches of conversations about one image, two images or a clip."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.native.drawn import ImageBatch, drawn, image_batch, sampled, sampled_grid
from training.native.labels import labels_of
from training.native.network import Layout
from training.native.prompts import Writer
from training.native.questions import (
    CLIP_KINDS,
    IMAGE_KINDS,
    PAIR_KINDS,
    Clip,
    Exchange,
    ask_about_clip,
    ask_about_image,
    ask_about_pair,
    changed,
    sampled_clip,
)
from training.native.tokenizer import load
from training.questions import NO_IMAGE, Language
from training.scenes import Scene, rng_for

__all__ = ["ConversationBatch", "conversation_batches", "stamps"]

_TURNS = 5
_LATER = frozenset({"boxes", "difference", "mover", "out of scope", "description"})
"""Kinds that come up less at first."""


@dataclass(frozen=True, slots=True)
class ConversationBatch:
    """B conversations, each about its own images; or about none at all.

    `ids` and `targets` are ``[B, T]``; the images of a row follow each other.
    """

    images: ImageBatch | None
    layout: Layout
    ids: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Course:
    """What is being taught at some point of the training."""

    progress: float
    more: Mapping[str, float]
    chinese: float

    def most(self, rng: random.Random) -> int:
        """Return the greatest number of shapes in an image."""
        if self.progress < 0.08:
            return 2
        return 3 if self.progress < 0.25 or rng.random() < 0.7 else 4

    def language(self, rng: random.Random) -> Language:
        """Draw the language of a conversation."""
        share = self.chinese * min(1.0, 4 * self.progress)
        return "chinese" if rng.random() < share else "english"

    def kinds(self, rng: random.Random, weights: Mapping[str, float]) -> list[str]:
        """Draw more than enough kinds of questions."""
        others = min(1.0, 0.2 + 3 * self.progress)
        scaled = [
            weight * self.more.get(kind, 1.0) * (others if kind in _LATER else 1.0)
            for kind, weight in weights.items()
        ]
        return rng.choices(list(weights), scaled, k=3 * _TURNS)


def conversation_batches(
    folder: Path,
    length: int,
    more: Mapping[str, float],
    chinese: float,
    seed: int,
    size: int,
    progress: Synchronized[float],
) -> Iterator[ConversationBatch]:
    """Yield conversations; one image with few shapes comes first.

    Args:
        folder: of the tokenizer.
        length: tokens of a row without its images.
        more: factors for how often kinds come up.
        chinese: share of Chinese conversations once the basics are known.
        seed: of the random numbers.
        size: conversations in a batch.
        progress: how far the training is, from 0 to 1.
    """
    writer = Writer(load(folder))
    rng = rng_for("train-native", seed)
    while True:
        done = progress.value
        course = _Course(done, more, chinese)
        pairs, clips = (0.1, 0.0) if done < 0.06 else (0.42, 0.12)
        make = rng.choices((_about_images, _about_pairs, _about_clips, _about_nothing),
                           (1 - pairs - clips, pairs, clips, 0.02))[0]  # fmt: skip
        yield make(rng, writer, course, size, length)


def _talk(
    ask: Callable[[str], Exchange | None], kinds: list[str], turns: int = _TURNS
) -> list[Exchange]:
    """Ask up to `turns` different questions."""
    found: list[Exchange] = []
    for kind in kinds:
        exchange = ask(kind) if len(found) < turns else None
        if exchange and all(exchange.question != other.question for other in found):
            found.append(exchange)
    return found


def _about_images(
    rng: random.Random, writer: Writer, course: _Course, size: int, length: int
) -> ConversationBatch:
    grid = sampled_grid(rng)
    scenes: list[Scene] = []
    talks: list[list[Exchange]] = []
    while len(talks) < size:
        fewest = 0 if rng.random() < 0.05 else 1
        shapes = (fewest, course.most(rng))
        scene = sampled(rng, grid, shapes, alike=rng.random() < 0.15)
        language = course.language(rng)
        ask = functools.partial(_image_question, rng, scene, language)
        talk = _talk(ask, course.kinds(rng, IMAGE_KINDS[language]))
        if talk:
            scenes.append(scene)
            talks.append(talk)
    frames = [drawn(scene, grid, rng)[None] for scene in scenes]
    images = image_batch(frames, [labels_of(scene, *grid) for scene in scenes])
    shown = writer.images(1, grid[0] * grid[1] // 4)
    return _batch(rng, writer, talks, shown, images, grid, length)


def _image_question(
    rng: random.Random, scene: Scene, language: Language, kind: str
) -> Exchange | None:
    return ask_about_image(rng, scene, kind, language)


def _about_pairs(
    rng: random.Random, writer: Writer, course: _Course, size: int, length: int
) -> ConversationBatch:
    grid = sampled_grid(rng)
    pairs: list[tuple[Scene, Scene]] = []
    talks: list[list[Exchange]] = []
    while len(talks) < size:
        most = min(3, course.most(rng))
        one = sampled(rng, grid, (1, most), alike=rng.random() < 0.1)
        is_near = rng.random() < 0.4
        other = changed(rng, one) if is_near else sampled(rng, grid, (1, most), alike=False)
        # Which comes first must not tell where something is missing.
        pair = (one, other) if rng.random() < 0.5 else (other, one)
        language = course.language(rng)
        ask = functools.partial(_pair_question, rng, pair, language)
        talk = _talk(ask, course.kinds(rng, PAIR_KINDS[language]))
        if talk:
            pairs.append(pair)
            talks.append(talk)
    scenes = [scene for pair in pairs for scene in pair]
    frames = [drawn(scene, grid, rng)[None] for scene in scenes]
    images = image_batch(frames, [labels_of(scene, *grid) for scene in scenes])
    shown = writer.images(2, grid[0] * grid[1] // 4)
    return _batch(rng, writer, talks, shown, images, grid, length)


def _pair_question(
    rng: random.Random, pair: tuple[Scene, Scene], language: Language, kind: str
) -> Exchange | None:
    return ask_about_pair(rng, pair, kind, language)


def stamps(count: int, rate: float) -> list[str]:
    """Return the times of `count` pairs of frames, `rate` frames a second, as prompts have them."""
    return [f"{2 * index / rate:.1f} seconds" for index in range(count)]


def _about_clips(
    rng: random.Random, writer: Writer, course: _Course, size: int, length: int
) -> ConversationBatch:
    grid = sampled_grid(rng)
    count, rate = rng.choice((2, 2, 3, 4)), rng.choice((1, 2, 2, 4, 6))
    clips: list[Clip] = []
    talks: list[list[Exchange]] = []
    while len(talks) < size:
        scene = sampled(rng, grid, (1, 2), alike=False)
        clip = sampled_clip(rng, scene, 2 * count)
        if clip is None:
            continue
        ask = functools.partial(ask_about_clip, rng, clip)
        talks.append(_talk(ask, course.kinds(rng, CLIP_KINDS), 2))
        clips.append(clip)
    frames, labels = [], []
    for clip in clips:
        for first, second in zip(clip.frames[::2], clip.frames[1::2], strict=True):
            frames.append(np.stack([drawn(first, grid, rng), drawn(second, grid, rng)]))
            labels.append(labels_of(first, *grid))
    shown = writer.clip(stamps(count, rate), grid[0] * grid[1] // 4)
    return _batch(rng, writer, talks, shown, image_batch(frames, labels), grid, length)


def _about_nothing(
    rng: random.Random, writer: Writer, course: _Course, size: int, length: int
) -> ConversationBatch:
    grid = (8, 8)
    talks: list[list[Exchange]] = []
    while len(talks) < size:
        language = course.language(rng)
        scene = sampled(rng, grid, (1, 2), alike=False)
        ask = functools.partial(_image_question, rng, scene, language)
        talk = _talk(ask, course.kinds(rng, IMAGE_KINDS[language]), 2)
        thought = "There is no picture." if language == "english" else "没有图片。"
        talks.append([replace(e, thought=thought, answer=NO_IMAGE[language]) for e in talk])
    return _batch(rng, writer, talks, [], None, grid, length)


def _batch(
    rng: random.Random,
    writer: Writer,
    talks: list[list[Exchange]],
    shown: list[int],
    images: ImageBatch | None,
    grid: tuple[int, int],
    length: int,
) -> ConversationBatch:
    ids, targets = writer.rows(rng, talks, shown, length)
    layout = Layout(writer.starts(shown), grid[0] // 2, grid[1] // 2)
    return ConversationBatch(images, layout, ids, targets)
