"""Contents of a checkpoint folder, from file headers alone: no weights are read.

The header of a safetensors file has the name, dtype and shape of each tensor, and the library
checks that they account for the whole file. That is enough to find a missing, truncated or foreign
shard before any memory is allocated.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from glm4v_magic.checkpoints.foreign import refuse_foreign_folder
from glm4v_magic.core.errors import CheckpointError, reason
from glm4v_magic.images.messages import one_line
from glm4v_magic.outside import checked, is_endless, json_object, text_of

__all__ = [
    "DTYPES",
    "Stamp",
    "TensorInfo",
    "holds_weights",
    "holds_zeros",
    "is_cut_short",
    "left_out_index",
    "read_json",
    "read_tensor_infos",
    "read_tensors_of",
    "refuse_pointer",
    "require_file",
    "stamp_of",
]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLED_INDEX = "pytorch_model.bin.index.json"
_PICKLED = "pytorch_model.bin"
_WHOLE = ((INDEX, SINGLE), (_PICKLED_INDEX, _PICKLED))
_SHARD = re.compile(r"([\w.-]{1,100})-(\d{5})-of-(\d{5})\.safetensors")
_MOST_SHARDS = 10_000
_IS_READ = re.compile(
    r".*\.(?:safetensors|bin|model|jinja)"
    r"|(?:.*config|.*index|tokenizer.*|special_tokens_map|added_tokens|chat_template)\.json"
)
_POINTER = b"version https://git-lfs.github.com/spec/"

DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
}
"""Dtype as safetensors writes it -> torch's name for it, and bytes per value."""

_DAMAGED = "The file is damaged; download it again."
_AT_ONCE = 2**16  # bytes


Stamp: TypeAlias = frozenset[tuple[str, int, int]]
"""Name, size in bytes and time of change of each file."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint.

    Attributes:
        file: shard that it is in.
        dtype: dtype as safetensors writes it, one of `DTYPES`.
        shape: its shape.
        start: offset of its first byte in the file, or within its key of a file of ``torch.save``.
        nbytes: its size in bytes.
        key: its name in a file of ``torch.save``; empty in a safetensors file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    key: str = ""


def holds_zeros(info: TensorInfo) -> bool:
    """Tell whether all values of a weight are 0; false where that takes more than to read bytes.

    Most weights tell it by their first values.
    """
    if info.key:  # within an archive
        return False
    left = info.nbytes
    try:
        with info.file.open("rb") as file:
            file.seek(info.start)
            while left > 0 and (read := file.read(min(left, _AT_ONCE))):
                if read.strip(b"\0"):
                    return False
                left -= len(read)
    except OSError:  # reading the weights will say so
        return False
    return info.nbytes > 0 and left == 0


class _Index(BaseModel):
    """Which shard each tensor is in: files beside the index, not elsewhere."""

    model_config = ConfigDict(strict=True)

    # A bound within the pattern would take a tenth of a second to compile.
    weight_map: Annotated[
        dict[str, Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=200)]],
        Field(min_length=1),
    ]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: if the file is missing, unreadable or not a JSON object.
    """
    _refuse_broken_link(path)
    refuse_pointer(path)
    # "config.json" alone, of the current folder, would not tell where it was looked for.
    what = str(path if path.parent.name else path.absolute())
    text = text_of(path, what, CheckpointError, "Is this the folder of a checkpoint?")
    return json_object(text, what, CheckpointError, _DAMAGED)


def _refuse_broken_link(path: Path) -> None:
    """Raise CheckpointError if a file is a link that leads nowhere, as in a pruned cache."""
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"{path} is a link to a file that is not there.", "Download it again."
        )


def require_file(path: Path) -> None:
    """Raise CheckpointError unless a checkpoint's file exists and is not just a git-lfs pointer."""
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} holds no {path.name}.",
            "It comes with the checkpoint; download it again.",
        )
    refuse_pointer(path)


def refuse_pointer(path: Path) -> None:
    """Raise CheckpointError if a file is a git-lfs pointer instead of its content."""
    if is_endless(path):  # said by what reads it
        return
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:  # said by what reads it
        return
    if is_pointer:
        raise CheckpointError(
            f"{path} is a pointer of git-lfs, not the file itself.",
            "Run git lfs pull in its folder, or download the file again.",
        )


