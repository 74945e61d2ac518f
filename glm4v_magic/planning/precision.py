"""The dtype that a model is computed in, and whether weights that were published in FP8 stay so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.gpu_spec import ANY_CPU, CPU, GPU
from glm4v_magic.core.model_shape import ModelShape
from glm4v_magic.core.options import Quantization
from glm4v_magic.core.placement import CPU_DTYPE, Place
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.remarks import Remark, remark

__all__ = [
    "BFLOAT16_FROM",
    "FP8_FROM",
    "INT8_FROM",
    "Precision",
    "any_below",
    "can_fp8",
    "of_plan",
    "precision",
    "require_quantizable",
    "require_whole_blocks",
    "used_by",
]

BFLOAT16_FROM = (8, 0)
"""First compute capability with bfloat16 arithmetic; older GPUs emulate it slowly."""

FP8_FROM = (8, 9)
"""First compute capability with FP8 arithmetic."""

INT8_FROM = (7, 5)
"""First compute capability for which bitsandbytes has fast 8-bit products."""

_BLOCK_4BIT = 64
"""Values that share a scale where weights become 4-bit ones as they are loaded."""

_ROWS_4BIT = 32
"""Rows that bitsandbytes' product on the CPU takes together."""

_CODES = (
    "bfloat16_on_cpu",
    "eight_bit_is_slow",
    "float16_instead",
    "float16_overflows",
    "fp8_stays",
    "fp8_restored",
    "scheme_stays",
    "scheme_restored",
)


@dataclass(frozen=True, slots=True)
class Precision:
    """How weights are held and computed with.

    Attributes:
        dtype: dtype of weights, cache and activations.
        fp8: whether weights that were published in FP8 stay so.
        notes: what differs from the published weights.
    """

    dtype: str
    fp8: bool = False
    notes: tuple[Remark, ...] = ()


def precision(
    shape: ModelShape,
    gpus: Sequence[GPU],
    dtype: str | None = None,
    quantize: Quantization | None = None,
    *,
    whole: bool = True,
    cpu: CPU = ANY_CPU,
) -> Precision:
    """Choose how a model is computed.

    Args:
        shape: sizes of the model.
        gpus: GPUs that it runs on, without those that stay idle; empty for the CPU.
        dtype: dtype that the user asked for, which is used as it is; ``None`` to choose one.
        quantize: quantisation as the weights are loaded.
        whole: whether all modules are on these GPUs, none in host memory.
        cpu: the CPU of the machine; weights that were published in bfloat16 stay so if it is
            faster with them.
    """
    older = tuple(_below(BFLOAT16_FROM, gpus))
    if shape.keeps_fp8 and dtype is None and quantize is None and whole and can_fp8(gpus):
        return Precision("bfloat16", True, (remark("fp8_stays"),))
    notes: list[Remark] = []
    if dtype is not None:
        chosen = dtype
    elif not gpus:
        is_restored = shape.fp8 or (shape.scheme and shape.packed is None)
        is_full = not (shape.scheme or quantize)
        is_faster = bool(cpu.bfloat16) and is_full and shape.dtype == "bfloat16"
        if is_faster:
            notes.append(remark("bfloat16_on_cpu", instructions=cpu.bfloat16))
        chosen = "bfloat16" if is_restored or is_faster else CPU_DTYPE
    elif older and shape.dtype == "bfloat16":
        chosen = "float16"
        notes.append(remark("float16_instead", gpus=", ".join(older)))
    else:
        chosen = shape.dtype
    if chosen == "float16" and shape.float16_overflows:
        notes.append(remark("float16_overflows"))
    notes += _eight_bit_is_slow(gpus, quantize)
    if shape.fp8:
        is_asked = dtype is not None or quantize is not None
        why = _why_restored(shape, gpus, is_asked=is_asked)
        notes.append(remark("fp8_restored", dtype=chosen, why=why))
    if shape.scheme and shape.packed is None:
        notes.append(remark("scheme_restored", scheme=shape.scheme, dtype=chosen))
    elif shape.scheme:
        notes.append(remark("scheme_stays", scheme=shape.scheme))
    return Precision(chosen, False, tuple(notes))


