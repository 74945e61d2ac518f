"""Weights of GLM-4V-9B that bitsandbytes has quantised: published names -> those of the modules.

Query, key and value are one matrix in the files and three modules here. Quantised or not, its rows
follow each other, and so do their scales: each part is a stretch of the file.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from glm4v_magic.checkpoints.contents import Contents
from glm4v_magic.checkpoints.files import DTYPES, TensorInfo
from glm4v_magic.checkpoints.glm4v_9b import layout
from glm4v_magic.checkpoints.quantized import is_full, refused, scheme_of
from glm4v_magic.checkpoints.stored import Stored, read_stored
from glm4v_magic.core.model_shape import PackedMatrix

__all__ = ["OwnWeights", "own_weights", "with_own_shapes"]

_ROWS = ("", ".absmax", ".nested_absmax")
"""Endings of tensors that have an entry for each row, or for each block of values."""


@dataclass(frozen=True, slots=True)
class OwnWeights:
    """Quantised weights of a folder by the names of the modules here.

    Attributes:
        tensors: its tensors.
        stored: how they are stored.
        published: quantised matrices as they are in the files, by the published names of weights.
    """

    tensors: dict[str, TensorInfo]
    stored: Stored
    published: dict[str, PackedMatrix]


def own_weights(contents: Contents, where: str) -> OwnWeights | None:
    """Return the quantised weights of a folder; ``None`` if they are full.

    Args:
        contents: what is in the folder, by published names; its configuration is valid.
        where: path of its ``config.json``, for messages.

    Raises:
        CheckpointError: as `read_stored`, or if query, key and value cannot be told apart.
    """
    stored = read_stored(contents, where)
    if stored is None and is_full(contents.tensors.values()):
        return None
    if stored is None or not stored.is_of_bitsandbytes:  # in ways that do not follow the rows
        raise refused(where, scheme_of(contents.config, contents.tensors))
    packed = {f"{each.module}.weight": each for each in stored.packed}
    own = _renamed(contents, packed)
    if own is None:
        raise refused(where, f"{stored.scheme} in blocks of other sizes")
    own_stored = read_stored(replace(contents, tensors=own), where, is_cut=True)
    assert own_stored is not None  # the same weights under other names
    return OwnWeights(own, own_stored, packed)


def _renamed(contents: Contents, packed: Collection[str]) -> dict[str, TensorInfo] | None:
    """Return tensors by their names here; ``None`` if a block reaches from a part into the next."""
    tensors = contents.tensors
    own: dict[str, TensorInfo] = {}
    for name, (published, rows) in layout.published_names(contents.config).items():
        if published not in tensors:  # missing, as is said where the files are checked
            continue
        total = layout.weight_shapes(contents.config)[published][0]
        for ending, info in _belonging(published, tensors, packed):
            part: TensorInfo | None = info
            if rows is not None and _has_rows(ending, info, published in packed):
                part = _stretch(info, rows, total)
            if part is None:
                return None
            own[_ended(name, ending)] = part
    return own


def _belonging(
    published: str, tensors: Mapping[str, TensorInfo], packed: Collection[str]
) -> Iterator[tuple[str, TensorInfo]]:
    """Yield the endings of a weight's tensors: its own is empty, those of its module have a dot."""
    yield "", tensors[published]
    if published not in packed:
        return
    module = published.removesuffix(".weight")
    for name, info in tensors.items():
        if name.startswith(f"{published}."):
            yield name.removeprefix(published), info
        elif name in (f"{module}.SCB", f"{module}.weight_format"):
            yield name.removeprefix(module), info


def _ended(name: str, ending: str) -> str:
    is_of_module = ending in (".SCB", ".weight_format")
    return f"{name.removesuffix('.weight') if is_of_module else name}{ending}"


def _has_rows(ending: str, info: TensorInfo, is_packed: bool) -> bool:
    return not is_packed or ending in (*_ROWS, ".SCB")


def _stretch(info: TensorInfo, rows: tuple[int, int], total: int) -> TensorInfo | None:
    """Return the part of a tensor for some of `total` rows; ``None`` if no part is just theirs."""
    size = DTYPES[info.dtype][1]
    count = math.prod(info.shape)
    start, end = (count * row for row in rows)
    if not count or start % total or end % total:
        return None
    start, end = start // total, end // total
    first, *others = info.shape
    width = count // first
    shape = ((end - start) // width, *others)
    return replace(info, shape=shape, start=info.start + start * size, nbytes=(end - start) * size)


def with_own_shapes(model: Any) -> None:
    """Tell the quantised parts of cut matrices their shapes: files have that of the whole."""
    import torch

    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            state = getattr(projection.weight, "quant_state", None)
            if state is not None:
                state.shape = torch.Size((projection.out_features, projection.in_features))