def read_tensor_infos(folder: Path) -> dict[str, TensorInfo]:
    """Read the headers of all shards of a checkpoint.

    Raises:
        CheckpointError: if there are no safetensors weights, or a shard is missing, truncated,
            damaged, or lacks a tensor that the index places in it.
    """
    for index, single in _WHOLE:
        if _is_single(folder, index, single):
            return read_tensors_of(folder / single)
        if os.path.lexists(folder / index):
            return _read_sharded(folder, index)
    shards = _without_index(folder)
    if shards:
        return {name: info for shard in shards for name, info in read_tensors_of(shard).items()}
    refuse_foreign_folder(folder)
    found = sorted(path.name for path in folder.glob("*.bin")) or sorted(
        path.name for path in folder.glob("*.safetensors")
    )
    hint = f"It holds {', '.join(found[:3])}. " if found else ""
    raise CheckpointError(
        f"{folder} holds no weights: neither {INDEX} nor {SINGLE} is there.",
        f"{hint}Download the safetensors files of the checkpoint.",
    )


def _is_single(folder: Path, index: str, single: str) -> bool:
    """Tell whether weights are those of a single file: it counts before an index, if it is one.

    So it does in transformers, which leaves an index where it saves shards anew in a file.
    """
    file = folder / single
    return file.is_file() or (os.path.lexists(file) and not os.path.lexists(folder / index))


def left_out_index(folder: Path) -> str:
    """Return the index whose shards do not count, as there is a single file; empty for none."""
    for index, single in _WHOLE:
        if _is_single(folder, index, single):
            return index if (folder / index).exists() else ""
        if os.path.lexists(folder / index):
            return ""
    return ""


def _without_index(folder: Path) -> list[Path]:
    """Return shards that tell by their names that they are whole without an index; empty if none.

    Raises:
        CheckpointError: if one of them is missing.
    """
    named = {path.name: _SHARD.fullmatch(path.name) for path in folder.glob("*.safetensors")}
    counts = {(found[1], found[3]) for found in named.values() if found is not None}
    if len(counts) != 1:
        return []
    ((stem, count),) = counts
    wanted = [
        f"{stem}-{number:0{len(count)}}-of-{count}.safetensors"
        for number in range(1, min(int(count), _MOST_SHARDS) + 1)
    ]
    missing = [name for name in wanted if name not in named]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(wanted)} shards are missing in {folder}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}.",
            "Download them again.",
        )
    return [folder / name for name in wanted]


def read_tensors_of(file: Path) -> dict[str, TensorInfo]:
    """Read what a file of weights holds: from its header, or from the index of ``torch.save``.

    Raises:
        CheckpointError: as `read_tensor_infos`.
    """
    _refuse_broken_link(file)
    if not file.is_file():
        raise CheckpointError(f"{file} is no file.", "Download it again.")
    refuse_pointer(file)
    if file.suffix == ".safetensors":
        return _read_header(file)
    from glm4v_magic.checkpoints.pickled import read_pickled

    codes = {name: code for code, (name, _) in DTYPES.items()}
    tensors = {}
    for key, tensor in read_pickled(file).items():
        dtype = codes.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None:
            raise CheckpointError(
                f"{one_line(key)} in {file} is of dtype {tensor.dtype}, which is not read."
            )
        size = tensor.numel() * tensor.element_size()
        tensors[key] = TensorInfo(file, dtype, tuple(tensor.shape), 0, size, key)
    return tensors


def stamp_of(*folders: Path) -> Stamp:
    """Return name, size and time of the files in some folders that a load may read.

    Others come and go in a folder that people work in: logs, notebooks, plans, answers of rows.
    """
    found = [
        file
        for folder in folders
        for file in folder.iterdir()
        if _IS_READ.fullmatch(file.name) and file.is_file()
    ]
    stats = {str(file): file.stat() for file in found}
    return frozenset((name, each.st_size, each.st_mtime_ns) for name, each in stats.items())


