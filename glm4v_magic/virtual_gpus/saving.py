"""``torch.save`` and ``torch.load`` of tensors on virtual GPUs, in the format of real ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

from glm4v_magic.virtual_gpus.memory import MemoryLedger
from glm4v_magic.virtual_gpus.tensor import Owner

__all__ = ["gpu_storages"]

# PyTorch's own packages for the CPU and CUDA have 10 and 20; a lower number is asked first.
_PRIORITY = 5


@contextmanager
def gpu_storages(
    owner: Owner, ledger: MemoryLedger, on_gpu: Callable[[torch.device], torch.device]
) -> Iterator[None]:
    """Let files name virtual GPUs as places of storages, as they name real ones.

    A storage is saved as that of ``cuda:k`` if it holds the content of a tensor there. One that is
    loaded to ``cuda:k``, by its file or ``map_location``, gives tensors there; tensors that shared
    a storage share one again.

    Args:
        owner: moves tensors to virtual GPUs.
        ledger: knows the storages on each GPU.
        on_gpu: returns a device with an index that exists, or raises.
    """
    places: WeakKeyDictionary[torch.UntypedStorage, torch.device] = WeakKeyDictionary()
    loaded: WeakKeyDictionary[torch.UntypedStorage, torch.Tensor] = WeakKeyDictionary()
    rebuild, load_old = torch._utils._rebuild_tensor, torch.serialization._legacy_load
    load, to = torch.serialization._load, torch.UntypedStorage.to
    files = threading.local()

    def tag(storage: Any) -> str | None:
        gpu = ledger.gpu_of(storage)
        return None if gpu is None else f"cuda:{gpu}"

    def place(storage: Any, location: str) -> Any:
        if not location.startswith("cuda"):
            return None
        device = on_gpu(torch.device(location))
        places[getattr(storage, "_untyped_storage", storage)] = device
        return storage

    def rebuild_tensor(storage: Any, storage_offset: int, size: Any, stride: Any) -> torch.Tensor:
        untyped = storage._untyped_storage
        if untyped not in places:
            return rebuild(storage, storage_offset, size, stride)
        if "old" in vars(files):  # tensors are rebuilt before their data is read
            raise NotImplementedError(
                "Files of the format before PyTorch 1.6 cannot be loaded to a virtual GPU; "
                'use map_location="cpu", or save them again with torch.save'
            )
        if untyped not in loaded:
            octets = torch.empty(0, dtype=torch.uint8).set_(untyped)
            loaded[untyped] = owner.move(octets, places[untyped])
        return loaded[untyped].view(storage.dtype).as_strided(size, stride, storage_offset)

    def storage_to(storage: Any, *, device: Any, non_blocking: bool = False) -> Any:
        """``map_location`` may be a function that moves the storage it is given."""
        device = torch.device(device)
        if device.type != "cuda" or not vars(files).keys() & {"new", "old"}:
            return to(storage, device=device, non_blocking=non_blocking)
        moved = storage.clone()
        places[moved] = on_gpu(device)
        return moved

    package = (_PRIORITY, tag, place)
    registry = torch.serialization._package_registry
    torch.serialization.register_package(*package)
    torch._utils._rebuild_tensor = rebuild_tensor
    torch.serialization._load = _counted(files, "new", load)
    torch.serialization._legacy_load = _counted(files, "old", load_old)
    torch.UntypedStorage.to = storage_to  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch._utils._rebuild_tensor = rebuild
        torch.serialization._load = load
        torch.serialization._legacy_load = load_old
        del torch.UntypedStorage.to  # that of the base class shows again
        registry.remove(package)


def _counted(files: threading.local, kind: str, load: Callable[..., Any]) -> Callable[..., Any]:
    """Return `load`, noted in `files` by an attribute named `kind` while it runs."""

    def run(*args: Any, **kwargs: Any) -> Any:
        outer = getattr(files, kind, 0)
        setattr(files, kind, outer + 1)
        try:
            return load(*args, **kwargs)
        finally:
            setattr(files, kind, outer)
            if not outer:
                delattr(files, kind)

    return run
