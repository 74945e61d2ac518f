"""What the widget of a look into an answer, or into two, shows of the word that is chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.wording import printable
from glm4v_magic.inspect.maps import METHODS, PARTS, Method, of_conversation
from glm4v_magic.notebook.render import Html, MimeBundle
from glm4v_magic.notebook.render.answers.certainty import listed, percent, shown_token
from glm4v_magic.notebook.render.answers.comparison import (
    comparison_bundle,
    pair_figures,
    pair_name,
    telling_pairs,
)
from glm4v_magic.notebook.render.answers.heat import Figure, map_figures
from glm4v_magic.notebook.render.answers.inspection import inspection_bundle, telling_tokens
from glm4v_magic.notebook.render.answers.lens import lens_table

if TYPE_CHECKING:
    from glm4v_magic.inspect.comparison import Comparison
    from glm4v_magic.inspect.inspected_token import InspectedToken
    from glm4v_magic.inspect.inspection import Inspection
    from glm4v_magic.inspect.lens import Lens
    from glm4v_magic.inspect.maps import Look

__all__ = ["Choice", "OneAnswer", "Shown", "TwoAnswers", "Word"]

_AROUND = 6  # tokens in the table of layers on each side of the one that is chosen
_SIDE = 320  # longest side of an image in pixels


@dataclass(frozen=True, slots=True)
class Choice:
    """What is chosen.

    Attributes:
        word: number of the word.
        image: index of an image of the prompt; ``None`` for all of them.
        method: method of the map.
        layer: layer whose attention is meant; ``None`` for the mean of all.
        head: head whose attention is meant; ``None`` for the mean of all.
        parts: rows and columns of parts that are covered.
        strength: how dark a part becomes that does not matter, from 0 to 1.
        with_layers: whether the table of layers is shown.
    """

    word: int = 0
    image: int | None = None
    method: Method = "occlusion"
    layer: int | None = None
    head: int | None = None
    parts: int = PARTS
    strength: float = 0.7
    with_layers: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    """A token, or a pair of them.

    Attributes:
        text: text on a button.
        line: number, token in quotes and probability.
        probability: of the token; the smaller one of a pair.
    """

    text: str
    line: str
    probability: float


class Shown(ABC):
    """What is shown: computed when it is asked for, and kept."""

    @property
    @abstractmethod
    def words(self) -> Sequence[Word]:
        """The words that can be chosen."""

    @abstractmethod
    def first(self) -> Choice:
        """Return what is shown at first."""

    @property
    @abstractmethod
    def images(self) -> Sequence[str]:
        """Names of the images."""

    @property
    @abstractmethod
    def _looks(self) -> Sequence[Look]:
        """The looks behind it."""

    @property
    def methods(self) -> Sequence[Method]:
        """Methods that can be chosen: without covering if all images are frames of videos."""
        only_frames = all(look.images and not of_conversation(look) for look in self._looks)
        return [each for each in METHODS if each != "occlusion" or not only_frames]

    def _first(self, word: int, parts: int) -> Choice:
        """Return a word by the first method that is about all images."""
        with_frames = any(len(of_conversation(look)) < len(look.images) for look in self._looks)
        return Choice(word, method="attention" if with_frames else "occlusion", parts=parts)

    @abstractmethod
    def is_ready(self, choice: Choice) -> bool:
        """Tell whether what is chosen needs no run of a model."""

    @abstractmethod
    def figures(self, choice: Choice) -> list[Figure]:
        """Return the images of a word."""

    @abstractmethod
    def about(self, number: int) -> list[str]:
        """Return what is known of a word besides, in lines."""

    @abstractmethod
    def layers_and_heads(self, number: int) -> tuple[Sequence[int], int]:
        """Return the numbers of the layers with attention and the number of heads."""

    @abstractmethod
    def layers(self, number: int) -> list[Html]:
        """Return the tables of layers.

        Raises:
            OptionError: if a model has no logit lens.
        """

    @abstractmethod
    def bundle(self) -> MimeBundle:
        """Return the static view."""


class OneAnswer(Shown):
    """A look into one answer."""

    def __init__(self, look: Inspection) -> None:
        self._look = look
        self._lens = _Lens(look)

    @cached_property
    def words(self) -> Sequence[Word]:
        """Its tokens."""
        return [
            Word(
                _text(each),
                f"{number}: {shown_token(each.token)} {_percent(each)}",
                each.probability,
            )
            for number, each in enumerate(self._look.tokens)
        ]

    def first(self) -> Choice:
        """Return the token that depends most on a part of an image."""
        found, parts = telling_tokens(self._look, len(self._look.tokens), 1)
        return self._first(found[0] if found else 0, parts)

    @property
    def _looks(self) -> Sequence[Look]:
        return (self._look,)

    @cached_property
    def images(self) -> Sequence[str]:
        """Images of its prompt."""
        return [printable(grid.image.source) for grid in self._look.images]

    def is_ready(self, choice: Choice) -> bool:
        """Tell whether the maps, and the lens if it is wanted, are there."""
        return (not choice.with_layers or self._lens.is_ready) and all(
            self._look.has_on_image(choice.word, image, *_options(choice))
            for image in _images(choice, self.images)
        )

    def figures(self, choice: Choice) -> list[Figure]:
        """Return the chosen images."""
        maps = [
            self._look.on_image(choice.word, image, *_options(choice))
            for image in _images(choice, self.images)
        ]
        return map_figures(maps, choice.strength, _SIDE, always=True)

    def about(self, number: int) -> list[str]:
        """Return the token with its likeliest alternatives."""
        return [_about(self._look.tokens[number])]

    def layers_and_heads(self, number: int) -> tuple[Sequence[int], int]:
        """Return the layers and heads of its attention."""
        return self._look.layers_and_heads(number)

    def layers(self, number: int) -> list[Html]:
        """Return one table."""
        return [self._lens.table(number)]

    @cached_property
    def _static(self) -> MimeBundle:
        return inspection_bundle(self._look)

    def bundle(self) -> MimeBundle:
        """Return its telling words, and a fold for each."""
        return self._static


class TwoAnswers(Shown):
    """Two answers side by side."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._lenses = _Lens(comparison.one), _Lens(comparison.other)

    @cached_property
    def words(self) -> Sequence[Word]:
        """Pairs of tokens."""
        return [self._word(number) for number in range(len(self._comparison.pairs))]

    def first(self) -> Choice:
        """Return the pair that differs most on an image, or else the first one that differs."""
        pairs, two = self._comparison.pairs, self._comparison
        found, _, parts = telling_pairs(two, len(pairs), 1)
        others = (at for at in range(len(pairs)) if len({*map(_text, self._tokens(at))}) > 1)
        return self._first(found[0] if found else next(others, 0), parts)

    @property
    def _looks(self) -> Sequence[Look]:
        return (self._comparison.one, self._comparison.other)

    def _word(self, number: int) -> Word:
        found = self._tokens(number)
        text = " / ".join(dict.fromkeys(map(_text, found)))
        shares = " / ".join(map(_percent, found))
        name = pair_name(self._comparison, number)
        return Word(text, f"{number}: {name} {shares}", min(each.probability for each in found))

    def _tokens(self, number: int) -> list[InspectedToken]:
        pair, two = self._comparison.pairs[number], self._comparison
        sides = ((two.one, pair.one), (two.other, pair.other))
        return [look.tokens[at] for look, at in sides if at is not None]

    @cached_property
    def images(self) -> Sequence[str]:
        """Images with the same index in both prompts."""
        one, other = (
            [printable(grid.image.source) for grid in look.images]
            for look in (self._comparison.one, self._comparison.other)
        )
        longest = max(one, other, key=len)
        both = [
            name if name == second else f"{name} / {second}"
            for name, second in zip(one, other, strict=False)
        ]
        return [*both, *longest[len(both) :]]

    def is_ready(self, choice: Choice) -> bool:
        """Tell whether the maps of both, and the lenses if they are wanted, are there."""
        return (not choice.with_layers or all(each.is_ready for each in self._lenses)) and all(
            self._comparison.has(choice.word, image, *_options(choice))
            for image in _images(choice, self.images)
        )

    def figures(self, choice: Choice) -> list[Figure]:
        """Return the first image, the second, and what differs, for each choice of an image."""
        return [
            figure
            for image in _images(choice, self.images)
            for figure in pair_figures(
                self._comparison.maps(choice.word, image, *_options(choice)), choice.strength
            )
        ]

    def about(self, number: int) -> list[str]:
        """Return both tokens with their likeliest alternatives."""
        return [_about(each) for each in self._tokens(number)]

    def layers_and_heads(self, number: int) -> tuple[Sequence[int], int]:
        """Return the layers and heads of the first answer's model."""
        return self._comparison.layers_and_heads(number)

    def layers(self, number: int) -> list[Html]:
        """Return a table for each answer that has the token."""
        pair = self._comparison.pairs[number]
        return [
            lens.table(at)
            for lens, at in zip(self._lenses, (pair.one, pair.other), strict=True)
            if at is not None
        ]

    @cached_property
    def _static(self) -> MimeBundle:
        return comparison_bundle(self._comparison)

    def bundle(self) -> MimeBundle:
        """Return both, with the words that differ most."""
        return self._static


