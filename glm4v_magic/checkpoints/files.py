"""Contents of a checkpoint folder, from file headers alone: no weights are read.

A safetensors file begins with eight bytes (the length of the header, little endian) and the
header, JSON with each tensor's name, dtype, shape and offsets in the file. That is enough to
find a missing, truncated or foreign shard before any memory is allocated.
Source: the safetensors format description.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.wording import printable
from glm4v_magic.outside import checked, json_object, text_of

__all__ = ["DTYPES", "TensorInfo", "read_json", "read_tensor_infos"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit

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
"""torch's name of each dtype of the format that it has, and bytes of a value."""

_DAMAGED = "The file is damaged; download it again."


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint.

    Attributes:
        file: shard that it is in.
        dtype: dtype as safetensors writes it, one of `DTYPES`.
        shape: its shape.
        start: offset of its first byte in the file.
        nbytes: its size in bytes.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


class _Index(BaseModel):
    """Which shard each tensor is in: files beside the index, not elsewhere."""

    model_config = ConfigDict(strict=True)

    # A bound within the pattern would take a tenth of a second to compile.
    weight_map: Annotated[
        dict[str, Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=200)]],
        Field(min_length=1),
    ]


class _Entry(BaseModel):
    """What a safetensors header says of one tensor."""

    model_config = ConfigDict(strict=True)

    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _adds_up(self) -> _Entry:
        if self.nbytes < 0:
            raise ValueError("it ends before it begins")
        if self.dtype not in DTYPES:
            raise ValueError(f"torch has no dtype {printable(self.dtype)!r}")
        if self.nbytes != math.prod(self.shape) * DTYPES[self.dtype][1]:
            raise ValueError("its bytes are not those of its shape and dtype")
        return self

    @property
    def nbytes(self) -> int:
        return self.data_offsets[1] - self.data_offsets[0]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: if the file is missing, unreadable or not a JSON object.
    """
    text = text_of(path, str(path), CheckpointError, "Is this the folder of a checkpoint?")
    return json_object(text, str(path), CheckpointError, _DAMAGED)


def read_tensor_infos(folder: Path) -> dict[str, TensorInfo]:
    """Read the headers of all shards of a checkpoint.

    Raises:
        CheckpointError: if there are no safetensors weights, or a shard is missing, truncated,
            damaged, or lacks a tensor that the index places in it.
    """
    if (folder / INDEX).exists():
        return _read_sharded(folder)
    if (folder / SINGLE).exists():
        return _read_header(folder / SINGLE)
    found = sorted(path.name for path in folder.glob("*.bin")) or sorted(
        path.name for path in folder.glob("*.safetensors")
    )
    hint = f"It holds {', '.join(found[:3])}; " if found else ""
    raise CheckpointError(
        f"{folder} holds no weights: neither {INDEX} nor {SINGLE} is there.",
        f"{hint}Download the safetensors files of the checkpoint.",
    )


def _read_sharded(folder: Path) -> dict[str, TensorInfo]:
    where = folder / INDEX
    weight_map = checked(_Index, read_json(where), str(where), CheckpointError, _DAMAGED).weight_map
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(names)} shards are missing in {folder}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}.",
            "Download them again.",
        )
    infos = {name: _read_header(folder / name) for name in names}
    tensors: dict[str, TensorInfo] = {}
    for tensor, shard in weight_map.items():
        if tensor not in infos[shard]:
            raise CheckpointError(
                f"{folder / shard} lacks {tensor}, which {INDEX} places in it.",
                "Index and shards are of different versions; download them again.",
            )
        tensors[tensor] = infos[shard][tensor]
    return tensors


def _read_header(path: Path) -> dict[str, TensorInfo]:
    size = path.stat().st_size
    damaged = "The download was cut short or damaged; download this file again."
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 0 < length <= min(size, _MAX_HEADER_BYTES):
                raise CheckpointError(f"{path} is not a safetensors file.", damaged)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    what = f"The header of {path}"
    header = json_object(text, what, CheckpointError, damaged)
    header.pop("__metadata__", None)
    entries = checked(dict[str, _Entry], header, what, CheckpointError, damaged)
    tensors = {
        name: TensorInfo(
            path,
            entry.dtype,
            tuple(entry.shape),
            8 + length + entry.data_offsets[0],
            entry.nbytes,
        )
        for name, entry in entries.items()
    }
    end = max((entry.data_offsets[1] for entry in entries.values()), default=0)
    expected = 8 + length + end
    if size < expected:
        raise CheckpointError(
            f"{path} is truncated: {size:,} of {expected:,} bytes are there.", damaged
        )
    return tensors
