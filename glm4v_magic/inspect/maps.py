"""Where on an image a token of an answer comes from, by a method of choice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol, get_args

import numpy as np

from glm4v_magic.core.conversation import Answer
from glm4v_magic.core.errors import OptionError, did_you_mean
from glm4v_magic.core.image import SourcedImage
from glm4v_magic.core.wording import brief
from glm4v_magic.inspect.grids import ImageGrid, ImageMap, TokenMap, require_grid
from glm4v_magic.inspect.inspected_token import InspectedToken
from glm4v_magic.inspect.labelled import Labelled
from glm4v_magic.inspect.lens import Lens

__all__ = ["METHODS", "PARTS", "Look", "Maps", "Method", "of_conversation"]

Method = Literal["occlusion", "attention", "rollout", "gradient"]
METHODS: tuple[Method, ...] = get_args(Method)

PARTS = 4
"""Rows and columns of parts that are covered unless said otherwise."""

_TOKENS_KEPT = 8
"""Tokens whose attention is kept: 8 MiB each for 40 layers, 32 heads and 1,600 patches."""


class Look(Protocol):
    """What maps are made from; `Inspection` is one."""

    @property
    def answer(self) -> Answer:
        """The answer, with its tokens."""

    @property
    def tokens(self) -> tuple[InspectedToken, ...]:
        """Tokens of the answer."""

    @property
    def images(self) -> tuple[ImageGrid, ...]:
        """Images of the prompt, frames of videos included."""

    @property
    def source_images(self) -> tuple[SourcedImage, ...]:
        """Images of the conversation, videos not included."""

    def on_image(
        self,
        token: int,
        image: int = 0,
        method: Method = "occlusion",
        layer: int | None = None,
        head: int | None = None,
        parts: int = PARTS,
    ) -> ImageMap:
        """Return where on an image a token comes from."""

    def has_on_image(
        self,
        token: int,
        image: int = 0,
        method: Method = "occlusion",
        layer: int | None = None,
        head: int | None = None,
        parts: int = PARTS,
    ) -> bool:
        """Tell whether this map is there."""

    def layers_and_heads(self, token: int) -> tuple[Sequence[int], int]:
        """Return the layers with attention and the number of heads."""

    def lens(self, k: int = 5) -> Lens:
        """Return the logit lens."""

    def occlusions(self, image: int = 0, rows: int = 4, columns: int = 4) -> ImageMap:
        """Return the occlusion of all tokens."""

    def attention(self, token: int) -> TokenMap:
        """Return the attention of each layer and head."""

    def rollout(self, token: int) -> TokenMap:
        """Return attention followed through all layers."""

    def gradient(self, token: int) -> TokenMap:
        """Return input x gradient."""


class Maps:
    """Maps of the tokens of an answer, kept once they are computed.

    Args:
        look: computes them.
    """

    def __init__(self, look: Look) -> None:
        self._look = look
        self._occlusions: dict[tuple[int, int], ImageMap] = {}
        self._maps: dict[tuple[object, ...], ImageMap] = {}
        self._attention = lru_cache(_TOKENS_KEPT)(look.attention)
        self._axes: tuple[Sequence[int], int] | None = None

    def at(
        self,
        token: int,
        image: int = 0,
        method: Method = "occlusion",
        layer: int | None = None,
        head: int | None = None,
        parts: int = PARTS,
    ) -> ImageMap:
        """Return a map with the axes ``row`` and ``column``; see `Inspection.on_image`."""
        if method not in METHODS:
            raise OptionError(
                f"method is {brief(method)}, but must be one of {', '.join(METHODS)}.",
                did_you_mean(str(method), METHODS),
            )
        if method != "attention" and (layer, head) != (None, None):
            raise OptionError(
                f"layer and head are those of attention; {method} is about all of them together."
            )
        if method != "occlusion" and parts != PARTS:
            raise OptionError(f"parts are those of occlusion; {method} is about patches.")
        key = (token, image, method, layer, head, parts)
        if key not in self._maps:
            self._maps[key] = self._computed(*key)
        return self._maps[key]

    def has(
        self,
        token: int,
        image: int,
        method: Method,
        layer: int | None = None,
        head: int | None = None,
        parts: int = PARTS,
    ) -> bool:
        """Tell whether a map is there without running the model."""
        return (token, image, method, layer, head, parts) in self._maps

    def layers_and_heads(self, token: int) -> tuple[Sequence[int], int]:
        """Return the numbers of the layers with attention and the number of heads."""
        if self._axes is None:
            values = self._attention(token).values
            self._axes = values.labels("layer"), values.shape["head"]
        return self._axes

    def _computed(
        self,
        token: int,
        image: int,
        method: Method,
        layer: int | None,
        head: int | None,
        parts: int,
    ) -> ImageMap:
        grid = require_grid(self._look.images, image)
        if method == "occlusion":
            return self._occlusion(token, grid, parts)
        if method == "attention":
            return _chosen(self._attention(token).on_image(image), layer, head)
        made: TokenMap = getattr(self._look, method)(token)
        return made.on_image(image)

    def _occlusion(self, token: int, grid: ImageGrid, parts: int) -> ImageMap:
        number = next(
            (at for at, each in enumerate(self._look.source_images) if each is grid.image), None
        )
        if number is None:
            raise OptionError(
                "A frame of a video cannot be covered by itself.", "Choose another method."
            )
        if (number, parts) not in self._occlusions:
            self._occlusions[number, parts] = self._look.occlusions(number, parts, parts)
        every = self._occlusions[number, parts]
        count = every.values.shape["token"]
        if not 0 <= token < count:
            raise OptionError(
                f"There is no token {token}: the answer has {count}, numbered from 0."
            )
        values = Labelled(every.values.values[token], ("row", "column"), name="drop")
        return ImageMap(every.image, values)


def of_conversation(look: Look) -> list[int]:
    """Return the indices of images of the prompt that are no frames of videos."""
    own = [id(each) for each in look.source_images]
    return [at for at, grid in enumerate(look.images) if id(grid.image) in own]


def _chosen(every: ImageMap, layer: int | None, head: int | None) -> ImageMap:
    """Return the attention of a layer and a head; ``None`` for the mean of all."""
    values = every.values
    for dim, number in (("layer", layer), ("head", head)):
        values = values.mean(dim) if number is None else _part(values, dim, number)
    return ImageMap(every.image, values)


def _part(values: Labelled, dim: str, number: Any) -> Labelled:
    labels = list(values.labels(dim))
    if isinstance(number, bool) or number not in labels:
        raise OptionError(
            f"There is no {dim} {brief(number)} with attention: there are {labels[0]} to "
            f"{labels[-1]}."
        )
    at = values.dims.index(dim)
    coords = {name: own for name, own in values.coords.items() if name != dim}
    dims = tuple(each for each in values.dims if each != dim)
    taken = np.take(values.values, labels.index(number), axis=at)
    return Labelled(taken, dims, coords, values.name)