def holds_weights(folder: Path) -> bool:
    """Tell whether a folder has a file with the weights of a whole model, or an index of them."""
    files = chain.from_iterable(_WHOLE)
    shards = map(_SHARD.fullmatch, (path.name for path in folder.glob("*.safetensors")))
    return any((folder / name).exists() for name in files) or any(shards)


def is_cut_short(folder: Path, beside_weights: Iterable[Sequence[str]] = ()) -> bool:
    """Tell whether a folder lacks what a download brings: shards that its index names, all weights.

    A tokenizer, or what newer models have beside theirs, may be lacking in the repository, too. It
    is to come if its link leads nowhere, or a download into the hub's cache was stopped.

    Args:
        folder: the folder.
        beside_weights: files that come with weights, each of the ways to have them.
    """
    beside = [[folder / each for each in files] for files in beside_weights]
    if any(each.is_symlink() and not each.exists() for files in beside for each in files):
        return True
    is_stopped = any((folder.parent.parent / "blobs").glob("*.incomplete"))
    if is_stopped and not any(all(each.is_file() for each in files) for files in beside):
        return True
    for index, single in _WHOLE:
        if _is_single(folder, index, single):
            return not (folder / single).exists()
        if (folder / index).exists():
            try:
                named = _placed(folder / index)
            except CheckpointError:
                return False
            return not all((folder / each).is_file() for each in named.values())
    try:
        return not _without_index(folder)
    except CheckpointError:
        return True


def _placed(index: Path) -> dict[str, str]:
    """Return the shard of each tensor."""
    return checked(_Index, read_json(index), str(index), CheckpointError, _DAMAGED).weight_map


def _read_sharded(folder: Path, index: str) -> dict[str, TensorInfo]:
    weight_map = _placed(folder / index)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(names)} shards are missing in {folder}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}.",
            "Download them again.",
        )
    infos = {name: read_tensors_of(folder / name) for name in names}
    tensors: dict[str, TensorInfo] = {}
    for tensor, shard in weight_map.items():
        if tensor not in infos[shard]:
            raise CheckpointError(
                f"{folder / shard} lacks {one_line(tensor)}, which {index} places in it.",
                "Index and shards are of different versions; download them again.",
            )
        tensors[tensor] = infos[shard][tensor]
    return tensors


def _read_header(path: Path) -> dict[str, TensorInfo]:
    # Not above: a configuration is planned without it, too.
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    try:
        # Its tensors are never read, so the framework does not matter; torch would be imported.
        with safe_open(path, framework="np") as file:
            found = [(name, file.get_slice(name)) for name in file.offset_keys()]
            tensors = {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in found}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}.") from error
    except SafetensorError as error:
        raise _damaged(path, size, str(error).partition("header: ")[2]) from error
    infos = {}
    # The tensors fill the file from the end of its header, in this order.
    sizes = {name: _nbytes(path, name, *each) for name, each in tensors.items()}
    start = size - sum(sizes.values())
    for name, (dtype, shape) in tensors.items():
        infos[name] = TensorInfo(path, dtype, shape, start, sizes[name])
        start += sizes[name]
    return infos


def _nbytes(path: Path, name: str, dtype: str, shape: Sequence[int]) -> int:
    if dtype not in DTYPES:
        raise CheckpointError(f"{one_line(name)} in {path} is of dtype {dtype}, which is not read.")
    return math.prod(shape) * DTYPES[dtype][1]


def _damaged(path: Path, size: int, fault: str) -> CheckpointError:
    """Return the error for a file that safetensors refuses; it does not say how much is there."""
    hint = "The download was cut short or damaged; download this file again."
    if "not fully covered" in fault:
        # What is read here has passed safetensors' own checks but for the size of the file.
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        whole = 8 + length + max(ends, default=0)
        what = "is truncated" if size < whole else "is too long"
        return CheckpointError(f"{path} {what}: {size:,} of {whole:,} bytes are there.", hint)
    if re.search("JSON|tensor", fault):
        return CheckpointError(f"The header of {path} is damaged: {one_line(fault)}.", hint)
    return CheckpointError(f"{path} is not a safetensors file.", hint)
