"""What is in a checkpoint folder, read from file headers alone: no weight is touched.

A safetensors file begins with eight bytes (the length of the header, little endian) and the
header, JSON that names each tensor with its dtype, shape and place in the file. That is enough to
find a missing, truncated or foreign shard before any memory is taken.
Source: the safetensors format description.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4v_magic.core.errors import CheckpointError

__all__ = ["TensorInfo", "read_json", "read_tensor_infos"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint: its shard, dtype as safetensors writes it, shape and bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: if the file is missing, unreadable or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}.",
            "Is this the folder of a checkpoint?",
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not valid JSON: {error}.", "The file is damaged; download it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds {type(content).__name__}, not a JSON object.",
            "The file is damaged; download it again.",
        )
    return content


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
    index = read_json(folder / INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(
            f"{folder / INDEX} has no weight_map.", "The file is damaged; download it again."
        )
    names = sorted({str(shard) for shard in weight_map.values()})
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
            header = json.loads(file.read(length))
        tensors = {
            name: TensorInfo(
                file=path,
                dtype=str(entry["dtype"]),
                shape=tuple(int(n) for n in entry["shape"]),
                nbytes=int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
        end = max(
            (int(e["data_offsets"][1]) for n, e in header.items() if n != "__metadata__"), default=0
        )
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"The header of {path} is damaged ({error}).", damaged) from error
    expected = 8 + length + end
    if size < expected:
        raise CheckpointError(
            f"{path} is truncated: {size:,} of {expected:,} bytes are there.", damaged
        )
    return tensors
