"""Weights mapped from their shards, one at a time and on demand.

A weight that stays on the CPU in the dtype of its file stays in the file: its pages are read when
they are used. `mapped_files` tells those files, for what is written into them is in the weights at
once. Any other weight is copied once, from the file to its device, and its pages are
released at once. `from_pretrained` alone would release them only at its end, and until then the
pages of a whole checkpoint would count as resident memory. Weights can also be refused, which stops
the threads of an interrupted load.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import traceback
import weakref
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING

from glm4v_magic.checkpoints.files import DTYPES, TensorInfo
from glm4v_magic.core.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from glm4v_magic.checkpoints.merging import Merger

__all__ = [
    "FP8",
    "MappedFile",
    "Restored",
    "StoredWeight",
    "forget_locals",
    "mapped_files",
    "stored_weights",
]

FP8 = "F8_E4M3"
"""Dtype of weights in FP8, as safetensors writes it."""

_LONGEST_READ = 60.0  # seconds to wait for a thread that is at one weight
_AHEAD = 2**20  # bytes; what most disks are read ahead at once


def _state(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True, eq=False)
class MappedFile:
    """A file that is mapped into memory.

    A weight in a part that was cut off ends the process as it is read (SIGBUS). A file that is
    replaced by another, or deleted, stays as it was for those who have mapped it.

    Attributes:
        path: the file.
        state: its device, number, size and modification time as it was mapped.
        ranges: ranges of addresses, (begin, end), that it is mapped to.
        held: what keeps it mapped there.
    """

    path: Path
    state: tuple[int, int, int, int]
    ranges: tuple[tuple[int, int], ...]
    held: object

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether the values of a tensor of the CPU are in the file."""
        address = tensor.data_ptr()
        return any(begin <= address < end for begin, end in self.ranges)

    @property
    def has_changed(self) -> bool:
        """Whether anything was written into it since."""
        try:
            now = _state(self.path.stat())
        except OSError:
            return False
        return now[:2] == self.state[:2] and now != self.state


class _Shard:
    """A file mapped into memory; changes to its weights do not reach the file.

    Raises:
        CheckpointError: if the file cannot be mapped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with ExitStack() as files:
            try:
                self._file = files.enter_context(path.open("rb"))
                self._state = _state(os.fstat(self._file.fileno()))
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:  # an empty file is a ValueError
                raise CheckpointError(f"{path} cannot be read: {error}.") from error
            files.pop_all()

    def weight(self, info: TensorInfo) -> Tensor:
        """Return a weight as a view of the file; its pages are released when it is dropped.

        Raises:
            CheckpointError: if the file has been cut short in the meantime.
        """
        import torch

        name, size = DTYPES[info.dtype]
        dtype: torch.dtype = getattr(torch, name)
        if not info.nbytes:
            return torch.empty(info.shape, dtype=dtype)
        if info.start + info.nbytes > min(len(self._map), os.fstat(self._file.fileno()).st_size):
            raise CheckpointError(
                f"{self._path} was cut short while it was read.", "Download this file again."
            )
        tensor = torch.frombuffer(
            self._map, dtype=dtype, count=info.nbytes // size, offset=info.start
        ).view(info.shape)
        if sys.platform != "win32":
            weakref.finalize(tensor, self._let_go, info).atexit = False
        return tensor

    def _let_go(self, info: TensorInfo) -> None:
        start = info.start - info.start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, info.start + info.nbytes - start)

    @property
    def mapped(self) -> MappedFile:
        """The file as it is mapped."""
        import torch

        begin = torch.frombuffer(self._map, dtype=torch.uint8).data_ptr()
        return MappedFile(self._path, self._state, ((begin, begin + len(self._map)),), self._map)

    def read_ahead(self, info: TensorInfo) -> None:
        """Ask the system to read a weight from disk as a whole, unless it has read it before."""
        if sys.platform != "linux":
            return
        file, end = self._file.fileno(), info.start + info.nbytes
        try:
            os.preadv(file, [bytearray(1)], end - 1, os.RWF_NOWAIT)
        except BlockingIOError:
            for start in range(info.start, end, _AHEAD):
                os.posix_fadvise(file, start, _AHEAD, os.POSIX_FADV_WILLNEED)
        except OSError:  # a file system that cannot tell
            pass

    def close(self) -> None:
        """Close the file; it stays mapped for the weights that stay in it."""
        self._file.close()


class _Pickled:
    """A file of ``torch.save``, mapped by torch."""

    def __init__(self, path: Path) -> None:
        from glm4v_magic.checkpoints.pickled import read_pickled

        self._path, self._state = path, _state(path.stat())
        self._tensors = read_pickled(path)

    def weight(self, info: TensorInfo) -> Tensor:
        """Return a weight as a contiguous tensor, which is mapped where the file has it so."""
        whole = self._tensors[info.key].contiguous()
        if info.nbytes == whole.nbytes:
            return whole
        start = info.start // whole.itemsize
        return whole.flatten()[start : start + info.nbytes // whole.itemsize].view(info.shape)

    @property
    def mapped(self) -> MappedFile:
        """The file; of an old one, which torch reads into memory, no tensor is in a range."""
        held = [each.untyped_storage() for each in self._tensors.values()]
        is_mapped = zipfile.is_zipfile(self._path)
        ranges = [(each.data_ptr(), each.data_ptr() + each.nbytes()) for each in held if is_mapped]
        return MappedFile(self._path, self._state, tuple(ranges), held)

    def read_ahead(self, info: TensorInfo) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Let go of the file."""
        self._tensors = {}


