"""Sizes of a model, which its checkpoint tells the planner, and the workload to plan for.

Sizes count values (scalars), not bytes; `planning.costs` turns them into bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, TypeAlias

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.options import DTYPES, OPTIONS, Quantization, check
from glm4v_magic.core.wording import brief

__all__ = [
    "DTYPE_BYTES",
    "Activation",
    "Kind",
    "MadeOf",
    "ModelShape",
    "ModuleTree",
    "PackedMatrix",
    "Product",
    "UnitShape",
    "Workload",
    "require_architecture",
    "require_shape",
]

MadeOf: TypeAlias = tuple[tuple[Literal["revision", "base", "lora"], str], ...]
"""What a model is made of beside its name: the revision, base and adapter that were given."""

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
    """Activation memory of a module, while it runs and after.

    Attributes:
        tokens: unit of the counts below: ``text`` (cache entries of all rows), ``spliced`` (the
            same, none without images), ``patch`` (tokens inside the vision tower, of all images),
            ``visual`` (tokens of an image in the text), ``merged`` (those that the tower makes,
            without start and end), ``image``, or ``row`` (of the batch).
        values: values in the model's dtype, alive at the peak, per token.
        extra_bytes: bytes of other dtypes (float32, int64), alive at the peak, per token.
        cast_bytes: bytes of float32 copies, which a model in float32 does without.
        held_values: values in the model's dtype that stay alive until the prefill ends, per token.
        held_bytes: bytes of other dtypes that stay alive until then, per token.
        tower_values: values in the model's dtype that stay alive until the tower has run.
        tower_casts: likewise, of what was cast from float32, which is none in a model in float32.
        pair_bytes: bytes alive at the peak per pair of tokens of a row.
        batched_pair_bytes: likewise, of what is copied for each token if there are several rows.
        image_bytes: bytes alive at the peak, per token and image of all rows.
        row_bytes: bytes alive at the peak per row, whatever `tokens` counts.
        text_bytes: bytes alive at the peak per cache entry of all rows, whatever `tokens` counts.
        text_values: likewise, of values in the model's dtype.
        chunk: number of tokens that a row is padded to a multiple of, for `extra_bytes`.
        chosen: number of tokens of its row that a token chooses, at most.
        chosen_bytes: bytes alive at the peak for each of these.
        masked_values: values in the model's dtype alive at the peak, per token, that only rows of
            different lengths have, which need a mask.
        fixed_values: values in the model's dtype alive at the peak, however many tokens there are.
        fixed_casts: bytes of float32 copies alive at the peak, however many tokens there are, which
            a model in float32 does without.
        fixed_bytes: bytes of other dtypes alive at the peak, however many tokens there are.
    """

    tokens: Literal["text", "spliced", "patch", "visual", "merged", "image", "row"]
    values: int = 0
    extra_bytes: int = 0
    cast_bytes: int = 0
    held_values: int = 0
    held_bytes: int = 0
    tower_values: int = 0
    tower_casts: int = 0
    pair_bytes: float = 0
    batched_pair_bytes: float = 0
    image_bytes: int = 0
    row_bytes: int = 0
    text_bytes: int = 0
    text_values: int = 0
    chunk: int = 1
    chosen: int = 0
    chosen_bytes: int = 0
    masked_values: int = 0
    fixed_values: int = 0
    fixed_casts: int = 0
    fixed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a matrix that quantisation can shrink.

    Attributes:
        rows, columns: size of the matrix.
        values: values in the model's dtype that are alive meanwhile, per token: its input, its
            result and what waits for it.
    """

    rows: int
    columns: int
    values: int


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix that the checkpoint has quantised, and that stays so.

    Attributes:
        module: module of the model that it is the weight of.
        values: number of its values.
        nbytes: bytes with everything that belongs to it.
        rows: output rows; 0 where the files do not tell.
        columns: input columns; 0 where nobody asks.
        block: values that share a scale, if bitsandbytes has quantised it to 4 bits; otherwise 0.
    """

    module: str
    values: int
    nbytes: int
    rows: int = 0
    columns: int = 0
    block: int = 0


@dataclass(frozen=True, slots=True)
class UnitShape:
    """A unit: a part of a model that is never split over devices. Sizes count values.

    Attributes:
        name: name for people and for pins: ``embedding``, ``layer.7``.
        modules: names in the model's module tree; together the units name every module once.
        kind: role of the unit in the model.
        values: number of weights.
        linear: rows and columns of the matrices that quantisation can shrink.
        products: products with them that may need the most memory.
        cache_values: keys and values per KV cache entry.
        float32_values: weights that stay in float32 whatever the model's dtype.
        buffer_values: values in float32 that no checkpoint counts as weights, such as the
            frequencies of rotary embeddings.
        row_values: values of a row's state that does not grow with its length.
        row_bytes: bytes of such state in other dtypes.
        fp8_values: weights that the checkpoint may keep in FP8.
        fp8_scales: number of their float32 scales.
        packed: matrices that the checkpoint has quantised, and that stay so.
        idle_values: weights that a token does not use: those of experts that it does not choose.
        joined_values: values of the largest weight that is joined of several in the files, as the
            experts of a layer are.
        restoring_bytes: bytes that are alive beside a matrix in half precision while it is restored
            on its device from what the files hold, of the largest one that is; or beside one that
            stays quantised, while it is arranged for a kernel.
        row_length: weights that are looked up for a token, of a table of embeddings.
        rotary_bytes: bytes per token at the peak of making the rotary tables, beside the mask.
        pair_products: products per pair of tokens of a row or image, in the attention.
        activations: activation memory of its modules, which run one after another.
    """

    name: str
    modules: tuple[str, ...]
    kind: Kind
    values: int
    linear: tuple[tuple[int, int], ...] = ()
    products: tuple[Product, ...] = ()
    cache_values: int = 0
    float32_values: int = 0
    buffer_values: int = 0
    row_values: int = 0
    row_bytes: int = 0
    fp8_values: int = 0
    fp8_scales: int = 0
    packed: tuple[PackedMatrix, ...] = ()
    idle_values: int = 0
    joined_values: int = 0
    restoring_bytes: int = 0
    row_length: int = 0
    rotary_bytes: int = 0
    pair_products: int = 0
    activations: tuple[Activation, ...] = ()

    @property
    def linear_values(self) -> int:
        """Number of weights in `linear`."""
        return sum(rows * columns for rows, columns in self.linear)

    @property
    def linear_rows(self) -> int:
        """Number of output rows of these matrices."""
        return sum(rows for rows, _ in self.linear)

    @property
    def packed_values(self) -> int:
        """Number of weights in `packed`."""
        return sum(each.values for each in self.packed)

    @property
    def packed_bytes(self) -> int:
        """Bytes of these, with their scales."""
        return sum(each.nbytes for each in self.packed)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model.

    Attributes:
        name: name of the checkpoint.
        units: units in execution order; the vision tower is divided as finely as it can be.
        vision_modules: names of the modules of the whole vision tower.
        dtype: dtype of the published weights.
        max_context: longest context length in tokens.
        patches: tokens of the largest image inside the vision tower.
        visual_tokens: tokens of it in the text part, each with its KV cache entry.
        image_positions: what an image counts for in the context length: its distinct position ids,
            fewer than `visual_tokens` where patches share one (3 in GLM-4V-9B).
        float16_overflows: whether it is known to overflow when computed in float16.
        fp8: whether the weights were published in FP8; `dtype` is what they are computed in.
        scheme: another scheme by which the weights were quantised before they were published;
            empty for none.
        packed: how many bits they have, if they stay as they are; ``None`` if they are restored.
        token_side: pixels along the side of the square that becomes one visual token, where larger
            images take more of them; ``None`` where all images are resized to one size.
        patches_per_token: patches that become one visual token.
        least_image_tokens: visual tokens of the smallest image, without those around it.
        tower_first: whether the vision tower runs before the ids are embedded.
        masks_pairs: whether a batch of rows of different lengths has a mask of all pairs of tokens.
        unseen_revision: revision that was asked for, but is not here, so that these are the sizes
            of the published main branch; empty for none.
        made_of: what was given beside its name to find it.
    """

    name: str
    units: tuple[UnitShape, ...]
    vision_modules: tuple[str, ...]
    dtype: str
    max_context: int
    patches: int
    visual_tokens: int
    image_positions: int
    fp8: bool = False
    float16_overflows: bool = False
    scheme: str = ""
    packed: Quantization | None = None
    token_side: int | None = None
    patches_per_token: int = 1
    least_image_tokens: int = 1
    tower_first: bool = False
    masks_pairs: bool = True
    unseen_revision: str = ""
    made_of: MadeOf = ()

    @property
    def image_tokens(self) -> int:
        """Visual tokens of the largest image, without those around it."""
        return self.patches // self.patches_per_token

    @property
    def keeps_fp8(self) -> bool:
        """Whether weights can stay in FP8 on GPUs that can compute with it."""
        return any(unit.fp8_values for unit in self.units)

    @property
    def quantizable(self) -> bool:
        """Whether linear layers can be quantised as they are loaded."""
        stored = self.fp8 or self.scheme
        return not stored and any(unit.linear_values for unit in self.units)

    @property
    def values(self) -> int:
        """Number of weights of all units."""
        return sum(unit.values for unit in self.units)


