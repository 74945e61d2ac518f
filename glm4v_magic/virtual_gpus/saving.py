"""``torch.save`` and ``torch.load`` of tensors on virtual GPUs, in the format of real ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

import torch

from glm4v_magic.virtual_gpus.storages import refuse_processes
from glm4v_magic.virtual_gpus.tensor import CPU, VirtualTensor

__all__ = ["files_of_gpus"]

# PyTorch's own packages for the CPU and CUDA have 10 and 20; a lower number is asked first.
_PRIORITY = 5

ForkingPickler.register(VirtualTensor, refuse_processes)


class _Machine(Protocol):
    def place_of(self, storage: torch.UntypedStorage) -> torch.device: ...

    def hold(self, storage: torch.UntypedStorage, size: int, device: torch.device) -> None: ...

    def crossed(self, size: int, source: torch.device, target: torch.device) -> None: ...

    def gpu(self, device: torch.device) -> torch.device: ...


@contextmanager
def files_of_gpus(machine: _Machine) -> Iterator[None]:
    """Let files name virtual GPUs as places of storages, as they name real ones.

    What is read for ``cuda:k``, by its file or ``map_location``, is a storage there.
    """

    def tag(storage: Any) -> str | None:
        place = machine.place_of(_untyped(storage))
        return str(place) if place.type == "cuda" else None

    def place(storage: Any, location: str) -> Any:
        if not location.startswith("cuda"):
            return None
        untyped, gpu = _untyped(storage), machine.gpu(torch.device(location))
        machine.hold(untyped, untyped.nbytes(), gpu)
        machine.crossed(untyped.nbytes(), CPU, gpu)
        return storage

    package = (_PRIORITY, tag, place)
    registry = torch.serialization._package_registry
    torch.serialization.register_package(*package)
    try:
        yield
    finally:
        registry.remove(package)


def _untyped(storage: Any) -> Any:
    return getattr(storage, "_untyped_storage", storage)
