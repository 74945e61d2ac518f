"""What files say about quantised weights, checked before anything is loaded.

bitsandbytes describes each matrix of 4 bits in a few bytes of JSON beside it; compressed-tensors
describes groups of modules in ``config.json``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from glm4v_magic.checkpoints.files import TensorInfo
from glm4v_magic.checkpoints.outline import Scheme
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.model_shape import PackedMatrix
from glm4v_magic.images.messages import one_line
from glm4v_magic.outside import checked, json_object

__all__ = ["described_matrices", "incomplete", "require_groups", "require_row_scales"]

_HINT = "The files are damaged, or were saved in part; download or save them again."
_LEVELS = 16  # values that 4 bits may have
_LONGEST = 4096  # bytes of a description; those of bitsandbytes have under 300

_Count = Annotated[int, Field(ge=1)]
_Dtype = Literal["float32", "float16", "bfloat16"]


class _State(BaseModel):
    model_config = ConfigDict(strict=True)

    quant_type: Literal["nf4", "fp4"]
    blocksize: _Count
    dtype: _Dtype
    shape: Annotated[list[_Count], Field(min_length=1)]
    nested_blocksize: _Count | None = None
    nested_dtype: _Dtype | None = None
    nested_offset: FiniteFloat | None = None


class _Weights(BaseModel):
    model_config = ConfigDict(strict=True)

    num_bits: Annotated[int, Field(ge=1, le=16)] = 8
    type: Literal["int", "float"] = "int"


class _Group(BaseModel):
    model_config = ConfigDict(strict=True)

    targets: Annotated[list[str], Field(min_length=1)]
    weights: _Weights | None = None


class _Groups(BaseModel):
    model_config = ConfigDict(strict=True)

    config_groups: dict[str, _Group | list[str]]


def described_matrices(
    packed: Iterable[PackedMatrix],
    tensors: Mapping[str, TensorInfo],
    where: str,
    *,
    is_cut: bool = False,
) -> Iterator[PackedMatrix]:
    """Yield matrices of 4 bits with the sizes that bitsandbytes has written beside them.

    Args:
        packed: the matrices.
        tensors: all tensors of the files.
        where: path of the ``config.json``, for messages.
        is_cut: whether they may be some rows of those in the files, which passed this as a whole.

    Raises:
        CheckpointError: if one lacks something that bitsandbytes needs.
    """
    kinds = [f".quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")]
    for matrix in packed:
        weight = f"{matrix.module}.weight"
        beside = {
            ending: tensors[weight + ending]
            for ending in (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", *kinds)
            if weight + ending in tensors
        }
        described = [ending for ending in kinds if ending in beside]
        if len(described) != 1:
            raise incomplete(weight, "its quant_state", where)
        info = beside[described[0]]
        state = _read(info, f"{one_line(weight + described[0])} in {info.file}")
        if state is None:
            yield matrix
            continue
        columns = state.shape[-1]
        rows = matrix.values // columns
        yield replace(matrix, rows=rows, columns=columns, block=state.blocksize)
        if is_cut:
            continue
        if math.prod(state.shape) != matrix.values:
            raise CheckpointError(
                f"{one_line(weight)} in {info.file} holds {matrix.values:,} values of 4 bits, but "
                f"its quant_state describes {math.prod(state.shape):,}.",
                _HINT,
            )
        for ending, count in _expected(state, matrix, is_nested=".nested_absmax" in beside).items():
            found = beside.get(ending)
            if found is None or math.prod(found.shape) != count:
                raise incomplete(weight, f"{count:,} values in {ending[1:]}", where)


def _expected(state: _State, matrix: PackedMatrix, *, is_nested: bool) -> dict[str, int]:
    """Return the number of values of each tensor that describes a matrix."""
    blocks = -(-matrix.values // state.blocksize)
    counts = {".absmax": blocks, ".quant_map": _LEVELS}
    if is_nested:
        counts[".nested_absmax"] = -(-blocks // (state.nested_blocksize or 1))
    return counts


def _read(info: TensorInfo, what: str) -> _State | None:
    """Return a description; ``None`` for one in a file of ``torch.save``, which needs torch."""
    if info.key:
        return None
    try:
        with info.file.open("rb") as file:
            file.seek(info.start)
            text = file.read(min(info.nbytes, _LONGEST)).decode("utf-8", "replace")
    except OSError as error:
        raise CheckpointError(f"{info.file} cannot be read: {error.strerror or error}.") from error
    described = json_object(text, what, CheckpointError, _HINT)
    return checked(_State, described, what, CheckpointError, _HINT)


def require_row_scales(
    packed: Iterable[PackedMatrix], tensors: Mapping[str, TensorInfo], where: str
) -> None:
    """Raise CheckpointError unless matrices of 8 bits have a scale for each row; as above."""
    for matrix in packed:
        rows = tensors[f"{matrix.module}.weight"].shape[0]
        if math.prod(tensors[f"{matrix.module}.SCB"].shape) != rows:
            raise incomplete(f"{matrix.module}.weight", f"{rows:,} values in SCB", where)


def require_groups(scheme: Scheme, tensors: Mapping[str, TensorInfo], where: str) -> None:
    """Raise CheckpointError unless compressed-tensors is told what it needs of each group.

    Args:
        scheme: what the ``quantization_config`` says.
        tensors: all tensors of the files.
        where: path of the ``config.json``, for messages.
    """
    given: dict[str, Any] = {"config_groups": scheme.config_groups}
    checked(_Groups, given, f"quantization_config of {where}", CheckpointError, _HINT)
    for name, info in tensors.items():
        is_whole = info.dtype in ("BF16", "F16", "F32")
        module = name.removesuffix(".weight_packed").removesuffix(".weight")
        if module == name or (name.endswith(".weight") and is_whole):
            continue
        if f"{module}.weight_scale" not in tensors:
            raise incomplete(name, "its weight_scale", where)


def incomplete(weight: str, what: str, where: str) -> CheckpointError:
    """Return the error for a weight that lacks something; `where` as in `require_groups`."""
    return CheckpointError(
        f"The weights beside {where} are incomplete: {one_line(weight)} lacks {what}.", _HINT
    )