@dataclass(frozen=True, slots=True)
class ModuleTree:
    """Names of a model's modules and weights, which a device map is checked against.

    Attributes:
        modules: names of all modules, outer ones first; the empty name is the whole model.
        tensors: names of all parameters, then of all buffers; a weight with two names has both.
        ties: name of a parameter -> its first name, for each further name of a weight.
        computed: names of the buffers that no checkpoint holds, such as rotary frequencies.
        values: number of values of each parameter and buffer.
    """

    modules: tuple[str, ...]
    tensors: tuple[str, ...]
    ties: Mapping[str, str] = field(default_factory=dict)
    computed: frozenset[str] = frozenset()
    values: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Workload:
    """The use that a plan is made for.

    Attributes:
        context: context length of one row in tokens; ``None`` for the model's longest.
        images: images per row.
        batch: number of rows.
        dtype: dtype of weights, cache and activations; ``None`` for the published one.
        quantize: quantisation of the text part's linear layers, if any.
        fp8: whether weights that were published in FP8 stay so.
        image_size: side in pixels of the largest square image that is seen; ``None`` for the
            model's own limit, or what the context has room for.

    Raises:
        OptionError: if a value is out of range or unknown.
    """

    context: int | None = None
    images: int = 1
    batch: int = 1
    dtype: str | None = None
    quantize: Quantization | None = None
    fp8: bool = False
    image_size: int | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name != "fp8":  # follows from the GPUs; no option
                value = OPTIONS[each.name].normal(getattr(self, each.name))
                object.__setattr__(self, each.name, value)
                check(each.name, value)

    @property
    def form(self) -> str:
        """``8bit``, ``4bit`` or ``FP8`` for the text part's linear layers; empty for `dtype`."""
        return "FP8" if self.fp8 else self.quantize or ""


def require_shape(given: object) -> None:
    """Raise OptionError unless `given` is the sizes of a model: a name alone does not tell them."""
    if not isinstance(given, ModelShape):
        raise OptionError(
            f"A plan is made from the sizes of a model, a ModelShape, not from {brief(given)}.",
            "The sizes of a checkpoint are architecture(NAME).shape(), from "
            "glm4v_magic.checkpoints.architecture.",
        )


def require_architecture(given: object) -> None:
    """Raise OptionError unless `given` is a model without its weights."""
    if not callable(getattr(given, "shape", None)):
        raise OptionError(
            f"What is planned or tried is an architecture, not {brief(given)}.",
            "That of a checkpoint is architecture(NAME), from "
            "glm4v_magic.checkpoints.architecture.",
        )
