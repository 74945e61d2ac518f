"""Questions about a scene with their answers.

Every answer repeats what was asked ("The circle is red."), so that a wrong binding is visible.
`ask` returns nothing where a kind does not fit the scene or has more than one right answer.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from training.phrases import (
    CHINESE,
    CHINESE_COLOURS,
    CHINESE_SHAPES,
    CHINESE_SIDES,
    ENGLISH,
    OUT_OF_SCOPE,
    OUT_OF_SCOPE_FIELDS,
)
from training.scenes import COLOURS, LARGE_FROM, SHAPES, SMALL_UP_TO, Item, Scene

__all__ = [
    "CANNOT_TELL",
    "CHINESE_KINDS",
    "KINDS",
    "NO_IMAGE",
    "Exchange",
    "Language",
    "Split",
    "ask",
    "chinese_name",
    "conversation",
    "in_reading_order",
    "missing",
    "name_of",
    "only",
    "plural",
    "present",
    "typed",
    "with_article",
]

Language = Literal["english", "chinese"]
Split = Literal["trained", "held_out"]

CANNOT_TELL: dict[Language, str] = {
    "english": "I can't tell from this picture.",
    "chinese": "我从这张图片中看不出来。",
}
NO_IMAGE: dict[Language, str] = {
    "english": "Please show me a picture.",
    "chinese": "请给我一张图片。",
}

_WHERE = ("", "", "", " in the picture", " in this picture", " in the image", " here")
_ZONES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
_CHINESE_ZONES = (
    ("左上角", "上方", "右上角"),
    ("左侧", "中间", "右侧"),
    ("左下角", "下方", "右下角"),
)
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question with its answer."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Said:
    """What a kind fills into its phrases, and the answer; `phrases` names them."""

    phrases: str
    fields: dict[str, str]
    answer: str


def conversation(
    rng: random.Random,
    scene: Scene,
    turns: int,
    language: Language = "english",
    *,
    others: float = 1.0,
    more: Mapping[str, float] | None = None,
) -> list[Exchange]:
    """Return up to `turns` different questions about `scene`, phrased as for training.

    `others` in [0, 1] scales how often the kinds come up that build on the basic ones; `more`
    holds a factor for single kinds.
    """
    english = language == "english"
    weights = dict(_BASICS if english else _CHINESE_BASICS)
    for kind, weight in (_OTHERS if english else _CHINESE_OTHERS).items():
        weights[kind] = weight * others
    for kind in weights.keys() & (more or {}):
        weights[kind] *= (more or {})[kind]
    found: list[Exchange] = []
    for kind in rng.choices(list(weights), list(weights.values()), k=3 * turns):
        if len(found) == turns:
            break
        exchange = ask(rng, scene, kind, language)
        if exchange and all(exchange.question != other.question for other in found):
            found.append(exchange)
    return found


def ask(
    rng: random.Random,
    scene: Scene,
    kind: str,
    language: Language = "english",
    split: Split = "trained",
) -> Exchange | None:
    """Ask a question of `kind` about `scene`; ``None`` if it does not fit."""
    if kind == "out of scope":
        template = rng.choice(getattr(OUT_OF_SCOPE[language], split))
        question = template.format(**_out_of_scope_fields(rng, language))
        return Exchange(kind, typed(rng, question), CANNOT_TELL[language])
    kinds = KINDS if language == "english" else CHINESE_KINDS
    said = _about_noise(rng, language) if scene.kind == "noise" else kinds[kind](rng, scene)
    if said is None:
        return None
    phrases = (ENGLISH if language == "english" else CHINESE)[said.phrases]
    template = rng.choice(getattr(phrases, split))
    question = template.format(where=rng.choice(_WHERE), **said.fields)
    return Exchange(kind, typed(rng, question), said.answer)


def _out_of_scope_fields(rng: random.Random, language: Language) -> dict[str, str]:
    fields = {name: rng.choice(words) for name, words in OUT_OF_SCOPE_FIELDS[language].items()}
    # Small sums are kept for evaluation.
    fields |= {"a": str(rng.randrange(6, 100)), "b": str(rng.randrange(2, 100))}
    if language == "english":
        fields["a_noun"] = with_article(fields["noun"])
        fields["b_noun"] = with_article(rng.choice(OUT_OF_SCOPE_FIELDS[language]["noun"]))
        fields["thing"] = f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}"
    return fields


def typed(rng: random.Random, question: str) -> str:
    """Vary what people vary: spelling, capitals, the closing mark."""
    if rng.random() < 0.6:
        question = question.replace("colour", "color").replace("Colour", "Color")
    if rng.random() < 0.2:
        question = question.replace("gray", "grey")
    if rng.random() < 0.25:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.2:
        question = question.rstrip("?.？。")
    return question


def _about_noise(rng: random.Random, language: Language) -> _Said:
    phrases = rng.choice(list(ENGLISH if language == "english" else CHINESE))
    colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
    if language == "chinese":
        colour, shape = CHINESE_COLOURS[colour], CHINESE_SHAPES[shape]
        fields = {
            "colour": colour, "shape": shape, "thing": f"{colour}的{shape}",
            "other": f"{CHINESE_COLOURS[rng.choice(list(COLOURS))]}的{shape}",
            "side": rng.choice(list(CHINESE_SIDES.values())),
            "choice": rng.choice(("左边还是右边", "上面还是下面")),
        }  # fmt: skip
        return _Said(phrases, fields, CANNOT_TELL[language])
    thing = f"{colour} {shape}"
    fields = {
        "colour": colour, "shape": shape, "thing": thing, "a_thing": with_article(thing),
        "things": plural(thing), "side": rng.choice(("above", "to the left of")),
        "choice": rng.choice(("above or below", "to the left or to the right of")),
        "other": f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}",
    }  # fmt: skip
    return _Said(phrases, fields, CANNOT_TELL[language])


def with_article(thing: str) -> str:
    """``orange star`` -> ``an orange star``."""
    return ("an " if thing[0] in "aeiou" else "a ") + thing


def plural(thing: str) -> str:
    """``red cross`` -> ``red crosses``."""
    return thing + ("es" if thing.endswith("s") else "s")


def _amount(number: int, thing: str) -> str:
    return f"There is 1 {thing}." if number == 1 else f"There are {number} {plural(thing)}."


def only(items: tuple[Item, ...], attribute: Callable[[Item], str]) -> list[Item]:
    """Items whose `attribute` no other item shares."""
    counts = Counter(attribute(item) for item in items)
    return [item for item in items if counts[attribute(item)] == 1]


def _shape(item: Item) -> str:
    return item.shape


def _colour(item: Item) -> str:
    return item.colour


def name_of(item: Item) -> str:
    """Return colour and shape."""
    return item.name


def _fits(item: Item, thing: str) -> bool:
    return all(word in (item.colour, item.shape, "shape") for word in thing.split())


def _ask_colour(rng: random.Random, scene: Scene) -> _Said | None:
    if len(scene.items) == 1 and rng.random() < 0.2:
        item = scene.items[0]
        return _Said("the colour", {}, f"The {item.shape} is {item.colour}.")
    known = only(scene.items, _shape)
    if not known:
        return None
    item = rng.choice(known)
    return _Said("colour", {"shape": item.shape}, f"The {item.shape} is {item.colour}.")


def _ask_shape(rng: random.Random, scene: Scene) -> _Said | None:
    if len(scene.items) == 1 and rng.random() < 0.2:
        item = scene.items[0]
        return _Said("the shape", {}, f"The {item.colour} shape is {with_article(item.shape)}.")
    known = only(scene.items, _colour)
    if not known:
        return None
    item = rng.choice(known)
    answer = f"The {item.colour} shape is {with_article(item.shape)}."
    return _Said("shape", {"colour": item.colour}, answer)


def _ask_existence(rng: random.Random, scene: Scene) -> _Said | None:
    there = bool(scene.items) and rng.random() < 0.5
    thing = present(rng, scene) if there else missing(rng, scene)
    if thing is None:
        return None
    answer = f"Yes, there is {with_article(thing)}." if there else f"No, there is no {thing}."
    fields = {"thing": thing, "a_thing": with_article(thing), "things": plural(thing)}
    return _Said("existence", fields, answer)


def present(rng: random.Random, scene: Scene) -> str:
    """Return the name of a thing that is there, or a part of it."""
    item = rng.choice(scene.items)
    return rng.choice((item.name, item.name, item.shape, f"{item.colour} shape"))


def missing(rng: random.Random, scene: Scene) -> str | None:
    """A thing that is not there; half of the time its colour or its shape is."""
    for _ in range(20):
        colour, shape = rng.choice(scene.palette.colours), rng.choice(scene.palette.shapes)
        if scene.items and rng.random() < 0.6:
            near = rng.choice(scene.items)
            far = rng.choice(scene.items)
            thing = rng.choice(
                (f"{near.colour} {far.shape}", f"{near.colour} {shape}", f"{colour} {near.shape}")
            )
        else:
            thing = rng.choice((f"{colour} {shape}", shape, f"{colour} shape"))
        if not any(_fits(item, thing) for item in scene.items):
            return thing
    return None


def _ask_background(rng: random.Random, scene: Scene) -> _Said | None:
    return _Said("background", {}, f"The background is {scene.background}.")


def _ask_count(rng: random.Random, scene: Scene) -> _Said | None:
    if scene.kind == "digit":
        return None
    return _Said("count", {}, _amount(len(scene.items), "shape"))


def _ask_count_of(rng: random.Random, scene: Scene) -> _Said | None:
    if scene.kind == "digit":
        return None
    colour, shape = rng.choice(scene.palette.colours), rng.choice(scene.palette.shapes)
    if scene.items and rng.random() < 0.75:
        item = rng.choice(scene.items)
        colour, shape = item.colour, item.shape
    thing = rng.choice((shape, f"{colour} shape"))
    number = sum(_fits(item, thing) for item in scene.items)
    return _Said("count of", {"things": plural(thing)}, _amount(number, thing))


def _ask_absent(rng: random.Random, scene: Scene) -> _Said | None:
    """The colour or shape of something that is not there."""
    if rng.random() < 0.5:
        shape = rng.choice(scene.palette.shapes)
        if any(item.shape == shape for item in scene.items):
            return None
        return _Said("colour", {"shape": shape}, f"There is no {shape}.")
    colour = rng.choice(scene.palette.colours)
    if any(item.colour == colour for item in scene.items):
        return None
    return _Said("shape", {"colour": colour}, f"There is no {colour} shape.")


def _sized(rng: random.Random, scene: Scene) -> tuple[Item, bool] | None:
    """A thing that is clearly small or large, and whether it is large."""
    known = [
        item for item in only(scene.items, name_of)
        if item.radius < SMALL_UP_TO or item.radius > LARGE_FROM
    ]  # fmt: skip
    if not known:
        return None
    item = rng.choice(known)
    return item, item.radius > LARGE_FROM


def _ask_size(rng: random.Random, scene: Scene) -> _Said | None:
    found = _sized(rng, scene)
    if found is None:
        return None
    item, large = found
    size = "large" if large else "small"
    return _Said("size", {"thing": item.name}, f"The {item.name} is {size}.")


def _ask_extreme(rng: random.Random, scene: Scene) -> _Said | None:
    ordered = sorted(scene.items, key=lambda item: item.radius)
    if len(ordered) < 2:
        return None
    word = rng.choice(("largest", "smallest"))
    first, second = (ordered[-1], ordered[-2]) if word == "largest" else (ordered[0], ordered[1])
    ratio = first.radius / second.radius
    if max(ratio, 1 / ratio) < 1.25:
        return None
    return _Said(word, {}, f"The {word} shape is the {first.name}.")


def _two_sides(rng: random.Random, scene: Scene) -> tuple[Item, Item, str] | None:
    """Two things and on which side of the second the first is: left, right, above or below."""
    known = only(scene.items, name_of)
    if len(known) < 2:
        return None
    one, other = rng.sample(known, 2)
    dx, dy = one.x - other.x, one.y - other.y
    if rng.random() < 0.5:
        gap, true = dx, "left" if dx < 0 else "right"
    else:
        gap, true = dy, "above" if dy < 0 else "below"
    return None if abs(gap) < 0.1 else (one, other, true)


def _ask_relation(rng: random.Random, scene: Scene) -> _Said | None:
    found = _two_sides(rng, scene)
    if found is None:
        return None
    one, other, true = found
    asked = true if rng.random() < 0.5 else _OPPOSITE[true]
    side = {"left": "to the left of", "right": "to the right of"}.get(asked, asked)
    if asked in ("left", "right") and rng.random() < 0.4:
        side = f"{asked} of"
    answer = f"{'Yes' if asked == true else 'No'}, it is {_beside(true)}."
    return _Said("relation", {"thing": one.name, "side": side, "other": other.name}, answer)


def _beside(side: str) -> str:
    return f"to the {side}" if side in ("left", "right") else f"{side} it"


def _ask_side(rng: random.Random, scene: Scene) -> _Said | None:
    """Which of two sides: what a yes or no about one side is made of."""
    found = _two_sides(rng, scene)
    if found is None:
        return None
    one, other, true = found
    pair = rng.sample((true, _OPPOSITE[true]), 2)
    if true in ("above", "below"):
        choice = " or ".join(pair)
    else:
        choice = rng.choice(("to the {} or to the {} of", "to the {} or {} of", "{} or {} of"))
        choice = choice.format(*pair)
    fields = {"thing": one.name, "choice": choice, "other": other.name}
    return _Said("side", fields, f"It is {_beside(true)}.")


def _placed(rng: random.Random, scene: Scene) -> tuple[Item, int, int] | None:
    """A thing with the row and the column of its third of the image."""
    known = [item for item in only(scene.items, name_of) if _clear(item.x) and _clear(item.y)]
    if not known:
        return None
    item = rng.choice(known)
    return item, int(item.y * 3), int(item.x * 3)


def _ask_place(rng: random.Random, scene: Scene) -> _Said | None:
    found = _placed(rng, scene)
    if found is None:
        return None
    item, row, column = found
    zone = _ZONES[row][column]
    return _Said("place", {"thing": item.name}, f"The {item.name} is at the {zone}.")


def _clear(fraction: float) -> bool:
    """Whether a centre is not on the border of two thirds of the image."""
    return min(abs(fraction - 1 / 3), abs(fraction - 2 / 3)) > 0.035


def _ask_digit(rng: random.Random, scene: Scene) -> _Said | None:
    if scene.glyph is None:
        return _Said("digit", {}, "There is no digit.") if rng.random() < 0.1 else None
    return _Said("digit", {}, f"The digit is {scene.glyph.digit}.")


def _ask_digit_colour(rng: random.Random, scene: Scene) -> _Said | None:
    if scene.glyph is None:
        return None
    return _Said("digit colour", {}, f"The digit is {scene.glyph.colour}.")


def _ask_description(rng: random.Random, scene: Scene) -> _Said | None:
    if len(scene.items) > 3:
        return None
    ground = f"on {with_article(scene.background)} background."
    if scene.glyph is not None:
        text = f"The digit {scene.glyph.digit} in {scene.glyph.colour} {ground}"
    elif not scene.items:
        text = f"An empty {scene.background} picture."
    else:
        things = [with_article(item.name) for item in in_reading_order(scene)]
        listed = " and ".join(part for part in (", ".join(things[:-1]), things[-1]) if part)
        text = f"{listed[0].upper()}{listed[1:]} {ground}"
    return _Said("description", {}, text)


def in_reading_order(scene: Scene) -> list[Item]:
    """Return the items by thirds of the height, each from left to right."""
    return sorted(scene.items, key=lambda item: (int(item.y * 3), item.x))


def _chinese_colour(rng: random.Random, scene: Scene) -> _Said | None:
    known = only(scene.items, _shape)
    if not known:
        return None
    item = rng.choice(known)
    shape = CHINESE_SHAPES[item.shape]
    return _Said("colour", {"shape": shape}, f"{shape}是{CHINESE_COLOURS[item.colour]}的。")


def chinese_name(item: Item) -> str:
    """``red circle`` -> ``红色的圆形``."""
    return f"{CHINESE_COLOURS[item.colour]}的{CHINESE_SHAPES[item.shape]}"


def _chinese_shape(rng: random.Random, scene: Scene) -> _Said | None:
    if len(scene.items) == 1 and rng.random() < 0.2:
        item = scene.items[0]
        colour = CHINESE_COLOURS[item.colour]
        return _Said("the shape", {}, f"{colour}的图形是{CHINESE_SHAPES[item.shape]}。")
    known = only(scene.items, _colour)
    if not known:
        return None
    item = rng.choice(known)
    colour = CHINESE_COLOURS[item.colour]
    return _Said("shape", {"colour": colour}, f"{colour}的图形是{CHINESE_SHAPES[item.shape]}。")


def _chinese_existence(rng: random.Random, scene: Scene) -> _Said | None:
    there = bool(scene.items) and rng.random() < 0.5
    thing = present(rng, scene) if there else missing(rng, scene)
    if thing is None:
        return None
    words = thing.split()
    named = CHINESE_SHAPES.get(words[-1], "图形")
    if len(words) == 2:
        named = f"{CHINESE_COLOURS[words[0]]}的{named}"
    answer = f"有，图中有{named}。" if there else f"没有，图中没有{named}。"
    return _Said("existence", {"thing": named}, answer)


def _chinese_background(rng: random.Random, scene: Scene) -> _Said | None:
    return _Said("background", {}, f"背景是{CHINESE_COLOURS[scene.background]}的。")


def _chinese_count(rng: random.Random, scene: Scene) -> _Said | None:
    if scene.kind == "digit":
        return None
    return _Said("count", {}, f"有{len(scene.items)}个图形。")


def _chinese_absent(rng: random.Random, scene: Scene) -> _Said | None:
    if rng.random() < 0.5:
        shape = rng.choice(scene.palette.shapes)
        if any(item.shape == shape for item in scene.items):
            return None
        named = CHINESE_SHAPES[shape]
        return _Said("colour", {"shape": named}, f"图中没有{named}。")
    colour = rng.choice(scene.palette.colours)
    if any(item.colour == colour for item in scene.items):
        return None
    named = CHINESE_COLOURS[colour]
    return _Said("shape", {"colour": named}, f"图中没有{named}的图形。")


def _chinese_size(rng: random.Random, scene: Scene) -> _Said | None:
    found = _sized(rng, scene)
    if found is None:
        return None
    item, large = found
    thing = chinese_name(item)
    return _Said("size", {"thing": thing}, f"{thing}是{'大' if large else '小'}的。")


def _chinese_relation(rng: random.Random, scene: Scene) -> _Said | None:
    found = _two_sides(rng, scene)
    if found is None:
        return None
    one, other, true = found
    asked = true if rng.random() < 0.5 else _OPPOSITE[true]
    fields = {
        "thing": chinese_name(one), "side": CHINESE_SIDES[asked], "other": chinese_name(other),
    }  # fmt: skip
    answer = f"{'是的' if asked == true else '不是'}，它在{CHINESE_SIDES[true]}。"
    return _Said("relation", fields, answer)


def _chinese_side(rng: random.Random, scene: Scene) -> _Said | None:
    found = _two_sides(rng, scene)
    if found is None:
        return None
    one, other, true = found
    pair = [CHINESE_SIDES[side] for side in rng.sample((true, _OPPOSITE[true]), 2)]
    fields = {
        "thing": chinese_name(one), "choice": "还是".join(pair), "other": chinese_name(other),
    }  # fmt: skip
    return _Said("side", fields, f"它在{CHINESE_SIDES[true]}。")


def _chinese_place(rng: random.Random, scene: Scene) -> _Said | None:
    found = _placed(rng, scene)
    if found is None:
        return None
    item, row, column = found
    thing = chinese_name(item)
    return _Said("place", {"thing": thing}, f"{thing}在{_CHINESE_ZONES[row][column]}。")


def _chinese_digit(rng: random.Random, scene: Scene) -> _Said | None:
    if scene.glyph is None:
        return None
    return _Said("digit", {}, f"数字是{scene.glyph.digit}。")


def _chinese_description(rng: random.Random, scene: Scene) -> _Said | None:
    if not 0 < len(scene.items) <= 3:
        return None
    things = [chinese_name(item) for item in in_reading_order(scene)]
    ground = CHINESE_COLOURS[scene.background]
    return _Said("description", {}, f"{ground}背景上有{'、'.join(things)}。")


_Asker = Callable[[random.Random, Scene], _Said | None]

KINDS: dict[str, _Asker] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "existence": _ask_existence,
    "background": _ask_background,
    "count": _ask_count,
    "count of": _ask_count_of,
    "absent": _ask_absent,
    "size": _ask_size,
    "extreme": _ask_extreme,
    "relation": _ask_relation,
    "side": _ask_side,
    "place": _ask_place,
    "digit": _ask_digit,
    "digit colour": _ask_digit_colour,
    "description": _ask_description,
}
CHINESE_KINDS: dict[str, _Asker] = {
    "colour": _chinese_colour,
    "shape": _chinese_shape,
    "existence": _chinese_existence,
    "background": _chinese_background,
    "count": _chinese_count,
    "absent": _chinese_absent,
    "size": _chinese_size,
    "relation": _chinese_relation,
    "side": _chinese_side,
    "place": _chinese_place,
    "digit": _chinese_digit,
    "description": _chinese_description,
}

# Relative frequencies. The basics come first in training, and the others build on them. What
# compares places and sizes takes longest to learn, and so comes up most.
_BASICS = {
    "colour": 1.0, "shape": 1.0, "existence": 1.6, "background": 0.4, "count": 0.8,
    "absent": 0.5, "digit": 1.0, "digit colour": 0.4,
}  # fmt: skip
_OTHERS = {
    "count of": 0.8, "size": 0.8, "extreme": 0.7, "relation": 1.8, "side": 1.5, "place": 1.3,
    "description": 0.7, "out of scope": 0.7,
}  # fmt: skip
_CHINESE_BASICS = {
    "colour": 1.0, "shape": 1.0, "existence": 1.4, "background": 0.4, "count": 0.6,
    "absent": 0.5, "digit": 1.0,
}  # fmt: skip
_CHINESE_OTHERS = {
    "size": 0.6, "relation": 1.3, "side": 0.9, "place": 0.8, "description": 0.6,
    "out of scope": 0.6,
}  # fmt: skip
