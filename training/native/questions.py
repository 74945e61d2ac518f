"""Questions about an image, two images or a clip, with their thoughts and answers.

What is asked about one image comes from `training.questions`; boxes, comparisons and motion are
here. Every answer repeats what was asked, so that a wrong binding is visible; the thoughts list
what there is to see.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from training import questions
from training.native import phrases
from training.native.labels import box_of
from training.phrases import CHINESE_COLOURS, CHINESE_SHAPES
from training.questions import (
    Language,
    Split,
    chinese_name,
    in_reading_order,
    missing,
    name_of,
    only,
    present,
    typed,
    with_article,
)
from training.scenes import Item, Scene, stands_out, tint

__all__ = [
    "CLIP_KINDS",
    "IMAGE_KINDS",
    "PAIR_KINDS",
    "Clip",
    "Exchange",
    "ask_about_clip",
    "ask_about_image",
    "ask_about_pair",
    "changed",
    "sampled_clip",
]

_BOX = "<|begin_of_box|>[[{},{},{},{}]]<|end_of_box|>"
_IMAGES = (("image 1", "the first image"), ("image 2", "the second image"))
_DIRECTIONS = {"to the right": (1, 0), "to the left": (-1, 0), "up": (0, -1), "down": (0, 1)}
_SPREAD = 0.28  # least way of a moving shape, as a share of the image

IMAGE_KINDS: Mapping[Language, Mapping[str, float]] = {
    "english": {
        "colour": 1.0, "shape": 0.8, "existence": 1.5, "background": 0.4, "count": 1.0,
        "absent": 0.4, "description": 0.5, "box": 2.2, "boxes": 0.7, "out of scope": 0.4,
    },
    "chinese": {
        "colour": 1.0, "shape": 0.8, "existence": 1.3, "background": 0.3, "count": 0.8,
        "absent": 0.3, "box": 1.2, "out of scope": 0.3,
    },
}  # fmt: skip
"""How often each kind is asked about one image."""

PAIR_KINDS: Mapping[Language, Mapping[str, float]] = {
    "english": {
        "which image": 1.4, "more": 1.0, "colour in": 1.2, "count in": 0.9, "box in": 1.2,
        "difference": 1.4,
    },
    "chinese": {"which image": 1.0, "more": 0.7},
}  # fmt: skip
CLIP_KINDS: Mapping[str, float] = {"motion": 1.5, "mover": 0.7}


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, what is to be thought about it, and its answer."""

    kind: str
    question: str
    thought: str
    answer: str


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames of a scene in which at most one shape moves.

    Attributes:
        frames: the scene at each time.
        mover: the shape that moves, as it is in the first frame.
        direction: which way it moves; empty if it does not.
    """

    frames: tuple[Scene, ...]
    mover: Item
    direction: str


@dataclass(frozen=True, slots=True)
class _Said:
    """The fields of a phrase and the answer."""

    fields: dict[str, str]
    answer: str


def ask_about_image(
    rng: random.Random,
    scene: Scene,
    kind: str,
    language: Language = "english",
    split: Split = "trained",
) -> Exchange | None:
    """Ask a question of `kind` about one image; ``None`` if it does not fit."""
    thought = ("I see " if language == "english" else "图中有") + _listed(scene, language)
    if kind not in ("box", "boxes"):
        said = questions.ask(rng, scene, kind, language, split)
        if said is None:
            return None
        if kind == "out of scope":
            thought = "This is no question about shapes." if language == "english" else "不知道。"
        return Exchange(kind, said.question, thought, said.answer)
    asker = _boxes if kind == "boxes" else (_box if language == "english" else _chinese_box)
    return _phrased(rng, kind, asker(rng, scene), language, split, thought)


def ask_about_pair(
    rng: random.Random,
    pair: tuple[Scene, Scene],
    kind: str,
    language: Language = "english",
    split: Split = "trained",
) -> Exchange | None:
    """Ask a question of `kind` about two images; ``None`` if it does not fit."""
    askers = _PAIR_ASKERS if language == "english" else _CHINESE_PAIR_ASKERS
    one, other = (_listed(scene, language) for scene in pair)
    names = ("Image 1", "Image 2") if language == "english" else ("图1", "图2")
    thought = f"{names[0]}: {one} {names[1]}: {other}"
    return _phrased(rng, kind, askers[kind](rng, pair), language, split, thought)


def ask_about_clip(
    rng: random.Random, clip: Clip, kind: str, split: Split = "trained"
) -> Exchange | None:
    """Ask a question of `kind` about a clip; ``None`` if it does not fit."""
    mover = clip.mover
    motion = f"moves {clip.direction}" if clip.direction else "does not move"
    last = next(
        each for each in clip.frames[-1].items if (each.name, each.rgb) == (mover.name, mover.rgb)
    )
    places = f"{_percent(mover)} to {_percent(last)}."
    thought = f"The {mover.shape} goes from {places}"
    if kind == "motion":
        said = _Said({"shape": mover.shape}, f"The {mover.shape} {motion}.")
    elif clip.direction:
        said = _Said({}, f"The {mover.name} {motion}.")
    else:
        said = _Said({}, "Nothing moves.")
    return _phrased(rng, kind, said, "english", split, thought)


def _percent(item: Item) -> str:
    """Return a centre as whole tenths of the image, such as ``(3, 7)``."""
    return f"({int(item.x * 10)}, {int(item.y * 10)})"


def _phrased(
    rng: random.Random,
    kind: str,
    said: _Said | None,
    language: Language,
    split: Split,
    thought: str,
) -> Exchange | None:
    if said is None:
        return None
    table = phrases.ENGLISH if language == "english" else phrases.CHINESE
    template = rng.choice(getattr(table[kind], split))
    return Exchange(kind, typed(rng, template.format(**said.fields)), thought, said.answer)


def _listed(scene: Scene, language: Language) -> str:
    if language == "chinese":
        return f"{'、'.join(map(chinese_name, in_reading_order(scene))) or '零个图形'}。"
    things = [with_article(item.name) for item in in_reading_order(scene)] or ["no shape"]
    return f"{', '.join(things)}."


def _called(rng: random.Random, scene: Scene) -> tuple[Item, str] | None:
    """Choose a thing and a name that no other thing has: all of it, its shape or its colour."""
    names: list[tuple[Item, str]] = [(item, item.name) for item in only(scene.items, name_of)]
    if rng.random() < 0.4:
        names = [(item, item.shape) for item in only(scene.items, lambda each: each.shape)]
    if rng.random() < 0.15:
        found = only(scene.items, lambda each: each.colour)
        names = [(item, f"{item.colour} shape") for item in found]
    return rng.choice(names) if names else None


def _boxed(item: Item, scene: Scene) -> str:
    return _BOX.format(*box_of(item, scene.aspect))


def _box(rng: random.Random, scene: Scene) -> _Said | None:
    if rng.random() < 0.12:
        absent = missing(rng, scene)
        return None if absent is None else _Said({"thing": absent}, f"There is no {absent}.")
    called = _called(rng, scene)
    if called is None:
        return None
    item, name = called
    return _Said({"thing": name}, f"The {name} is at {_boxed(item, scene)}.")


def _chinese_box(rng: random.Random, scene: Scene) -> _Said | None:
    known = only(scene.items, name_of)
    if not known:
        return None
    item = rng.choice(known)
    named = chinese_name(item)
    return _Said({"thing": named}, f"{named}在{_boxed(item, scene)}。")


def _boxes(rng: random.Random, scene: Scene) -> _Said | None:
    if len(scene.items) > 3:
        return None
    if not scene.items:
        return _Said({}, "There are no shapes.")
    found = [
        {"bbox_2d": list(box_of(item, scene.aspect)), "label": item.name}
        for item in in_reading_order(scene)
    ]
    return _Said({}, json.dumps(found, separators=(",", ":")))


def _which_image(rng: random.Random, pair: tuple[Scene, Scene]) -> _Said | None:
    wanted = rng.choice(pair)
    thing = present(rng, wanted) if wanted.items and rng.random() < 0.85 else missing(rng, wanted)
    if thing is None:
        return None
    return _Said({"a_thing": with_article(thing), "thing": thing}, _who_shows(pair, thing))


def _shows(scene: Scene, thing: str) -> bool:
    words = thing.split()
    return any(all(w in (item.colour, item.shape, "shape") for w in words) for item in scene.items)


def _who_shows(pair: tuple[Scene, Scene], thing: str) -> str:
    one, other = (_shows(scene, thing) for scene in pair)
    if one and other:
        return f"Both images show {with_article(thing)}."
    if not one and not other:
        return f"Neither image shows {with_article(thing)}."
    return f"Image {1 if one else 2} shows {with_article(thing)}."


def _more(rng: random.Random, pair: tuple[Scene, Scene]) -> _Said:
    one, other = (len(scene.items) for scene in pair)
    if one == other:
        return _Said({}, "Both images show the same number of shapes.")
    return _Said({}, f"Image {1 if one > other else 2} shows more shapes.")


def _one_of(rng: random.Random, pair: tuple[Scene, Scene]) -> tuple[Scene, int, str]:
    index = rng.randrange(2)
    return pair[index], index + 1, rng.choice(_IMAGES[index])


def _colour_in(rng: random.Random, pair: tuple[Scene, Scene]) -> _Said | None:
    scene, number, image = _one_of(rng, pair)
    known = only(scene.items, lambda each: each.shape)
    if not known:
        return None
    item = rng.choice(known)
    answer = f"The {item.shape} in image {number} is {item.colour}."
    return _Said({"shape": item.shape, "image": image}, answer)


def _count_in(rng: random.Random, pair: tuple[Scene, Scene]) -> _Said:
    scene, number, image = _one_of(rng, pair)
    count = len(scene.items)
    amount = "is 1 shape" if count == 1 else f"are {count} shapes"
    return _Said({"image": image}, f"There {amount} in image {number}.")


def _box_in(rng: random.Random, pair: tuple[Scene, Scene]) -> _Said | None:
    scene, number, image = _one_of(rng, pair)
    called = _called(rng, scene)
    if called is None:
        return None
    item, name = called
    # The number stands before the box, where a reader looks for its image.
    answer = f"Image {number}: the {name} is at {_boxed(item, scene)}."
    return _Said({"thing": name, "image": image}, answer)


def changed(rng: random.Random, scene: Scene) -> Scene:
    """Return a scene that differs from another in one shape, or, now and then, in none."""
    items = list(scene.items)
    if not items or rng.random() < 0.12:
        return scene
    index = rng.randrange(len(items))
    if rng.random() < 0.4:
        del items[index]
        return replace(scene, items=tuple(items))
    items[index] = _recoloured(rng, scene, items[index])
    return replace(scene, items=tuple(items))


def _recoloured(rng: random.Random, scene: Scene, item: Item) -> Item:
    colours = [
        each
        for each in scene.palette.colours
        if each != item.colour and stands_out(each, scene.background)
    ]
    colour = rng.choice(colours)
    return replace(item, colour=colour, rgb=tint(rng, colour, 10))


def _difference(rng: random.Random, pair: tuple[Scene, Scene]) -> _Said | None:
    one, other = pair
    first, second = list(one.items), list(other.items)
    gone = [each for each in first if each not in second]
    new = [each for each in second if each not in first]
    if not gone and not new:
        return _Said({}, "The images are the same.")
    if len(gone) + len(new) == 1:
        item, number = (gone[0], 1) if gone else (new[0], 2)
        return _Said({}, f"The {item.name} is only in image {number}.")
    if len(gone) == len(new) == 1 and (gone[0].x, gone[0].y) == (new[0].x, new[0].y):
        before, after = gone[0], new[0]
        answer = f"The {before.shape} is {before.colour} in image 1 and {after.colour} in image 2."
        return _Said({}, answer)
    return None


def _chinese_more(rng: random.Random, pair: tuple[Scene, Scene]) -> _Said:
    one, other = (len(scene.items) for scene in pair)
    if one == other:
        return _Said({}, "两张图片的图形一样多。")
    return _Said({}, f"图{1 if one > other else 2}的图形更多。")


def _chinese_which_image(rng: random.Random, pair: tuple[Scene, Scene]) -> _Said | None:
    wanted = rng.choice(pair)
    if not wanted.items:
        return None
    item = rng.choice(wanted.items)
    named = f"{CHINESE_COLOURS[item.colour]}的{CHINESE_SHAPES[item.shape]}"
    shown = [index for index, scene in enumerate(pair, 1) if _shows(scene, item.name)]
    where = "两张图片都" if len(shown) == 2 else f"图{shown[0]}"
    return _Said({"thing": named}, f"{where}有{named}。")


_Asker = Callable[[random.Random, tuple[Scene, Scene]], _Said | None]
_PAIR_ASKERS: Mapping[str, _Asker] = {
    "which image": _which_image,
    "more": _more,
    "colour in": _colour_in,
    "count in": _count_in,
    "box in": _box_in,
    "difference": _difference,
}
_CHINESE_PAIR_ASKERS: Mapping[str, _Asker] = {
    "which image": _chinese_which_image,
    "more": _chinese_more,
}


def sampled_clip(rng: random.Random, scene: Scene, count: int) -> Clip | None:
    """Let one shape of a scene move through `count` frames; ``None`` if there is no room."""
    if not scene.items:
        return None
    known = only(scene.items, lambda each: each.shape)
    if not known:
        return None
    mover = rng.choice(known)
    if rng.random() < 0.15:
        return Clip((scene,) * count, mover, "")
    direction = rng.choice(list(_DIRECTIONS))
    dx, dy = _DIRECTIONS[direction]
    margin_x, margin_y = (
        mover.radius / max(1.0, scene.aspect),
        mover.radius * min(1.0, scene.aspect),
    )
    room = max(
        (1 - margin_x - mover.x if dx > 0 else mover.x - margin_x) * abs(dx),
        (1 - margin_y - mover.y if dy > 0 else mover.y - margin_y) * abs(dy),
    )
    if room < _SPREAD:
        return None
    way = rng.uniform(_SPREAD, room)
    rest = tuple(each for each in scene.items if each is not mover)
    frames = []
    for index in range(count):
        done = way * index / (count - 1)
        moved = replace(mover, x=mover.x + dx * done, y=mover.y + dy * done)
        frames.append(replace(scene, items=(*rest, moved)))
    return Clip(tuple(frames), mover, direction)
