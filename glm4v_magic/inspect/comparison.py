"""`Comparison`, two answers side by side: their tokens, and where on the images these come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from itertools import zip_longest
from typing import Any

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.wording import brief
from glm4v_magic.inspect.grids import ImageMap
from glm4v_magic.inspect.labelled import Labelled
from glm4v_magic.inspect.maps import PARTS, Look, Method

__all__ = ["Comparison", "MapPair", "TokenPair"]


@dataclass(frozen=True, slots=True)
class TokenPair:
    """Tokens of two answers at the same place.

    Attributes:
        one: number of the token in the first answer; ``None`` where it has none there.
        other: number of the token in the second answer; likewise.
    """

    one: int | None
    other: int | None


@dataclass(frozen=True, slots=True, eq=False)
class MapPair:
    """Where a pair of tokens comes from.

    Attributes:
        one: map of the first answer's token; ``None`` where there is no such token or image.
        other: map of the second answer's token; likewise.
        difference: the first minus the second, part by part; ``None`` where one is missing or
            they have different numbers of parts. Axes: ``row``, ``column``.
    """

    one: ImageMap | None
    other: ImageMap | None
    difference: Labelled | None


class Comparison:
    """Two answers side by side: to one question about two images, or to two questions or models.

    Args:
        one: look into the first answer.
        other: look into the second.
    """

    def __init__(self, one: Look, other: Look) -> None:
        self.one, self.other = one, other

    def __repr__(self) -> str:
        return f"Comparison of {self.one!r} with {self.other!r}"

    @cached_property
    def pairs(self) -> tuple[TokenPair, ...]:
        """Tokens of both answers, paired by their texts; what differs is paired in its order."""
        one, other = ([each.text for each in look.tokens] for look in (self.one, self.other))
        matched = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
        return tuple(
            TokenPair(*numbers)
            for _, start, stop, other_start, other_stop in matched
            for numbers in zip_longest(range(start, stop), range(other_start, other_stop))
        )

    def maps(
        self,
        pair: int,
        image: int = 0,
        method: Method = "occlusion",
        layer: int | None = None,
        head: int | None = None,
        parts: int = PARTS,
    ) -> MapPair:
        """Return where a pair comes from on the images with the same index in both prompts.

        Args:
            pair: number of the pair.
            image: as in `Inspection.on_image`.
            method: likewise.
            layer: likewise.
            head: likewise.
            parts: likewise.

        Raises:
            OptionError: if there is no such pair, image, method, layer or head.
        """
        _require(pair, "pair", len(self.pairs))
        _require(image, "image", max(len(self.one.images), len(self.other.images)))
        chosen = self.pairs[pair]
        numbers = (image, method, layer, head, parts)
        one = _map(self.one, chosen.one, *numbers)
        other = _map(self.other, chosen.other, *numbers)
        return MapPair(one, other, _difference(one, other))

    def has(
        self,
        pair: int,
        image: int,
        method: Method,
        layer: int | None = None,
        head: int | None = None,
        parts: int = PARTS,
    ) -> bool:
        """Tell whether the maps of a pair are there without running a model."""
        tokens = self.pairs[pair].one, self.pairs[pair].other
        return all(
            token is None
            or image >= len(look.images)
            or look.has_on_image(token, image, method, layer, head, parts)
            for token, look in zip(tokens, (self.one, self.other), strict=True)
        )

    def layers_and_heads(self, pair: int) -> tuple[Sequence[int], int]:
        """Return the numbers of the layers with attention and the number of heads."""
        chosen = self.pairs[pair]
        if chosen.one is not None:
            return self.one.layers_and_heads(chosen.one)
        assert chosen.other is not None
        return self.other.layers_and_heads(chosen.other)

    def to_dataframe(self) -> Any:
        """Return a pandas DataFrame: a row for each pair, with both texts and probabilities.

        ``difference`` is the first's log-probability minus the second's.
        """
        import pandas as pd

        rows = []
        for pair in self.pairs:
            one = None if pair.one is None else self.one.tokens[pair.one].token
            other = None if pair.other is None else self.other.tokens[pair.other].token
            rows.append(
                {
                    "text": None if one is None else one.text,
                    "other_text": None if other is None else other.text,
                    "probability": None if one is None else one.probability,
                    "other_probability": None if other is None else other.probability,
                    "difference": None
                    if one is None or other is None
                    else one.logprob - other.logprob,
                }
            )
        return pd.DataFrame(rows)


def _require(number: int, what: str, count: int) -> None:
    if not isinstance(number, int) or not 0 <= number < count:
        raise OptionError(
            f"There is no {what} {brief(number)}: there are {count}, numbered from 0."
        )


def _map(look: Look, token: int | None, image: int, *more: Any) -> ImageMap | None:
    if token is None or image >= len(look.images):
        return None
    return look.on_image(token, image, *more)


def _difference(one: ImageMap | None, other: ImageMap | None) -> Labelled | None:
    if one is None or other is None or one.values.shape != other.values.shape:
        return None
    values = one.values.values - other.values.values
    return Labelled(values, one.values.dims, name=one.values.name)
