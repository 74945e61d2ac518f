"""Bytes of tensors that are alive, counted by their storages."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts bytes of tensors on one device that are alive, and the most there were at once."""

    def __init__(self, weights: torch.nn.Module, device: str = "meta") -> None:
        super().__init__()
        tensors = [*weights.parameters(), *weights.buffers()]
        self.known = {tensor.untyped_storage()._cdata for tensor in tensors}
        self.device = device
        self.live = self.peak = 0

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)

        def free() -> None:
            self.known.discard(key)
            self.live -= size

        weakref.finalize(storage, free).atexit = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self.device:
                self.add(leaf)
        return result
