"""Contents of a checkpoint's folder, as if published: its config and its weights by name.

Trainers and people leave folders that differ from published ones: prefixes in the names of weights,
a dtype that is to be found out, a vocabulary that has grown. `read_contents` is the one place that
knows of it; plans and loads both begin with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm4v_magic.checkpoints.adapters import (
    ADAPTER_CONFIG,
    Adapter,
    Merges,
    adapter_beside,
    read_adapter,
)
from glm4v_magic.checkpoints.files import (
    TensorInfo,
    left_out_index,
    read_json,
    read_tensor_infos,
)
from glm4v_magic.checkpoints.outline import outline_of
from glm4v_magic.checkpoints.quantized import (
    FULL,
    is_full,
    quantization_of,
    scheme_of,
    without_quantization,
)
from glm4v_magic.checkpoints.trained_names import OF_VOCABULARY, plain_names
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.model_shape import DTYPE_BYTES
from glm4v_magic.core.wording import printable
from glm4v_magic.images.messages import one_line

__all__ = ["Contents", "read_config_alone", "read_contents", "with_vocabulary"]

_PARTS = ("text_config", "vision_config")
_OF_A_RUN = (
    "_attn_implementation", "_attn_implementation_internal", "attn_implementation",
    "experts_implementation", "return_dict", "use_return_dict",
)  # fmt: skip
"""Keys that trainers leave, about how a model is run: not every kernel is here, or priced."""

_AUTO = "auto"
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True, slots=True)
class Contents:
    """Contents of a folder.

    Attributes:
        config: its ``config.json``, completed by what the weights tell.
        tensors: its weights, by their published names; empty if it has none.
        notes: differences from the files.
        adapter: an adapter that is to be merged into the weights.
        merges: its changes to the weights; set by `adapted.with_adapter`.
    """

    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    adapter: Adapter | None = None
    merges: Merges | None = None


def read_config_alone(file: Path, *, is_beside_weights: bool = False) -> Contents:
    """Read a ``config.json`` without weights.

    Args:
        file: the file.
        is_beside_weights: whether the weights are beside it, which tell how they are quantised.

    Raises:
        CheckpointError: if it cannot be read.
    """
    config = _read_config(file)
    if is_beside_weights:
        config = without_quantization(config)
    return Contents(_with_dtype(config, {}, str(file)))


def read_contents(folder: Path, adapter: Adapter | None = None) -> Contents:
    """Read the ``config.json`` of a folder, and the headers of its weights.

    Args:
        folder: the folder.
        adapter: an adapter that was asked for beside it; ``None`` for that within the weights.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """
    file = folder / "config.json"
    config = _read_config(file)
    tensors, unmerged = plain_names(read_tensor_infos(folder), str(folder))
    asked, adapter = adapter, None
    if unmerged and (folder / ADAPTER_CONFIG).is_file():
        adapter = read_adapter(folder, unmerged)
    elif unmerged:
        raise CheckpointError(
            f"{folder} holds weights of an adapter that are not merged, for example "
            f"{one_line(min(unmerged))}, and no {ADAPTER_CONFIG}.",
            "Save the adapter by itself (save_pretrained of peft), or merge it first.",
        )
    config, notes = with_vocabulary(config, tensors)
    beside = None if unmerged else adapter_beside(folder)
    if beside is not None and (asked is None or not folder.samefile(asked.folder)):
        notes = (
            *notes,
            f"{beside} is left out: whole weights are beside it, into which it may be merged",
        )
    index = left_out_index(folder)
    if index:
        single = index.removesuffix(".index.json")
        notes = (*notes, f"{index} and its shards are left out, as there is a {single}")
    if quantization_of(config) is not None and is_full(tensors.values()):
        scheme = scheme_of(config)
        config = without_quantization(config)
        left = f"config.json says that the weights are quantised by {scheme}, but they are not"
        notes = (*notes, f"{left}: it is left out")
    return Contents(_with_dtype(config, tensors, str(file)), tensors, notes, adapter)


def _read_config(file: Path) -> dict[str, Any]:
    """Read a ``config.json`` without what says how a model is run: that is decided here.

    Raises:
        CheckpointError: if it cannot be read.
    """
    config = read_json(file)
    return {
        key: _without_run(value) if key in _PARTS and isinstance(value, dict) else value
        for key, value in _without_run(config).items()
    }


def _without_run(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _OF_A_RUN}


def _with_dtype(
    config: dict[str, Any], tensors: Mapping[str, TensorInfo], where: str
) -> dict[str, Any]:
    """Return a configuration whose dtype, if it is ``auto`` or none, is that of most weights.

    Raises:
        CheckpointError: if it is one that models are not computed in.
    """
    text = outline_of(config).text_config
    parts = [config] if text is None else [config, text]
    given = [part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)]
    for dtype in given:
        if isinstance(dtype, str) and dtype not in (*DTYPE_BYTES, _AUTO):
            raise CheckpointError(
                f"{where} gives the weights the dtype {printable(dtype)!r}; known are "
                f"{', '.join(DTYPE_BYTES)}."
            )
    if given and _AUTO not in given:
        return config
    counts: Counter[str] = Counter()
    for info in tensors.values():
        counts[info.dtype] += info.nbytes if info.dtype in _DTYPES else 0
    most = max(counts, key=counts.__getitem__) if counts else ""
    dtype = _DTYPES.get(most, "bfloat16")
    outer, *inner = [
        {key: value for key, value in part.items() if key not in ("dtype", "torch_dtype")}
        for part in parts
    ]
    if inner:
        outer["text_config"] = {**inner[0], "dtype": dtype}
    return {**outer, "torch_dtype": dtype}


def with_vocabulary(
    config: dict[str, Any], tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a configuration with the vocabulary of the weights: tokens may have been added."""
    rows = {
        tensors[name].shape[0]
        for name in OF_VOCABULARY
        if name in tensors and len(tensors[name].shape) == 2 and tensors[name].dtype in FULL
    }
    text = outline_of(config).text_config
    inner = config if text is None else text
    key = "padded_vocab_size" if config.get("model_type") == "chatglm" else "vocab_size"
    said = inner.get(key)
    if len(rows) != 1 or said in rows or not isinstance(said, int):
        return config, ()
    (size,) = rows
    note = f"the weights have a vocabulary of {size:,}, where config.json says {said:,}"
    changed = {**inner, key: size}
    return (changed if inner is config else {**config, "text_config": changed}), (note,)
