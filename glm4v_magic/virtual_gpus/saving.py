"""``torch.save`` and ``torch.load`` of tensors on virtual GPUs, in the format of real ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import JoinableQueue, Queue
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

import torch

from glm4v_magic.virtual_gpus.storages import refuse_processes
from glm4v_magic.virtual_gpus.tensor import CPU, VirtualTensor

__all__ = ["files_of_gpus", "queues_of_processes"]

# PyTorch's own packages for the CPU and CUDA have 10 and 20; a lower number is asked first.
_PRIORITY = 5
_STORAGES = (torch.UntypedStorage, torch.TypedStorage)

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


@contextmanager
def queues_of_processes() -> Iterator[None]:
    """Refuse what has memory of a virtual GPU where it is put into a queue.

    A `Queue` pickles in a thread of its own: nobody could catch the refusal there, and whoever
    reads the queue would wait for ever.
    """
    originals = {kind: vars(kind)["put"] for kind in (Queue, JoinableQueue)}
    for kind, put in originals.items():
        kind.put = _refusing(put)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for kind, put in originals.items():
            kind.put = put  # type: ignore[method-assign]


def _refusing(put: Callable[..., None]) -> Callable[..., None]:
    def checked(queue: Any, item: Any, *args: Any, **kwargs: Any) -> None:
        # A queue that hands the error of its thread on, as that of a pool's tasks, does so itself.
        is_silent = type(queue)._on_queue_feeder_error is Queue._on_queue_feeder_error  # type: ignore[attr-defined]
        if is_silent and _is_on_gpu(item):
            refuse_processes()
        put(queue, item, *args, **kwargs)

    return checked


def _is_on_gpu(item: object) -> bool:
    """Tell whether pickling would come upon memory of a virtual GPU, wherever in an object."""
    try:
        _Finder(_Nowhere(), protocol=5, buffer_callback=lambda _: None).dump(item)
    except _FoundError:
        return True
    except Exception:  # of any object's own; the queue says so
        return False
    return False


class _FoundError(Exception):
    pass


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)


class _Finder(pickle.Pickler):
    """Pickles all but the values of tensors."""

    def reducer_override(self, obj: Any) -> Any:
        is_storage = isinstance(obj, _STORAGES)
        if isinstance(obj, VirtualTensor) or (is_storage and _untyped(obj).device.type == "cuda"):
            raise _FoundError
        return (int, ()) if is_storage or isinstance(obj, torch.Tensor) else NotImplemented


def _untyped(storage: Any) -> Any:
    return getattr(storage, "_untyped_storage", storage)