class _Reader:
    """Mapped shards, and the threads that take weights from them."""

    def __init__(self) -> None:
        self._shards: dict[Path, _Shard | _Pickled] = {}
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._open = True

    def read(self, info: TensorInfo) -> Tensor:
        with self._lock:
            if not self._open:
                raise InterruptedError("the load was given up")
            self._threads.add(threading.current_thread())
            if info.file not in self._shards:
                self._shards[info.file] = (_Pickled if info.key else _Shard)(info.file)
            shard = self._shards[info.file]
        shard.read_ahead(info)
        return shard.weight(info)

    @property
    def files(self) -> list[MappedFile]:
        """The shards that are mapped."""
        return [shard.mapped for shard in self._shards.values()]

    def close(self) -> None:
        """Refuse further reads and wait for the threads that are reading."""
        with self._lock:
            self._open = False
            threads = self._threads - {threading.current_thread()}
        for thread in threads:
            thread.join(_LONGEST_READ)
        for shard in self._shards.values():
            shard.close()
        self._shards.clear()


class StoredWeight:
    """A weight in its file; `from_pretrained` reads it with ``weight[...]``."""

    def __init__(self, reader: _Reader, info: TensorInfo) -> None:
        self._reader = reader
        self._info = info

    def __getitem__(self, _all: EllipsisType) -> Tensor:
        return self._reader.read(self._info)

    @property
    def files(self) -> list[MappedFile]:
        """All files that have been mapped for this weight and those beside it."""
        return self._reader.files

    def get_dtype(self) -> str:
        """Return the dtype in the file; transformers asks for it if weights are quantised."""
        return self._info.dtype


class _RestoredWeight(StoredWeight):
    """A weight in FP8 that is read as ``weight x scale`` of its block, in float32 and then cast."""

    def __init__(
        self, reader: _Reader, info: TensorInfo, scales: TensorInfo, how: Restored
    ) -> None:
        super().__init__(reader, info)
        self._scales, self._how = scales, how

    def __getitem__(self, _all: EllipsisType) -> Tensor:
        import torch

        weight = self._reader.read(self._info).to(torch.float32)
        scales = self._reader.read(self._scales).to(torch.float32)
        for axis, size in zip((-2, -1), self._how.block, strict=True):
            scales = scales.repeat_interleave(size, dim=axis).narrow(axis, 0, weight.shape[axis])
        return weight.mul_(scales).to(self._how.dtype)


class _CastWeight(StoredWeight):
    """A weight that is read in another dtype than that of its file."""

    def __init__(self, reader: _Reader, info: TensorInfo, dtype: torch.dtype) -> None:
        super().__init__(reader, info)
        self._dtype = dtype

    def __getitem__(self, _all: EllipsisType) -> Tensor:
        return self._reader.read(self._info).to(self._dtype)


class _MergedWeight(StoredWeight):
    """A weight that an adapter changes."""

    def __init__(
        self, reader: _Reader, info: TensorInfo, name: str, weight: StoredWeight, merger: Merger
    ) -> None:
        super().__init__(reader, info)
        self._name, self._weight, self._merger = name, weight, merger

    def __getitem__(self, _all: EllipsisType) -> Tensor:
        return self._merger.merged(self._name, self._weight[...], self._reader.read)


@dataclass(frozen=True, slots=True)
class Restored:
    """How weights in FP8 are restored as they are read.

    Attributes:
        block: rows and columns that share a scale.
        suffix: suffix of the scales' name, after the name of the weight.
        dtype: dtype of the result.
    """

    block: tuple[int, int]
    suffix: str
    dtype: torch.dtype


@contextmanager
def stored_weights(
    tensors: Mapping[str, TensorInfo],
    restored: Restored | None = None,
    merger: Merger | None = None,
    casts: Mapping[str, torch.dtype] | None = None,
) -> Iterator[dict[str, StoredWeight]]:
    """Yield a ``state_dict`` for `from_pretrained` that maps each weight on demand.

    When the context ends, for whatever reason, no thread reads any more.

    Args:
        tensors: place of each weight.
        restored: how weights in FP8 are restored, in which case their scales are left out; ``None``
            to read everything as it is.
        merger: merges an adapter into some of them, once they are restored.
        casts: dtypes in which weights are read, where transformers would leave them as they are.
    """
    reader = _Reader()
    try:
        weights = dict(_weights(reader, tensors, restored))
        for name, dtype in (casts or {}).items():
            weights[name] = _CastWeight(reader, tensors[name], dtype)
        if merger is not None:
            for name in merger.changed:
                weight = _MergedWeight(reader, tensors[name], name, weights[name], merger)
                weights[name] = weight
        yield weights
    except BaseException as error:
        forget_locals(error)  # or the pool of threads would stay alive, and wait for work
        raise
    finally:
        reader.close()


def mapped_files(weights: Mapping[str, StoredWeight]) -> tuple[MappedFile, ...]:
    """Return the files that weights were read from, while they are open; see `stored_weights`."""
    return tuple(next(iter(weights.values())).files) if weights else ()


def _weights(
    reader: _Reader, tensors: Mapping[str, TensorInfo], restored: Restored | None
) -> Iterator[tuple[str, StoredWeight]]:
    for name, info in tensors.items():
        if restored is None:
            yield name, StoredWeight(reader, info)
        elif info.dtype == FP8:
            scales = tensors[name + restored.suffix]
            yield name, _RestoredWeight(reader, info, scales, restored)
        elif not name.endswith(restored.suffix):
            yield name, StoredWeight(reader, info)


def forget_locals(error: BaseException) -> None:
    """Clear the frames of an exception; its traceback still names their lines.

    IPython keeps the latest exception, and with it all local variables of its frames: half a
    model, or a KV cache.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
