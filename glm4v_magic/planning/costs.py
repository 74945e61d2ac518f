"""Memory of each unit of a model in bytes: weights, KV cache and activations.

A checkpoint describes itself as a `ModelShape`, in numbers of values. `price` turns it into `Unit`s
in bytes for a `Workload` (context, images, batch, dtype, quantisation).

Sources of the formulas, with B rows, S cache entries per row, e bytes per value:

weights
    values x e; those that the checkpoint has quantised are the bytes in its files; those that stay
    in FP8 are one byte per value and a float32 scale per block; linear layers of the text part may
    be quantised. The layouts are bitsandbytes': 8-bit is one byte per value and a float32 scale per
    output row (``Int8Params.SCB``), 4-bit is half a byte per value and a float32 ``absmax`` per 64
    values (``Params4bit``, block size 64, no double quantisation). Embedding, head, norms, biases
    and the vision tower stay as they are.
KV cache
    B x S x 2 x groups x head size x e per decoder layer (``DynamicCache`` keeps exactly the keys
    and values of every entry). An image takes more cache entries than it counts for in the context
    length if its visual tokens share a position id.
activations
    Counted in the forward of each module: the tensors alive together at the peak of a prefill over
    the whole context. `text_layer`, `vision_layer`, `gated_projection`, `patch_embedding`,
    `embedding` and `head` list them. Attention is assumed to be flash or memory-efficient (nothing
    of size S x S except the mask of a padded batch). Decode needs less. The tower runs over the
    images of all rows before the decoder runs: while it does, the KV cache is still empty, and
    afterwards nothing of it is alive but the visual tokens.
arrival
    Counted in transformers' ``core_model_loading.py`` and bitsandbytes' ``nn/modules.py``: beside
    all weights, which several threads may have brought, there are for one of them the two halves
    that it is joined of, or what it was before it was quantised or restored. Layers are quantised
    one by one instead, and before the vision tower is loaded. See `arriving_bytes`. Matrices of
    GPTQ and AWQ are arranged for their kernel when all weights are there: another one beside each.
overhead
    Every process that uses a GPU pays for a CUDA context; see `core.overhead`.

Not counted: fragmentation of the caching allocator. Keep a reserve for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.model_shape import (
    DTYPE_BYTES,
    Activation,
    Kind,
    ModelShape,
    Product,
    UnitShape,
    Workload,
)
from glm4v_magic.core.options import Quantization
from glm4v_magic.core.wording import brief, counted
from glm4v_magic.planning.seen import planned_image

__all__ = [
    "Unit",
    "arriving_bytes",
    "cache_entries",
    "embedding",
    "gated_projection",
    "head",
    "images",
    "inputs",
    "merge",
    "norm_bytes",
    "patch_embedding",
    "price",
    "products",
    "quantized_bytes",
    "text_layer",
    "vision_layer",
]

_BLOCK_4BIT = 64  # values per absmax, bitsandbytes' default
_FLOAT32 = 4
_INT32 = 4
_ENDLESS = 10**18  # tokens
_FLOAT16 = 2
_INT64 = 8
_OF_LOOP = 12  # the new token, its position, whether the row has ended, and their copies
_OF_PICK = 5 * _FLOAT32 + _INT64
"""Bytes per token of the vocabulary while one row's next is sampled, beside its logits: those by
temperature; sorted, with their numbers; their probabilities, and the sums of these."""
_TOKENS = {
    "vision": "patch",
    "vision_embedding": "patch",
    "vision_layer": "patch",
    "vision_projector": "visual",
    "embedding": "text",
    "head": "row",
}
"""Kind of unit -> what each row of its products stands for."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: a part of a model that is never split over devices. Sizes in bytes.

    Attributes:
        name, modules, kind: as in `UnitShape`.
        weight_bytes: weights.
        kv_bytes_per_token: keys and values of one cache entry.
        kv_bytes: KV cache of the whole workload.
        held_bytes: activations that stay alive until the prefill ends, and buffers.
        transient_bytes: peak of the activations that are freed while or after the unit runs.
        tower_held_bytes: activations that are alive while the vision tower runs.
        shared_bytes: bytes of `transient_bytes` that the unit before holds: the patches that are
            the tower's input, the visual tokens that are spliced in, and the embedded tokens that
            are the input of the first decoder layer.
        step_bytes: peak of the activations of a decode step, where it is not that of the prefill.
        arrival_bytes: peak of what is alive beside the weights while those of the unit are loaded.
        early_bytes: weights that may be there while those of another unit are loaded.
    """

    name: str
    modules: tuple[str, ...]
    kind: Kind
    weight_bytes: int
    kv_bytes_per_token: int = 0
    kv_bytes: int = 0
    held_bytes: int = 0
    transient_bytes: int = 0
    tower_held_bytes: int = 0
    shared_bytes: int = 0
    step_bytes: int = 0
    arrival_bytes: int = 0
    early_bytes: int = 0

    @property
    def resident_bytes(self) -> int:
        """Bytes that add up over the units of a GPU: weights, KV cache, activations that stay."""
        return self.weight_bytes + self.kv_bytes + self.held_bytes

    @property
    def tower_resident_bytes(self) -> int:
        """`resident_bytes` while the vision tower runs, when the KV cache is still empty."""
        return self.weight_bytes + self.tower_held_bytes

    @property
    def in_tower(self) -> bool:
        """Whether the unit is the vision tower or a part of it."""
        return self.kind.startswith("vision")


def cache_entries(shape: ModelShape, workload: Workload) -> int:
    """Return the KV cache entries of one row: context length, plus what images take beyond it.

    Raises:
        OptionError: if the context is longer than the model allows, or too short for the images, or
            the image size does not suit the model.
    """
    context = shape.max_context if workload.context is None else workload.context
    if context > shape.max_context:
        raise OptionError(
            f"A context of {_count(context)} tokens is longer than {shape.name} allows "
            f"({shape.max_context:,})."
        )
    image = planned_image(shape, workload)
    if context < workload.images * image.positions:
        raise OptionError(
            f"A context of {context:,} tokens is too short for "
            f"{counted(workload.images, 'image')}, "
            f"which take {image.positions:,} tokens of context each."
        )
    return context + workload.images * (image.visual_tokens - image.positions)


def _count(context: int) -> str:
    return f"{context:,}" if context < _ENDLESS else brief(context)


def price(shape: ModelShape, workload: Workload) -> tuple[Unit, ...]:
    """Return the units of `shape` with their bytes under `workload`.

    Raises:
        OptionError: as in `cache_entries`.
    """
    entries = workload.batch * cache_entries(shape, workload)
    seen = workload.batch * workload.images
    image = planned_image(shape, workload)
    counts = {
        "text": entries,
        "spliced": entries if seen else 0,
        "patch": seen * image.patches,
        "visual": seen * image.visual_tokens,
        "merged": seen * (image.patches // shape.patches_per_token),
        "image": seen,
        "row": workload.batch,
    }
    size = DTYPE_BYTES[workload.dtype or shape.dtype]
    pairs = entries * entries // workload.batch
    # Rows of different lengths need a boolean mask of size S x S on every GPU.
    mask = pairs if workload.batch > 1 and shape.masks_pairs else 0
    # The last token of an answer is not read.
    row = entries // workload.batch - 1
    units: list[Unit] = []
    for before, unit in zip((None, *shape.units), shape.units, strict=False):
        held = in_tower = buffers = unit.buffer_values * _FLOAT32
        transient = step = 0
        for a in unit.activations:
            stays = counts[a.tokens] * (a.held_values * size + a.held_bytes)
            held += stays
            casts = 0 if size == _FLOAT32 else a.tower_casts
            in_tower += counts[a.tokens] * (a.tower_values + casts) * size
            if not (_made_by_tower(a) or (shape.tower_first and unit.kind == "embedding")):
                in_tower += stays
            padded = workload.batch * (-(-row // a.chunk) * a.chunk) if a.chunk > 1 else 0
            count = counts[a.tokens]
            casts = 0 if size == _FLOAT32 else a.cast_bytes
            of_pair = a.pair_bytes + (a.batched_pair_bytes if workload.batch > 1 else 0)
            alive = count * (a.values * size + casts) + int(pairs * of_pair)
            if count:
                alive += a.fixed_values * size + (0 if size == _FLOAT32 else a.fixed_casts)
                alive += a.fixed_bytes + workload.batch * a.row_bytes
                alive += counts["text"] * (a.text_bytes + a.text_values * size)
            alive += max(count, padded) * a.extra_bytes + count * seen * a.image_bytes
            alive += count * min(a.chosen, row) * a.chosen_bytes
            alive += count * a.masked_values * size if mask else 0
            if unit.kind == "text_layer" and a.tokens == "row":
                step = max(step, alive)
            else:
                transient = max(transient, alive)
        handed_on = 0 if before is None else _handed_on(before, counts, size)
        if unit.kind == "embedding":  # the mask is made there, from one that all rows share
            of_mask = mask // workload.batch + (2 * _INT64 * (row + 1) + 2 * entries if mask else 0)
            beside = max(of_mask, entries * unit.rotary_bytes)
            transient = max(transient + handed_on, mask + beside)
        if unit.kind == "text_layer":
            quantize = shape.packed or workload.quantize
            transient = max(transient, _quantized_product(unit, quantize, entries, size)) + mask
        elif unit.packed and counts[_TOKENS[unit.kind]]:
            transient += _of_packed(unit, shape.packed, counts[_TOKENS[unit.kind]], size)
        kv_bytes_per_token = unit.cache_values * size
        weights = _weight_bytes(unit, workload, size)
        units.append(
            Unit(
                unit.name,
                unit.modules,
                unit.kind,
                weights,
                kv_bytes_per_token,
                kv_bytes_per_token * entries
                + workload.batch * (unit.row_values * size + unit.row_bytes),
                held,
                transient,
                in_tower,
                handed_on,
                step,
                _arrival(unit, workload, size),
                buffers + (0 if workload.quantize and unit.kind.startswith("vision") else weights),
            )
        )
    return tuple(units)


def _handed_on(unit: UnitShape, counts: Mapping[str, int], size: int) -> int:
    """Return the bytes that `unit` holds and the next one has as its input."""
    if unit.kind == "vision_embedding":  # the tower's input
        return sum(counts[a.tokens] * size * a.tower_values for a in unit.activations)
    tokens = {"vision_projector": "visual", "embedding": "text"}.get(unit.kind)
    return sum(
        counts[a.tokens] * size * a.held_values for a in unit.activations if a.tokens == tokens
    )


def _made_by_tower(activation: Activation) -> bool:
    return activation.tokens in ("visual", "merged")


def merge(units: Sequence[Unit], name: str, modules: tuple[str, ...], kind: Kind) -> Unit:
    """Merge units into one that stays together: resident bytes add up, peaks do not."""
    return replace(
        units[0],
        name=name,
        modules=modules,
        kind=kind,
        weight_bytes=sum(unit.weight_bytes for unit in units),
        kv_bytes_per_token=sum(unit.kv_bytes_per_token for unit in units),
        kv_bytes=sum(unit.kv_bytes for unit in units),
        held_bytes=sum(unit.held_bytes for unit in units),
        transient_bytes=max(unit.transient_bytes for unit in units),
        tower_held_bytes=sum(unit.tower_held_bytes for unit in units),
        arrival_bytes=max(unit.arrival_bytes for unit in units),
        early_bytes=sum(unit.early_bytes for unit in units),
    )


def _arrival(unit: UnitShape, workload: Workload, size: int) -> int:
    """Return the peak of what is alive beside the weights while those of a unit are loaded."""
    joined = unit.joined_values * (1 if workload.fp8 else size)
    if workload.quantize is None:
        return max(joined, unit.restoring_bytes)
    matrices = [each.rows * each.columns for each in unit.products]
    return max(joined, max(matrices, default=0) * arriving_bytes(workload.quantize, size))


def arriving_bytes(kind: Quantization, size: int) -> int:
    """Return the bytes per value that are alive while a matrix is quantised, beside the result.

    The matrix in the model's dtype; bitsandbytes makes 8 bits of a second one, in float16.

    Args:
        kind: how many bits a value has afterwards.
        size: bytes of a value in the model's dtype.
    """
    return size + (_FLOAT16 if kind == "8bit" else 0)


def _weight_bytes(unit: UnitShape, workload: Workload, size: int) -> int:
    return _in_dtype(unit, workload, size) + unit.float32_values * (_FLOAT32 - size)


def _in_dtype(unit: UnitShape, workload: Workload, size: int) -> int:
    if unit.packed_values:
        return (unit.values - unit.packed_values) * size + unit.packed_bytes
    if workload.fp8:
        return (unit.values - unit.fp8_values) * size + unit.fp8_values + unit.fp8_scales * _FLOAT32
    if workload.quantize is None:
        return unit.values * size
    kept = (unit.values - unit.linear_values) * size
    return kept + quantized_bytes(workload.quantize, unit.linear_values, unit.linear_rows)


def quantized_bytes(kind: Quantization, values: int, rows: int) -> int:
    """Return the bytes of matrices that are quantised as they are loaded, with their scales.

    Args:
        kind: how many bits a value has.
        values: number of their values.
        rows: number of their output rows.
    """
    if kind == "8bit":
        return values + rows * _FLOAT32
    return values // 2 + values // _BLOCK_4BIT * _FLOAT32


def _quantized_product(
    unit: UnitShape, quantize: Quantization | None, entries: int, size: int
) -> int:
    """Return the bytes alive in the quantised matrix product of a decoder layer that needs most.

    What is alive without quantisation, and (bitsandbytes, ``autograd/_functions.py``) the matrix
    restored to the compute dtype for 4-bit, or the input in int8 and an int32 product before the
    scaled one for 8-bit.
    """
    most = 0
    for product in unit.products if quantize else ():
        alive = entries * product.values * size
        if quantize == "4bit":
            alive += product.rows * product.columns * size
        else:
            alive += entries * (product.rows * _INT32 + product.columns)
        most = max(most, alive)
    return most


def _of_packed(unit: UnitShape, kind: Quantization | None, tokens: int, size: int) -> int:
    """Return the bytes that the largest product with a matrix published as quantised adds."""
    if kind == "4bit":
        return max(each.values for each in unit.packed) * size
    return tokens * max(each.rows for each in unit.packed) * (_INT32 + _FLOAT16)


def text_layer(hidden: int, intermediate: int, rotary: int, *, in_one: bool = True) -> Activation:
    """Decoder layer with a gated MLP; the peak is at the product of its two halves.

    Alive per token: gate and up (2 x intermediate, of one matrix; of two matrices the gate is freed
    once it is activated, and 1 is left), the activated gate and the product (1 each); the layer's
    input, the residual and the normed residual (3 x hidden); cos and sin (2 x rotary) and the int64
    position. Counted in transformers' ``modeling_glm.py`` and in the checkpoint's layer. Attention
    (about 6 x hidden) and the norms (float32, about 5 x hidden) peak lower as long as the MLP is at
    least half as wide as the model.
    """
    halves = (4 if in_one else 3) * intermediate
    return Activation("text", halves + 3 * hidden + 2 * rotary, extra_bytes=8)


def products(
    hidden: int, intermediate: int, queries: int, rotary: int, *, in_one: bool = True
) -> tuple[Product, ...]:
    """Return the products of a decoder layer that may need the most memory if it is quantised.

    Those with the matrices of its gated MLP, and with the one after the attention. All have beside
    them the layer's input, the residual and the normed residual (3 x hidden), and cos and sin; the
    last product of the MLP still has gate and up if they are one matrix, and the one after the
    attention has the query.

    Args:
        hidden: width of the model.
        intermediate: width of the MLP.
        queries: values of the query, of all heads.
        rotary: values of cos and sin.
        in_one: whether gate and up are one matrix.
    """
    beside = 3 * hidden + rotary
    halves = 2 * intermediate
    rows = halves if in_one else intermediate
    waiting = halves if in_one else 0
    return (
        Product(rows, hidden, halves + beside),
        Product(hidden, intermediate, waiting + intermediate + hidden + beside),
        Product(hidden, queries, 2 * queries + hidden + beside),
    )


def vision_layer(hidden: int, intermediate: int) -> Activation:
    """Vision layer with a two-matrix MLP; the peak is at its GELU or its fused attention.

    Alive per patch: the hidden states before and after GELU (2 x intermediate), the layer's input
    and the MLP's (2 x hidden); or, in the attention, the layer's input, query, key and value in one
    matrix, the attended values and their projection (6 x hidden).
    """
    return Activation("patch", max(2 * intermediate + 2 * hidden, 6 * hidden))


def patch_embedding(hidden: int, pixels: int, positions: int) -> Activation:
    """Patch embedding: pixels, the table of positions, and two tensors of the patches' size.

    Alive at the addition: per patch its pixels in the model's dtype, the patch and the sum, which
    is the tower's input and stays until the tower has run; the table, and the numbers of its rows.

    Args:
        hidden: width of the tower.
        pixels: values of one patch.
        positions: rows of the table.
    """
    table = positions * hidden
    return Activation(
        "patch",
        hidden + pixels,
        extra_bytes=_INT64,
        tower_values=hidden,
        fixed_values=table,
    )


def inputs(vocabulary: int, held: int, in_step: int) -> tuple[Activation, ...]:
    """On the device of the inputs, to which the logits of the last token of each row return.

    They are alive in the model's dtype and, twice, in float32, beside the state of the decode loop,
    a few int64 per row. Then, once in float32, while the next token of one row after another is
    sampled.

    Args:
        vocabulary: number of tokens.
        held: bytes per token of what `generate` keeps there: ids, mask and positions.
        in_step: bytes per token beside these in a decode step, which has them before and after the
            new token is appended.
    """
    loop = _OF_LOOP * _INT64
    return (
        Activation("text", held_bytes=held),
        Activation(
            "row",
            vocabulary,
            extra_bytes=2 * _FLOAT32 * vocabulary + loop,
            text_bytes=in_step,
        ),
        Activation(
            "row",
            extra_bytes=_FLOAT32 * vocabulary + loop,
            text_bytes=in_step,
            fixed_bytes=_OF_PICK * vocabulary,
        ),
    )


def images(pixels: int) -> Activation:
    """Images on the device of the inputs.

    Those in float32 stay until the call ends, those in the model's dtype until the tower has run.

    Args:
        pixels: values of an image.
    """
    return Activation("image", held_bytes=_FLOAT32 * pixels, tower_casts=pixels)


def gated_projection(hidden: int, intermediate: int, *, is_clamped: bool = False) -> Activation:
    """Gated MLP after the tower: per visual token 3 x intermediate and 2 x hidden.

    Activated gate, up and their product; its input and the projection it was made from. Where gate
    and up are clamped, the gate is alive, too.
    """
    return Activation("merged", (4 if is_clamped else 3) * intermediate + 2 * hidden)


def embedding(hidden: int, visual: int) -> tuple[Activation, ...]:
    """Embedding of the ids, with visual tokens spliced in.

    The spliced vectors stay alive while the decoder runs. Splicing with ``masked_scatter`` also has
    the vectors before it and, on CUDA, per vector element an int64 prefix sum and the mask
    (``aten/src/ATen/native/cuda/IndexKernel.cpp``, `masked_scatter__cuda`).

    Args:
        hidden: width of the text part.
        visual: vectors of this width that are kept here of each visual token.
    """
    return (
        Activation("text", held_values=hidden),
        Activation("spliced", hidden, extra_bytes=9 * hidden),
        Activation("merged", held_values=visual * hidden),
    )


def norm_bytes(hidden: int) -> int:
    """Return the bytes per token of a norm: its input twice in float32, variance and its root."""
    return 2 * _FLOAT32 * (hidden + 1)


def head(hidden: int, vocabulary: int) -> tuple[Activation, Activation]:
    """Final norm over all tokens, then logits of the last token of each row.

    The norm has its input in the model's dtype beside `norm_bytes`; the logits, which leave for the
    device of the inputs, have what was normed and its input.
    """
    norm = Activation("text", hidden, extra_bytes=norm_bytes(hidden))
    return norm, Activation("row", vocabulary, text_values=2 * hidden)
