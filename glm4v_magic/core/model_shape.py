"""A model in numbers, and what it is to be used for; what a checkpoint tells the planner.

Numbers of values, no tensors; `planning.costs` turns them into bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from glm4v_magic.core.options import DTYPES, Quantization, check

__all__ = [
    "DTYPE_BYTES",
    "Activation",
    "Kind",
    "ModelShape",
    "UnitShape",
    "Workload",
]

DTYPE_BYTES = dict(zip(DTYPES, (2, 2, 4), strict=True))


Kind = Literal[
    "vision",
    "vision_embedding",
    "vision_layer",
    "vision_projector",
    "embedding",
    "text_layer",
    "head",
]


@dataclass(frozen=True, slots=True)
class Activation:
    """What a module keeps alive while it runs, and after.

    Attributes:
        tokens: what it is counted per: ``text`` (cache entries of all rows), ``patch`` (tokens
            inside the tower, of all images), ``visual`` (vectors an image becomes in the
            text), ``image``, or ``row`` (of the batch).
        values: in the model's dtype, alive at the worst moment, per token.
        extra_bytes: of another dtype (float32, int64), alive at the worst moment, per token.
        held_values: in the model's dtype, alive from then on until the prefill ends, per token.
        held_bytes: the same for other dtypes.
    """

    tokens: Literal["text", "patch", "visual", "image", "row"]
    values: int = 0
    extra_bytes: int = 0
    held_values: int = 0
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class UnitShape:
    """A part of a model that is never split, in numbers of values.

    Attributes:
        name: for people and for pins: ``embedding``, ``layer.7``.
        modules: names in the model's module tree; together the units name every module once.
        kind: what the unit is.
        values: all its weights.
        linear_values: those of `values` that are matrices which quantisation may shrink.
        linear_rows: output rows of these matrices.
        widest_linear: rows and columns of the largest of them.
        cache_values: keys and values per cache entry.
        activations: what its modules keep alive; they run one after another.
    """

    name: str
    modules: tuple[str, ...]
    kind: Kind
    values: int
    linear_values: int = 0
    linear_rows: int = 0
    widest_linear: tuple[int, int] = (0, 0)
    cache_values: int = 0
    activations: tuple[Activation, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model in numbers.

    Attributes:
        name: of the checkpoint.
        units: in the order in which they run, the vision tower as finely as it may be cut.
        vision_modules: names of the modules of the whole tower.
        dtype: of the published weights.
        max_context: longest prompt plus answer, in positions.
        patches: tokens inside the tower per image.
        visual_tokens: vectors that an image becomes.
        image_positions: positions that an image takes.
    """

    name: str
    units: tuple[UnitShape, ...]
    vision_modules: tuple[str, ...]
    dtype: str
    max_context: int
    patches: int
    visual_tokens: int
    image_positions: int

    @property
    def values(self) -> int:
        """Number of weights."""
        return sum(unit.values for unit in self.units)


@dataclass(frozen=True, slots=True)
class Workload:
    """What the model is to be used for.

    Attributes:
        context: positions of prompt and answer of one row; ``None`` for the model's longest.
        images: images per row.
        batch: rows.
        dtype: of weights, cache and activations; ``None`` for the published one.
        quantize: of the linear layers of the text part.

    Raises:
        OptionError: on a value that makes no sense.
    """

    context: int | None = None
    images: int = 1
    batch: int = 1
    dtype: str | None = None
    quantize: Quantization | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            check(each.name, getattr(self, each.name))
