"""Weights that GPTQ or AWQ has quantised to 4 bits: which matrices, and how transformers is told.

They stay as they are, and gptqmodel computes with them. Both store ``X.qweight`` in int32, eight
values each, with ``X.qzeros`` and ``X.scales`` for each group of inputs; GPTQ has ``X.g_idx`` as
well, the group of each input.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from glm4v_magic.checkpoints.files import TensorInfo
from glm4v_magic.checkpoints.quant_states import incomplete
from glm4v_magic.core.model_shape import PackedMatrix

__all__ = ["for_transformers", "packed_of"]

_VALUES = 8  # of 4 bits in an int32
_LAYER = re.compile(r"\blayers\.[0-9]+\.(?P<inside>.+)$")
_LAYERS = "model.language_model.layers"
_TOWER = re.compile(r"(^|\.)visual\.")


class _Config(BaseModel):
    quant_method: Literal["gptq", "awq"]
    bits: Literal[4]
    group_size: Annotated[int, Field(ge=-1)]
    checkpoint_format: Literal["gptq", "gptq_v2"] = "gptq"
    version: Literal["gemm", "GEMM"] = "gemm"


def packed_of(
    given: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str
) -> tuple[PackedMatrix, ...] | None:
    """Return the matrices of 4 bits; ``None`` for a form that is not loaded.

    Args:
        given: the ``quantization_config``.
        tensors: all tensors of the files.
        where: path of the ``config.json``, for messages.

    Raises:
        CheckpointError: if a part of a matrix is missing.
    """
    try:
        read = _Config.model_validate(dict(given))
    except ValidationError:
        return None
    is_gptq = read.quant_method == "gptq"
    found = tuple(_matrices(tensors, read, where, is_gptq=is_gptq))
    if is_gptq and not _is_uniform({each.module for each in found}):
        return None
    return found or None


def for_transformers(
    given: Mapping[str, Any], packed: Collection[PackedMatrix], tensors: Mapping[str, TensorInfo]
) -> dict[str, Any]:
    """Return the ``quantization_config`` that names just these matrices.

    Args:
        given: that of the files.
        packed: the matrices.
        tensors: all tensors of the files.
    """
    if given["quant_method"] == "gptq":
        inside = sorted(
            {found["inside"] for each in packed if (found := _LAYER.search(each.module))}
        )
        return {
            **given,
            "block_name_to_quantize": _LAYERS,
            "modules_in_block_to_quantize": [inside],
        }
    full = {
        name.removesuffix(".weight")
        for name, info in tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2
    }
    return {**given, "modules_to_not_convert": sorted(full)}


def _matrices(
    tensors: Mapping[str, TensorInfo], read: _Config, where: str, *, is_gptq: bool
) -> Iterator[PackedMatrix]:
    endings = ("qweight", "qzeros", "scales", *(("g_idx",) if is_gptq else ()))
    for name, info in tensors.items():
        module = name.removesuffix(".qweight")
        if module == name:
            continue
        parts = [tensors.get(f"{module}.{ending}") for ending in endings]
        present = [part for part in parts if part is not None]
        if len(present) < len(endings):
            missing = next(e for e, part in zip(endings, parts, strict=True) if part is None)
            raise incomplete(module, f"its {missing}", where)
        rows = info.shape[-1] * (1 if is_gptq else _VALUES)
        columns = math.prod(info.shape[:-1]) * (_VALUES if is_gptq else 1)
        groups = 1 if read.group_size < 1 else -(-columns // read.group_size)
        if present[2].shape != (groups, rows):
            raise incomplete(module, f"scales of shape {[groups, rows]}", where)
        yield PackedMatrix(module, rows * columns, sum(part.nbytes for part in present), rows)


def _is_uniform(modules: Collection[str]) -> bool:
    """Tell whether they are in layers of the text part, the same in each: so GPTQ is loaded."""
    inside: dict[str, set[str]] = {}
    for module in modules:
        found = _LAYER.search(module)
        if found is None or _TOWER.search(module):
            return False
        layer = module.removesuffix(found["inside"])
        inside.setdefault(layer, set()).add(found["inside"])
    return len(set(map(frozenset, inside.values()))) == 1