def require_quantizable(shape: ModelShape, quantize: Quantization) -> None:
    """Raise OptionError unless layers of a model can be quantised as they are loaded."""
    if shape.fp8 or shape.scheme:
        scheme = "in FP8" if shape.fp8 else f"quantised by {shape.scheme}"
        error = OptionError(
            f"The weights of {shape.name} were published {scheme}, and {quantize} weights are "
            "made of full ones.",
            code="quantised_by_others",
        )
        if shape.fp8:
            error.advise(code="quantised_already")
        raise error
    if not shape.quantizable:
        raise OptionError(
            f"quantize does not go with {shape.name}, whose layers cannot be quantised as they are "
            "loaded.",
            "Leave it out.",
            option="quantize",
        )


def require_whole_blocks(
    shape: ModelShape, quantize: Quantization | None, places: Iterable[Place]
) -> None:
    """Raise OptionError if 4-bit matrices would be on the CPU in sizes that it does not compute.

    On CPUs with AVX-512 for bfloat16, bitsandbytes packs them anew when they are first used: 32
    rows together, each of them in whole blocks (``_convert_weight_packed_for_cpu``).

    Args:
        shape: sizes of the model.
        quantize: quantisation as the weights are loaded.
        places: devices of its modules; quantised ones are all on GPUs, or all on the CPU.
    """
    if set(places) != {"cpu"}:
        return
    for unit in shape.units:
        loaded = ((*each, _BLOCK_4BIT) for each in unit.linear if quantize == "4bit")
        stored = ((each.rows, each.columns, each.block) for each in unit.packed if each.block)
        for rows, columns, block in (*loaded, *stored):
            for count, what, whole in ((columns, "inputs", block), (rows, "outputs", _ROWS_4BIT)):
                if count % whole == 0:
                    continue
                wrong = (
                    f"{shape.name} has layers with {count} {what}, and 4bit on the CPU needs "
                    f"multiples of {whole}."
                )
                if quantize is None:
                    raise OptionError(wrong, "Use a GPU, or full weights.")
                raise OptionError(wrong, "Use 8bit, or a GPU.")


def used_by(made: Plan, gpus: Iterable[GPU]) -> tuple[GPU, ...]:
    """Return those of the GPUs that a plan puts a part of the model on."""
    busy = {stage.gpu for stage in made.stages if stage.units}
    return tuple(gpu for gpu in gpus if gpu.index in busy)


def of_plan(made: Plan) -> Precision:
    """Return the precision that a plan was made with."""
    assert made.workload.dtype is not None
    notes = tuple(note for note in made.notes if note.code in _CODES)
    return Precision(made.workload.dtype, made.workload.fp8, notes)


def _why_restored(shape: ModelShape, gpus: Sequence[GPU], *, is_asked: bool) -> str:
    if not shape.keeps_fp8:
        return "models of this type do not stay in FP8 here"
    if is_asked and can_fp8(gpus):
        return "they stay in FP8 if no dtype and no quantisation is asked for"
    return "to stay, all have to be on GPUs of compute capability 8.9 or more"


def any_below(capability: tuple[int, int], gpus: Iterable[GPU]) -> bool:
    """Tell whether one of the GPUs is known to be older."""
    return any(_below(capability, gpus))


def _below(capability: tuple[int, int], gpus: Iterable[GPU]) -> Iterator[str]:
    """Yield the names of GPUs that are known to be older, each once."""
    found = {g.name: None for g in gpus if g.capability is not None and g.capability < capability}
    yield from found


def _eight_bit_is_slow(gpus: Sequence[GPU], quantize: Quantization | None) -> Iterator[Remark]:
    slow = ", ".join(_below(INT8_FROM, gpus))
    if slow and quantize == "8bit":
        yield remark("eight_bit_is_slow", gpus=slow)


def can_fp8(gpus: Sequence[GPU]) -> bool:
    """Tell whether there are GPUs, and all are known to compute in FP8."""
    return bool(gpus) and all(g.capability is not None and g.capability >= FP8_FROM for g in gpus)
