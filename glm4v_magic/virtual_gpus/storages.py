"""Storages on a virtual GPU, with and without a tensor: memory of the CPU that says ``cuda:k``.

PyTorch builds all that a storage can do in Python upon its device, its constructor, copies and
sizes; those are replaced. What C++ asks of a storage is ``set_``: see the rule of that operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import torch
from torch.utils._python_dispatch import _disable_current_modes

from glm4v_magic.virtual_gpus.tensor import CPU, META

__all__ = ["device_of_memory", "refuse_processes", "storages_on_gpus"]

_device_of_memory: Any = torch._C.StorageBase.device  # type: ignore[attr-defined]


class _Machine(Protocol):
    def place_of(self, storage: torch.UntypedStorage) -> torch.device: ...

    def hold(self, storage: torch.UntypedStorage, size: int, device: torch.device) -> None: ...

    def check_room(self, size: int, device: torch.device) -> None: ...

    def crossed(self, size: int, source: torch.device, target: torch.device) -> None: ...

    def gpu(self, device: torch.device) -> torch.device: ...


def device_of_memory(storage: torch.UntypedStorage) -> torch.device:
    """Return where a storage really is: ``cpu``, or ``meta`` if it is without data."""
    device: torch.device = _device_of_memory.__get__(storage)
    return device


@contextmanager
def storages_on_gpus(machine: _Machine) -> Iterator[None]:
    """Within the block, storages are on the GPUs of `machine` as they are on real ones."""
    kind: Any = torch.UntypedStorage
    replacements = _Storages(machine, kind).replacements()
    own = {name: vars(kind)[name] for name in replacements if name in vars(kind)}
    for name, replacement in replacements.items():
        setattr(kind, name, replacement)
    try:
        yield
    finally:
        for name in replacements:
            if name in own:
                setattr(kind, name, own[name])
            else:
                delattr(kind, name)  # that of the base class shows again


class _Storages:
    """The methods of storages, each of which is given the storage."""

    def __init__(self, machine: _Machine, kind: Any) -> None:
        self._machine = machine
        self._kind = kind
        self._make, self._clone = kind.__new__, kind.clone
        self._is_shared, self._share = kind.is_shared, kind._share_cuda_
        self._copy, self._resize = _below_modes(kind.copy_), _below_modes(kind.resize_)
        self._fill = _below_modes(kind.fill_)
        self._item, self._put = _below_modes(kind.__getitem__), _below_modes(kind.__setitem__)

    def replacements(self) -> dict[str, Any]:
        """Return the attributes of ``torch.UntypedStorage``, by name."""
        methods: dict[str, Callable[..., Any]] = {
            "__getitem__": self.item,
            "__new__": self.make,
            "__setitem__": self._put,
            "_share_cuda_": self.share,
            "clone": self.clone,
            "copy_": self.copy,
            "fill_": self._fill,
            "is_shared": self.is_shared,
            "resize_": self.resize,
        }
        return {
            "device": property(self._machine.place_of),
            **{name: _method(function) for name, function in methods.items()},
        }

    def make(self, cls: type, *args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        place = CPU if device is None else torch.device(device)
        if place.type != "cuda":
            return self._make(cls, *args, **kwargs)
        place = self._machine.gpu(place)
        if args and isinstance(args[0], int):
            self._machine.check_room(args[0], place)
        return self._held(self._make(cls, *args, **{**kwargs, "device": CPU}), place)

    def copy(self, storage: Any, source: Any, non_blocking: bool = False) -> Any:
        here, there = self._machine.place_of(storage), self._machine.place_of(source)
        has_data = device_of_memory(source) != META or there == META
        if not has_data and device_of_memory(storage) != META:
            self._fill(storage, 0)  # as tensors without data are copied into those that have some
        else:
            self._copy(storage, source, non_blocking)
        if here != there and META not in (here, there):
            self._machine.crossed(source.nbytes(), there, here)
        return storage

    def clone(self, storage: Any) -> Any:
        place = self._machine.place_of(storage)
        if place.type == "cuda" and device_of_memory(storage) == META:
            return self._held(self._make(type(storage), storage.nbytes(), device=META), place)
        return self._clone(storage)

    def resize(self, storage: Any, size: int) -> Any:
        place, before = self._machine.place_of(storage), storage.nbytes()
        if place.type != "cuda":
            return self._resize(storage, size)
        self._machine.hold(storage, max(int(size), 0), place)
        try:
            return self._resize(storage, size)
        except RuntimeError:
            self._machine.hold(storage, before, place)
            raise

    def item(self, storage: Any, index: Any) -> Any:
        found = self._item(storage, index)
        place = self._machine.place_of(storage)
        is_part = isinstance(found, self._kind) and place.type == "cuda"
        return self._held(found, place) if is_part else found

    def is_shared(self, storage: Any) -> bool:
        is_on_gpu = self._machine.place_of(storage).type == "cuda"
        return is_on_gpu or self._is_shared(storage)

    def share(self, storage: Any, *args: Any) -> Any:
        if self._machine.place_of(storage).type == "cuda":
            refuse_processes()
        return self._share(storage, *args)

    def _held(self, storage: Any, device: torch.device) -> Any:
        self._machine.hold(storage, storage.nbytes(), device)
        return storage


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is a method where it is an attribute of a class."""
    return lambda storage, *args, **kwargs: function(storage, *args, **kwargs)


def _below_modes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` of C++, which makes tensors of the CPU out of a storage to do its work."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            return function(*args, **kwargs)

    return run


def refuse_processes(*_: Any) -> NoReturn:
    """Refuse to hand memory of a virtual GPU to another process."""
    raise NotImplementedError(
        "Virtual GPUs end with their process: hand another one the tensor.cpu()."
    )