class _Lens:
    """The logit lens of an answer, computed when it is first asked for."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._lens: Lens | None = None
        self._missing: OptionError | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it is there, or known not to be."""
        return self._lens is not None or self._missing is not None

    def table(self, number: int) -> Html:
        """Return the table of the tokens around one, all layers."""
        if self._missing is not None:
            raise self._missing
        if self._lens is None:
            try:
                self._lens = self._look.lens()
            except OptionError as error:
                self._missing = error
                raise
        tokens = self._look.tokens
        start = max(0, min(number - _AROUND, len(tokens) - 2 * _AROUND - 1))
        columns = range(start, min(len(tokens), start + 2 * _AROUND + 1))
        layers = range(self._lens.said.values.shape[0])
        return lens_table(self._lens, tokens, columns, layers, number)


def _images(choice: Choice, images: Sequence[str]) -> Sequence[int]:
    return range(len(images)) if choice.image is None else [choice.image]


def _options(choice: Choice) -> tuple[Method, int | None, int | None, int]:
    return choice.method, choice.layer, choice.head, choice.parts


def _text(each: InspectedToken) -> str:
    text = printable(each.text).strip()
    return text if text and "\ufffd" not in text else shown_token(each.token)


def _percent(each: InspectedToken) -> str:
    return percent(each.token.logprob)


def _about(each: InspectedToken) -> str:
    return (
        f"{shown_token(each.token)} {_percent(each)}, entropy {each.entropy:.2f} nats; "
        f"likeliest: {listed(each.token)}"
    )
