"""Weights read from their shards one at a time, on demand.

`from_pretrained` maps every shard into memory and keeps all of them mapped until it ends, so that
the pages of a whole checkpoint count as resident memory. Here each weight is read into its own
memory, which is freed as soon as the weight is on its GPU. Reads can also be refused, which stops
the threads of an interrupted load.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from glm4v_magic.checkpoints.files import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["StoredWeight", "forget_locals", "stored_weights"]

_LONGEST_READ = 60.0  # seconds to wait for a thread that is at one weight


class _Reader:
    """Open shards, and the threads that read from them."""

    def __init__(self) -> None:
        self._files: dict[Path, Any] = {}
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._open = True

    def read(self, path: Path, name: str) -> Tensor:
        with self._lock:
            if not self._open:
                raise InterruptedError("the load was given up")
            self._threads.add(threading.current_thread())
            if path not in self._files:
                self._files[path] = safe_open(path, framework="pt", backend="pread")
            file = self._files[path]
        tensor: Tensor = file.get_tensor(name)
        return tensor

    def close(self) -> None:
        """Refuse further reads and wait for the threads that are reading."""
        with self._lock:
            self._open = False
            threads = self._threads - {threading.current_thread()}
        for thread in threads:
            thread.join(_LONGEST_READ)
        self._files.clear()


class StoredWeight:
    """A weight in its file; `from_pretrained` reads it with ``weight[...]``."""

    def __init__(self, reader: _Reader, path: Path, name: str) -> None:
        self._reader = reader
        self._path = path
        self._name = name

    def __getitem__(self, index: EllipsisType) -> Tensor:
        return self._reader.read(self._path, self._name)[index]


@contextmanager
def stored_weights(tensors: Mapping[str, TensorInfo]) -> Iterator[dict[str, StoredWeight]]:
    """Yield a ``state_dict`` for `from_pretrained` that reads each weight on demand.

    When the context ends, for whatever reason, no thread reads any more.

    Args:
        tensors: file of each weight.
    """
    reader = _Reader()
    try:
        yield {name: StoredWeight(reader, info.file, name) for name, info in tensors.items()}
    except BaseException as error:
        forget_locals(error)  # or the pool of threads would stay alive, and wait for work
        raise
    finally:
        reader.close()


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
